"""Exercises of lesson 01, best of N."""

import math

import numpy as np

from igrpo_kit.classroom.exercise import Arguments, Exercise, FunctionCheck, ValueCheck
from igrpo_kit.core.passk import pass_at_k
from igrpo_kit.core.toy import best_of_n_probability, dead_group_probability


def _random_p_n(rng: np.random.Generator) -> list[Arguments]:
    return [(float(rng.uniform(0.05, 0.95)), int(rng.integers(2, 10))) for _ in range(5)]


def _all_right(p: float, n: int) -> float:
    """p**n is the chance that *all* N drafts are right; one right draft is enough."""
    return p**n


def _all_wrong(p: float, n: int) -> float:
    """(1 - p)**n is the chance that all drafts are wrong; you want the opposite."""
    return (1 - p) ** n


def _complement_of_all_right(p: float, n: int) -> float:
    """1 - p**n is the chance that some draft is *wrong*. Swap the roles of p and 1 - p."""
    return 1 - p**n


def _sum_of_chances(p: float, n: int) -> float:
    """n * p counts the expected number of right drafts; two right drafts are not twice as good as one."""
    return n * p


def _only_all_right(p: float, n: int) -> float:
    """A group whose completions are all right is dead, but so is one whose completions are all wrong."""
    return p**n


def _only_all_wrong(p: float, n: int) -> float:
    """A group whose completions are all wrong is dead, but so is one whose completions are all right."""
    return (1 - p) ** n


def _alive(p: float, n: int) -> float:
    """That is the chance that the group is *alive*; a dead one is asked for."""
    return 1 - p**n - (1 - p) ** n


def drafts_needed(p: float, target: float) -> int:
    """The smallest N with 1 - (1 - p)**N >= target."""
    n = 1
    while 1 - (1 - p) ** n < target:
        n += 1
    return n


def _random_targets(rng: np.random.Generator) -> list[Arguments]:
    return [(float(rng.uniform(0.03, 0.6)), float(rng.uniform(0.65, 0.98))) for _ in range(6)]


def _rounded_down(p: float, target: float) -> int:
    """Rounded down: with one draft fewer than needed the target is just missed. Round up."""
    return max(1, math.floor(math.log(1 - target) / math.log(1 - p)))


def _one_too_many(p: float, target: float) -> int:
    """One too many: the draft with which the target is reached is the last one needed."""
    return drafts_needed(p, target) + 1


def _proportional(p: float, target: float) -> int:
    """target / p treats chances as if they added up; drafts that hit the same prompt twice are wasted."""
    return math.ceil(target / p)


def _random_counts(rng: np.random.Generator) -> list[Arguments]:
    return [(n, int(rng.integers(1, n)), int(rng.integers(2, n))) for n in (6, 9, 16, 32)]


def _with_replacement(n: int, c: int, k: int) -> float:
    """1 - (1 - c/n)**k draws *with* replacement: it is biased low. Your k samples are k different ones."""
    return 1 - (1 - c / n) ** k


def _first_k(n: int, c: int, k: int) -> float:
    """k * c / n is the expected number of right samples among k, not the chance of at least one."""
    return min(1.0, k * c / n)


def _mean_accuracy(n: int, c: int, k: int) -> float:
    """c / n is pass@1; k does not enter it."""
    return c / n


EXERCISES = [
    Exercise(
        name="best_of_n",
        lesson="01",
        kind="code",
        difficulty=1,
        minutes=5,
        verify=FunctionCheck(
            reference=lambda p, n: float(best_of_n_probability(p, n)),
            typed=[((0.5, 2), 0.75), ((0.3, 4), 0.7599), ((1.0, 3), 1.0), ((0.0, 3), 0.0)],
            random=_random_p_n,
            mistakes=[_all_right, _all_wrong, _complement_of_all_right, _sum_of_chances],
        ),
    ),
    Exercise(
        name="jensen",
        lesson="01",
        kind="prediction",
        difficulty=1,
        minutes=3,
        verify=ValueCheck(
            right="lower",
            mistakes={
                "higher": "Look at lost prompts: p = 0 stays 0 however many drafts are drawn, "
                "and p = 1 cannot rise. Spread wastes drafts.",
                "equal": "Equal only if all prompts have the same p: 1 - (1 - p)^N bends downwards in p.",
            },
            otherwise="Answer with one of the words: 'higher', 'equal', 'lower'.",
        ),
    ),
    Exercise(
        name="pass_at_k",
        lesson="01",
        kind="code",
        difficulty=2,
        minutes=10,
        verify=FunctionCheck(
            reference=lambda n, c, k: float(pass_at_k(n, c, k)),
            typed=[((4, 2, 2), 5 / 6), ((5, 1, 5), 1.0), ((10, 0, 3), 0.0), ((3, 2, 2), 1.0)],
            random=_random_counts,
            mistakes=[_with_replacement, _first_k, _mean_accuracy],
        ),
    ),
    Exercise(
        name="drafts_needed",
        lesson="01",
        kind="code",
        difficulty=2,
        minutes=8,
        verify=FunctionCheck(
            reference=drafts_needed,
            typed=[((0.5, 0.7), 2), ((0.1, 0.66), 11), ((0.9, 0.8), 1)],
            random=_random_targets,
            mistakes=[_rounded_down, _one_too_many, _proportional],
        ),
    ),
    Exercise(
        name="dead_group",
        lesson="01",
        kind="code",
        difficulty=1,
        minutes=4,
        verify=FunctionCheck(
            reference=lambda p, size: float(dead_group_probability(p, size)),
            typed=[((0.5, 2), 0.5), ((0.5, 4), 0.125), ((1.0, 8), 1.0), ((0.9, 2), 0.82)],
            random=_random_p_n,
            mistakes=[_only_all_right, _only_all_wrong, _alive],
        ),
    ),
]  # fmt: skip
