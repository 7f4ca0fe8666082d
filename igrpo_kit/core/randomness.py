"""Independent seeds, and the state of all global random generators."""

import hashlib
import random
from typing import Any, cast

import numpy as np
import torch


def random_states() -> dict[str, Any]:
    """State of every global generator: Python's, NumPy's, torch's on the CPU and on each GPU."""
    kind, keys, position, has_gauss, gauss = cast(tuple, np.random.get_state(legacy=True))
    return {
        "python": random.getstate(),
        "numpy": [kind, torch.from_numpy(keys.astype("int64")), position, has_gauss, gauss],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """Restore every global generator to the state returned by `random_states`."""
    version, internal, gauss_next = states["python"]
    random.setstate((version, tuple(internal), gauss_next))
    kind, keys, position, has_gauss, gauss = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype("uint32"), position, has_gauss, gauss))
    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])


def derived_seed(seed: int, purpose: str) -> int:
    """An independent seed for one purpose of a run, so that no two streams of random numbers coincide."""
    return int.from_bytes(hashlib.sha256(f"{seed} {purpose}".encode()).digest()[:7], "big")
