"""Where a draft pays: the revision cipher, natural tasks, and their tables."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
