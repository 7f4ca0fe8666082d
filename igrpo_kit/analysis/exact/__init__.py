"""Worlds small enough for exact numbers: group gradients, waiting times, learning dynamics, their map."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
