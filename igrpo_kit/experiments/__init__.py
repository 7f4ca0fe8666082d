"""Experiments as data: their runner, ablations, baselines and regimes, and reports and figures of records."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
