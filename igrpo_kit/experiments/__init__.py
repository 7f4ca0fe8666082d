"""Experiments as data, with their runner, ablations, baselines, and reports and figures from the records."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
