"""Problems of reasoning-gym (https://github.com/open-thought/reasoning-gym), scored by its own code.

Equations: https://arxiv.org/abs/2602.09000.
"""

import random
import re
from functools import lru_cache
from typing import Any

from igrpo_kit.tasks.problem import Problem, Split
from igrpo_kit.tasks.puzzles import Check
from igrpo_kit.tasks.sets.generated import draw_problems

GYM_DATASETS = (
    "basic_arithmetic",
    "chain_sum",
    "gcd",
    "gsm_symbolic",
    "lcm",
    "leg_counting",
    "products",
    "simple_equations",
)
"""The supported reasoning-gym datasets: every answer is one number, and the scorer reads only the entry's
answer. Others need the entry's metadata, and some pass the model's text to `eval`; these are refused.
"""

GYM_SOURCES = {f"reasoning-gym/{dataset}": dataset for dataset in GYM_DATASETS}
_GYM_SIZE = 100_000  # virtual: entries are generated on access and do not depend on the size
_GYM_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]{0,30}|[1-9][0-9]{0,2}(?:,[0-9]{3}){1,10})(?:\.[0-9]{1,30})?")


@lru_cache
def _gym(dataset: str, config: tuple[tuple[str, Any], ...] = ()) -> Any:
    if dataset not in GYM_DATASETS:
        raise ValueError(f"dataset: {dataset!r} is not one of {', '.join(GYM_DATASETS)}")
    try:
        import reasoning_gym  # optional: in the [train] extra
    except ImportError as error:
        raise ImportError("reasoning-gym is not installed: pip install reasoning-gym") from error
    return reasoning_gym.create_dataset(dataset, **{"size": _GYM_SIZE, "seed": 0, **dict(config)})


def check_gym(dataset: str, gold: str, answer: str) -> Check:
    """Binary reward from reasoning-gym's own scorer (Eq. 6).

    The scorer gives 0.01 or a fraction for incorrect answers; normalized within a group of failures, these
    would become full advantages. It also accepts the first number in a text, or a text that contains the
    gold, so it receives one plain number or is not called.

    Args:
        dataset: one of `GYM_DATASETS`.
        gold: reference answer.
        answer: extracted answer.
    """
    answer = answer.replace(r"\$", "").strip().strip("$").strip()
    if not _GYM_NUMBER.fullmatch(answer):
        return 0.0, "unparsed_answer"
    score = _gym(dataset).score_answer(answer.replace(",", ""), {"answer": gold})
    return (1.0, "correct") if score == 1.0 else (0.0, "incorrect")


def reasoning_gym_problems(
    dataset: str, count: int, *, seed: int, split: Split = "train", **config: Any
) -> list[Problem]:
    """`count` distinct problems of a reasoning-gym dataset, such as `gsm_symbolic`.

    Repeated questions are left out, and so are entries whose own answer is rejected by the scorer (the few
    negative answers of `gsm_symbolic`, which it cannot read).

    Args:
        dataset: one of `GYM_DATASETS`.
        count: number of problems.
        seed: seed of the dataset.
        split: by a hash of the question (`is_held_out`).
        config: options of the dataset, e.g. `max_terms=3` for `chain_sum`.

    Raises:
        ValueError: the dataset is unknown, or it does not give `count` distinct problems.
        ImportError: reasoning-gym is not installed.
    """
    entries = _gym(dataset, (*sorted(config.items()), ("seed", seed)))
    source, indices = f"reasoning-gym/{dataset}", iter(range(_GYM_SIZE))

    def draw(_: random.Random) -> tuple[str, str]:
        for index in indices:
            entry = entries[index]
            if check_gym(dataset, entry["answer"], entry["answer"])[0] == 1.0:
                return entry["question"], entry["answer"]
        raise ValueError(f"count: reasoning-gym's {dataset} has not {count} different {split} questions")

    return draw_problems(source, draw, count, seed, split, distinct=True)


def sum_problems(count: int, *, seed: int, split: Split = "train", distinct: bool = True) -> list[Problem]:
    """`count` distinct sums and differences of three one-digit numbers, in words (reasoning-gym's chain_sum).

    Arguments and errors as in `reasoning_gym_problems`.

    Raises:
        ValueError: `distinct` is False.
    """
    if not distinct:
        raise ValueError("distinct: these problems are always distinct")
    terms = {"min_terms": 3, "max_terms": 3, "min_digits": 1, "max_digits": 1}
    return reasoning_gym_problems("chain_sum", count, seed=seed, split=split, **terms)
