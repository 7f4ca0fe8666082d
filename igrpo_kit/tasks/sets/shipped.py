"""The sets in `data/problems/`; `python -m igrpo_kit.tasks.sets.shipped data/problems` writes them again."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from igrpo_kit.tasks.problem import Problem
from igrpo_kit.tasks.sets.files import save_problems
from igrpo_kit.tasks.sets.generated import addition_problems, countdown_max_problems, countdown_problems
from igrpo_kit.tasks.sets.gym import reasoning_gym_problems

SHIPPED: dict[str, Callable[[], list[Problem]]] = {
    "countdown-train": partial(countdown_problems, 1000, seed=0, distinct=True),
    "countdown-held-out": partial(countdown_problems, 256, seed=0, split="held_out", distinct=True),
    "countdown-max-held-out": partial(countdown_max_problems, 256, seed=0, split="held_out", distinct=True),
    "addition-held-out": partial(addition_problems, 256, seed=0, split="held_out", distinct=True),
    "gsm-symbolic-train": partial(reasoning_gym_problems, "gsm_symbolic", 500, seed=0),
    "gsm-symbolic-held-out": partial(reasoning_gym_problems, "gsm_symbolic", 200, seed=0, split="held_out"),
}
"""The sets in `data/problems/`, by file name, and how each is generated."""


def write_shipped(folder: str | Path) -> None:
    """Generate the shipped sets in `folder`; the bytes are the same each time."""
    for name, draw in SHIPPED.items():
        save_problems(draw(), Path(folder) / f"{name}.jsonl")


if __name__ == "__main__":
    write_shipped(*sys.argv[1:])
