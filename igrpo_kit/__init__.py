"""iGRPO (https://arxiv.org/abs/2602.09000) as small components; the public names are in `__init__.pyi`.

A name loads its module when it is first used, so `import igrpo_kit` needs neither torch nor transformers.
"""

import lazy_loader as _lazy

__version__ = "0.2.0"

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
