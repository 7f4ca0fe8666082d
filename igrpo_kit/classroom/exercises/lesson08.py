"""Exercises of lesson 08, the full run."""

import numpy as np

from igrpo_kit.classroom.exercise import Arguments, Exercise, FunctionCheck


def prompts_per_update(per_device: int, devices: int, accumulation: int, group_size: int) -> int:
    """Rows of one optimizer step, divided by the rows of a group."""
    return per_device * devices * accumulation // group_size


def _rows(per_device: int, devices: int, accumulation: int, group_size: int) -> int:
    """Those are rows, completions; a prompt has `group_size` of them."""
    return per_device * devices * accumulation


def _one_device(per_device: int, devices: int, accumulation: int, group_size: int) -> int:
    """That is one device's share; all devices make one update together."""
    return per_device * accumulation // group_size


def _no_accumulation(per_device: int, devices: int, accumulation: int, group_size: int) -> int:
    """Gradient accumulation is missing: several batches make one update."""
    return per_device * devices // group_size


def _times_group(per_device: int, devices: int, accumulation: int, group_size: int) -> int:
    """per_device counts completions already; divide by the group size, do not multiply."""
    return per_device * devices * accumulation * group_size


def _random_layouts(rng: np.random.Generator) -> list[Arguments]:
    return [
        (16 * int(rng.integers(1, 5)), int(rng.integers(2, 9)), int(rng.integers(2, 9)), 8) for _ in range(4)
    ]


_PROMPTS_PER_UPDATE = FunctionCheck(
    reference=prompts_per_update,
    typed=[((16, 8, 8, 8), 128), ((16, 8, 8, 4), 256), ((4, 1, 2, 8), 1)],
    random=_random_layouts,
    mistakes=[_rows, _one_device, _no_accumulation, _times_group],
)


def gpu_hours(seconds_per_step: float, steps: int, gpus: int) -> float:
    """What a run occupies: every GPU, the generating ones too, for all of its time."""
    return seconds_per_step * steps * gpus / 3600


def _wall_hours(seconds_per_step: float, steps: int, gpus: int) -> float:
    """That is the wall time; every GPU is occupied for all of it."""
    return seconds_per_step * steps / 3600


def _shared(seconds_per_step: float, steps: int, gpus: int) -> float:
    """Divided by the GPUs: they work side by side, and each hour of each is billed."""
    return seconds_per_step * steps / gpus / 3600


def _gpu_minutes(seconds_per_step: float, steps: int, gpus: int) -> float:
    """Those are GPU-minutes."""
    return seconds_per_step * steps * gpus / 60


def _random_runs(rng: np.random.Generator) -> list[Arguments]:
    return [
        (float(rng.uniform(5, 90)), int(rng.integers(100, 900)), int(rng.integers(2, 16))) for _ in range(3)
    ]


_GPU_HOURS = FunctionCheck(
    reference=gpu_hours,
    typed=[((36.0, 100, 16), 16.0), ((3600.0, 1, 1), 1.0)],
    random=_random_runs,
    mistakes=[_wall_hours, _shared, _gpu_minutes],
)

EXERCISES = [
    Exercise("prompts_per_update", "08", "code", difficulty=1, minutes=5, verify=_PROMPTS_PER_UPDATE),
    Exercise("gpu_hours", "08", "code", difficulty=1, minutes=3, verify=_GPU_HOURS),
]
