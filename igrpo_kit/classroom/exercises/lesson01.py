"""Exercises of lesson 01, best of N."""

import math

import numpy as np

from igrpo_kit.classroom.exercise import Arguments, Exercise, FunctionCheck, ValueCheck
from igrpo_kit.core.passk import pass_at_k
from igrpo_kit.core.toy import best_of_n_probability, dead_group_probability


def _random_p_n(rng: np.random.Generator) -> list[Arguments]:
    return [(float(rng.uniform(0.05, 0.95)), int(rng.integers(2, 10))) for _ in range(5)]


def _all_correct(p: float, n: int) -> float:
    """p**n is the chance that *all* N drafts are correct; one correct draft is enough."""
    return p**n


def _all_incorrect(p: float, n: int) -> float:
    """(1 - p)**n is the chance that all drafts are incorrect; you want the opposite."""
    return (1 - p) ** n


def _complement_of_all_correct(p: float, n: int) -> float:
    """1 - p**n is the chance that some draft is *incorrect*. Swap the roles of p and 1 - p."""
    return 1 - p**n


def _sum_of_chances(p: float, n: int) -> float:
    """n * p is the expected number of correct drafts; two correct drafts are not twice as good as one."""
    return n * p


_BEST_OF_N = FunctionCheck(
    reference=lambda p, n: float(best_of_n_probability(p, n)),
    typed=[((0.5, 2), 0.75), ((0.3, 4), 0.7599), ((1.0, 3), 1.0), ((0.0, 3), 0.0)],
    random=_random_p_n,
    mistakes=[_all_correct, _all_incorrect, _complement_of_all_correct, _sum_of_chances],
)


def _only_all_correct(p: float, n: int) -> float:
    """A group whose completions are all correct is dead, but so is one that is all incorrect."""
    return p**n


def _only_all_incorrect(p: float, n: int) -> float:
    """A group whose completions are all incorrect is dead, but so is one that is all correct."""
    return (1 - p) ** n


def _alive(p: float, n: int) -> float:
    """That is the chance that the group is *alive*; a dead one is asked for."""
    return 1 - p**n - (1 - p) ** n


_DEAD_GROUP = FunctionCheck(
    reference=lambda p, size: float(dead_group_probability(p, size)),
    typed=[((0.5, 2), 0.5), ((0.5, 4), 0.125), ((1.0, 8), 1.0), ((0.9, 2), 0.82)],
    random=_random_p_n,
    mistakes=[_only_all_correct, _only_all_incorrect, _alive],
)


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
    """target / p treats chances as if they added up; a second correct draft of a prompt adds nothing."""
    return math.ceil(target / p)


_DRAFTS_NEEDED = FunctionCheck(
    reference=drafts_needed,
    typed=[
        ((0.5, 0.7), 2),
        ((0.1, 0.66), 11),
        ((0.9, 0.8), 1),
        ((0.5, 0.75), 2),  # reached exactly
        ((0.5, 0.751), 3),
        ((0.25, 0.25), 1),
        ((0.02, 0.9), 114),  # .98^114 = .09994
    ],
    random=_random_targets,
    mistakes=[_rounded_down, _one_too_many, _proportional],
)


def _random_counts(rng: np.random.Generator) -> list[Arguments]:
    return [(n, int(rng.integers(1, n)), int(rng.integers(2, n))) for n in (6, 9, 16, 32)]


def _with_replacement(n: int, c: int, k: int) -> float:
    """1 - (1 - c/n)**k samples *with* replacement: it is biased low. Your k samples are k different ones."""
    return 1 - (1 - c / n) ** k


def _first_k(n: int, c: int, k: int) -> float:
    """k * c / n is the expected number of correct samples among k, not the chance of at least one."""
    return min(1.0, k * c / n)


def _mean_accuracy(n: int, c: int, k: int) -> float:
    """c / n is pass@1; k does not enter it."""
    return c / n


_PASS_AT_K = FunctionCheck(
    reference=lambda n, c, k: float(pass_at_k(n, c, k)),
    typed=[((4, 2, 2), 5 / 6), ((5, 1, 5), 1.0), ((10, 0, 3), 0.0), ((3, 2, 2), 1.0)],
    random=_random_counts,
    mistakes=[_with_replacement, _first_k, _mean_accuracy],
)

_JENSEN = ValueCheck(
    right="lower",
    mistakes={
        "higher": "Look at hopeless prompts: p = 0 stays 0 however many drafts are sampled, "
        "and p = 1 cannot rise. Spread wastes drafts.",
        "equal": "Equal only if all prompts have the same p: 1 - (1 - p)^N bends downwards in p.",
    },
    otherwise="Answer with one of the words: 'higher', 'equal', 'lower'.",
)

EXERCISES = [
    Exercise("best_of_n", "01", "code", difficulty=1, minutes=5, verify=_BEST_OF_N),
    Exercise("drafts_needed", "01", "code", difficulty=2, minutes=8, verify=_DRAFTS_NEEDED),
    Exercise("jensen", "01", "prediction", difficulty=1, minutes=3, verify=_JENSEN),
    Exercise("pass_at_k", "01", "code", difficulty=2, minutes=10, verify=_PASS_AT_K),
    Exercise("dead_group", "01", "code", difficulty=1, minutes=4, verify=_DEAD_GROUP),
]
