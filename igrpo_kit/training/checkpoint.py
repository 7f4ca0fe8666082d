"""Save and load a tree of tensors and plain values as one safetensors file, written atomically, no pickle.

The state of optimizers, generators and counters consists of nested dicts and lists of tensors, numbers and
strings. Tensors are stored as they are. The tree is stored as JSON in the file's header, with a number in
place of each tensor. A checkpoint is one file, put in place by one rename, so it is never half written.
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
    """The file is not a checkpoint of this package, is damaged, or belongs to another run."""


def _take_out(tree: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(tree, Tensor):
        name = str(len(tensors))
        tensors[name] = tree.detach().contiguous()
        return {"tensor": name}
    if isinstance(tree, dict):
        # Pairs, because JSON would turn the integer keys of an optimizer's state into strings.
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
    """CRC-32 of the tensors and the tree: safetensors detects a truncated file, but not changed bytes."""
    value = zlib.crc32(tree.encode())
    for name in sorted(tensors, key=int):
        value = zlib.crc32(tensors[name].cpu().flatten().view(torch.uint8).numpy().data, value)
    return str(value)


def save_checkpoint(path: str | Path, state: Any) -> None:
    """Write `state` atomically: at any moment the file holds either the old or the new checkpoint.

    Args:
        path: the file to write.
        state: nested dicts and lists of tensors, numbers, strings and None.

    Raises:
        TypeError: `state` holds a value of any other type.
    """
    tensors: dict[str, Tensor] = {}
    tree = json.dumps(_take_out(state, tensors))
    # safetensors refuses to write tensors that share memory, such as tied weights.
    own = {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}
    metadata = {"format": FORMAT, "tree": tree, "crc32": _checksum(own, tree)}
    write_atomically(path, save(own, metadata=metadata))


def load_checkpoint(path: str | Path) -> Any:
    """Read a saved state. Tensors are on the CPU, and tuples have become lists.

    Raises:
        CheckpointError: the file is damaged or is not a checkpoint.
        FileNotFoundError: there is no such file.
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
