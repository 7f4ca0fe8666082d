"""Peak memory of a function call."""

import contextlib
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

try:
    import resource
except ModuleNotFoundError:  # POSIX only
    resource = None  # type: ignore[assignment]

Result = TypeVar("Result")


def with_peak_memory(device: torch.device, work: Callable[[], Result]) -> tuple[Result, float]:
    """Call `work()` and measure the peak memory during the call.

    Args:
        device: a CUDA device measures the memory allocated on it; otherwise the process's memory is measured.
        work: the function to call.

    Returns:
        The result of `work()`, and the peak in MB (10^6 bytes). Outside Linux, the CPU peak is the process's
        maximum so far. It is NaN if the system does not report it.
    """
    _reset_peak(device)
    return work(), _peak_mb(device)


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_mb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    if sys.platform == "linux":  # The peak of getrusage would be that of the parent process.
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6
    if resource is None:
        return math.nan
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
