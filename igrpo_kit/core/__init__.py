"""The paper's equations as pure functions, and what every package uses: data paths, row files, randomness."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
