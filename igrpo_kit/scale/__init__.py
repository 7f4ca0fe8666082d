"""iGRPO on TRL, from one GPU to several nodes: trainer, the paper's recipes, batch jobs."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
