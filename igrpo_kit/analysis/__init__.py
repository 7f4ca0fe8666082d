"""Analysis of runs: statistics, evaluation, comparison, dynamics, cost, the paper's tables."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
