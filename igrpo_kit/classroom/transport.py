"""Plain data, NumPy arrays and torch tensors as JSON and back.

Never pickle: what comes from a learner's process must not be able to run anything here.
"""

from typing import Any

import numpy as np
import torch

from igrpo_kit.classroom.answers import Mistake, kind

_PLAIN = bool | int | float | str | None
_NUMBERS = "biuf"
"""kinds of arrays: True or False, whole numbers, floats"""


def encode(value: Any) -> Any:
    """A value as what JSON can hold. Raises Mistake naming the type where it cannot."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        return {
            "tensor": value.tolist(),
            "dtype": str(value.dtype).removeprefix("torch."),
            "shape": list(value.shape),
        }
    if isinstance(value, np.ndarray | np.generic):
        if value.dtype.kind not in _NUMBERS:
            raise Mistake(f"the result is an array of {value.dtype}")
        return {"array": value.tolist(), "dtype": str(value.dtype), "shape": list(value.shape)}
    if isinstance(value, dict):
        return {"dict": [[encode(k), encode(v)] for k, v in value.items()]}
    if isinstance(value, tuple):
        return {"tuple": [encode(v) for v in value]}
    if isinstance(value, list):
        return [encode(v) for v in value]
    if isinstance(value, _PLAIN):
        return value
    raise Mistake(f"the result is {kind(value)}")


def decode(value: Any) -> Any:
    """The value that `encode` was given; a KeyError, TypeError, ValueError ... for what it never makes."""
    if isinstance(value, list):
        return [decode(v) for v in value]
    if not isinstance(value, dict):
        return value
    if "dict" in value:
        return {decode(k): decode(v) for k, v in value["dict"]}
    if "tuple" in value:
        return tuple(decode(v) for v in value["tuple"])
    if "tensor" in value:
        return torch.tensor(value["tensor"], dtype=getattr(torch, value["dtype"])).reshape(value["shape"])
    if np.dtype(value["dtype"]).kind not in _NUMBERS:
        raise ValueError(f"an array of {value['dtype']}")
    return np.asarray(value["array"], dtype=value["dtype"]).reshape(value["shape"])
