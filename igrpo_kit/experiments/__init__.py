"""Who beats whom: experiments as data, their runner, ablations, baselines, figures from records."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
