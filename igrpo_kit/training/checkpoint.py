"""A tree of tensors and plain values in one safetensors file, written atomically. Never pickle.

Optimizers, generators and counters nest dicts and lists of tensors, numbers and strings. The tensors go into
the file as they are; the tree around them goes into its header as JSON, each tensor replaced by its number.
One file and one rename: there is no moment at which a checkpoint is half old and half new.
"""

import json
import os
import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from igrpo_kit.core.rows import write_atomically

FORMAT = "igrpo_kit checkpoint 1"


class CheckpointError(ValueError):
    """A file that is no checkpoint of this package, or a damaged one, or one of another run."""


def _take_out(tree: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(tree, Tensor):
        name = str(len(tensors))
        tensors[name] = tree.detach().contiguous()
        return {"tensor": name}
    if isinstance(tree, dict):
        # pairs, because JSON would turn the integer keys of an optimizer's state into strings
        return {"dict": [[key, _take_out(value, tensors)] for key, value in tree.items()]}
    if isinstance(tree, list | tuple):
        return {"list": [_take_out(value, tensors) for value in tree]}
    if tree is None or isinstance(tree, bool | int | float | str):
        return {"value": tree}
    raise TypeError(f"a checkpoint holds tensors, numbers, strings, lists and dicts, not {type(tree)}")


def _put_back(tree: Any, tensors: dict[str, Tensor]) -> Any:
    ((kind, content),) = tree.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _put_back(value, tensors) for key, value in content}
    if kind == "list":
        return [_put_back(value, tensors) for value in content]
    return content


def _checksum(tensors: dict[str, Tensor], tree: str) -> str:
    """safetensors notices a file that is too short, not one whose bytes have changed."""
    value = zlib.crc32(tree.encode())
    for name in sorted(tensors, key=int):
        value = zlib.crc32(tensors[name].cpu().flatten().view(torch.uint8).numpy().data, value)
    return str(value)


def save_checkpoint(path: str | Path, state: Any) -> None:
    """Write `state` so that the file holds either the old or the new checkpoint, whatever happens.

    Raises TypeError for anything but tensors, numbers, strings, lists and dicts.
    """
    tensors: dict[str, Tensor] = {}
    tree = json.dumps(_take_out(state, tensors))
    # Tied weights share memory, which safetensors refuses to write twice.
    own = {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}
    metadata = {"format": FORMAT, "tree": tree, "crc32": _checksum(own, tree)}
    write_atomically(path, save(own, metadata=metadata))


def load_checkpoint(path: str | Path) -> Any:
    """The state that was saved, tensors on the CPU, tuples as lists.

    Raises CheckpointError where the file is damaged or not a checkpoint, and FileNotFoundError.
    """
    if not Path(path).exists():
        raise FileNotFoundError(path)
    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise CheckpointError(f"{path}: not a checkpoint of igrpo_kit ({FORMAT!r} expected)")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if metadata["crc32"] != _checksum(tensors, metadata["tree"]):
                raise CheckpointError(f"{path}: damaged checkpoint (its checksum does not match)")
            return _put_back(json.loads(metadata["tree"]), tensors)
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path}: damaged checkpoint ({error})") from error
