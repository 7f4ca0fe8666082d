"""The meter: what a policy can gain from a draft, measured before RL, and a prediction."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
