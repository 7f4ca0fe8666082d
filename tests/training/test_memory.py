import importlib.util
import math
import sys
from types import SimpleNamespace

import pytest
import torch

from igrpo_kit.training import memory
from igrpo_kit.training.memory import with_peak_memory

CPU = torch.device("cpu")


def hold(size):
    """Touch `size` bytes and let go of them."""
    held = bytearray(size)
    return len(held)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process reset its peak")
def test_work_does_not_carry_the_peak_of_what_came_before():
    result, high = with_peak_memory(CPU, lambda: hold(400_000_000))
    assert result == 400_000_000
    result, low = with_peak_memory(CPU, lambda: "little")
    assert result == "little"
    assert 10 < low < high - 300
    assert with_peak_memory(CPU, lambda: hold(400_000_000))[1] > high - 100


def test_an_error_in_the_work_is_the_callers():
    with pytest.raises(ZeroDivisionError):
        with_peak_memory(CPU, lambda: 1 / 0)


def test_on_a_gpu_it_is_what_was_allocated(monkeypatch):
    gpu, calls = torch.device("cuda", 0), []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: calls.append(("reset", device)))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3_500_000)
    assert with_peak_memory(gpu, lambda: calls.append("work")) == (None, 3.5)
    assert calls == [("reset", gpu), "work"]


@pytest.fixture
def elsewhere(monkeypatch):
    """A function that imports `memory` anew as on another system, where there is no /proc."""

    def no_files(path):
        raise FileNotFoundError(path)

    def fresh(platform, resource):
        monkeypatch.setitem(sys.modules, "resource", resource)  # None: the import fails
        spec = importlib.util.spec_from_file_location("fresh_memory", memory.__file__)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.setattr(module, "Path", no_files)
        monkeypatch.setattr(module, "sys", SimpleNamespace(platform=platform))
        return module.with_peak_memory

    return fresh


def test_without_the_module_resource_the_work_is_done_and_the_peak_unknown(elsewhere):
    result, peak = elsewhere("win32", None)(CPU, lambda: "done")
    assert result == "done"
    assert math.isnan(peak)


@pytest.mark.parametrize(("platform", "peak"), [("darwin", 2.0), ("freebsd", 2048.0)])
def test_where_there_is_getrusage_its_unit_is_the_systems(elsewhere, platform, peak):
    """ru_maxrss of 2,000,000: bytes on macOS, KiB elsewhere."""
    usage = SimpleNamespace(
        RUSAGE_SELF=0, getrusage=lambda who: SimpleNamespace(ru_maxrss=2_000_000 if who == 0 else None)
    )
    assert elsewhere(platform, usage)(CPU, lambda: 1) == (1, peak)
