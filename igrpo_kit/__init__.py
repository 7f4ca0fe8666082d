"""iGRPO (arXiv 2602.09000) as small components; the public names are listed in `__init__.pyi`.

A name loads its module when it is first used, so `import igrpo_kit` needs neither torch nor transformers.
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
