"""Exercises of lesson 06, the CPU run."""

import numpy as np
from scipy import stats

from igrpo_kit.classroom.exercise import Arguments, Exercise, FunctionCheck, ValueCheck


def copy_rate(drafts: list[str], refinements: list[list[str]]) -> float:
    """Share of the refinements that repeat their prompt's best draft verbatim."""
    copied = [r == draft for draft, group in zip(drafts, refinements, strict=True) for r in group]
    return sum(copied) / len(copied)


def _any_in_group(drafts: list[str], refinements: list[list[str]]) -> float:
    """You count prompts with *some* copy; the rate is over refinements."""
    return float(np.mean([draft in group for draft, group in zip(drafts, refinements, strict=True)]))


def _copied_from_any(drafts: list[str], refinements: list[list[str]]) -> float:
    """A refinement is compared with the drafts of all prompts; it was shown its own prompt's alone."""
    return float(np.mean([r in drafts for group in refinements for r in group]))


def _original(drafts: list[str], refinements: list[list[str]]) -> float:
    """That is the share that does *not* copy."""
    return 1 - copy_rate(drafts, refinements)


def _random_texts(rng: np.random.Generator) -> list[Arguments]:
    draw = lambda: str(rng.integers(6))  # noqa: E731
    return [([draw() for _ in range(6)], [[draw() for _ in range(4)] for _ in range(6)])]


_COPY_RATE = FunctionCheck(
    reference=copy_rate,
    typed=[
        ((["a", "b"], [["a", "b"], ["b", "b"]]), 0.75),
        ((["a", "b"], [["b", "b"], ["c", "c"]]), 0.0),
        ((["a"], [["a", "b", "aa"]]), 1 / 3),
        ((["3+4", "x"], [["3+4 ", "3 + 4"], ["X", "x"]]), 0.25),
    ],
    random=_random_texts,
    mistakes=[_any_in_group, _copied_from_any, _original],
)


def _around(mean: float, half: float) -> tuple[float, float, float]:
    return float(mean), float(mean - half), float(mean + half)


def paired_interval(ours: list[float], theirs: list[float]) -> tuple[float, float, float]:
    """Mean of the differences seed by seed, and its 95% interval by Student's t."""
    d = np.subtract(ours, theirs)
    half = stats.t.ppf(0.975, len(d) - 1) * d.std(ddof=1) / np.sqrt(len(d))
    return _around(d.mean(), half)


def _normal(ours: list[float], theirs: list[float]) -> tuple[float, float, float]:
    """1.96 is the normal's quantile, for many seeds. With five, Student's t has 2.78; with three, 4.30."""
    d = np.subtract(ours, theirs)
    half = 1.959963985 * d.std(ddof=1) / np.sqrt(len(d))
    return _around(d.mean(), half)


def _unpaired(ours: list[float], theirs: list[float]) -> tuple[float, float, float]:
    """You treat the runs as unrelated. The same seed met the same problems: subtract first, seed by seed."""
    n, mean = len(ours), float(np.mean(ours) - np.mean(theirs))
    half = stats.t.ppf(0.975, n - 1) * np.sqrt((np.var(ours, ddof=1) + np.var(theirs, ddof=1)) / n)
    return _around(mean, half)


def _spread(ours: list[float], theirs: list[float]) -> tuple[float, float, float]:
    """The division by the root of the number of seeds is missing: that is the spread of single runs."""
    d = np.subtract(ours, theirs)
    half = stats.t.ppf(0.975, len(d) - 1) * d.std(ddof=1)
    return _around(d.mean(), half)


def _population(ours: list[float], theirs: list[float]) -> tuple[float, float, float]:
    """NumPy's std divides by n; the sample standard deviation divides by n - 1: ddof=1."""
    d = np.subtract(ours, theirs)
    half = stats.t.ppf(0.975, len(d) - 1) * d.std() / np.sqrt(len(d))
    return _around(d.mean(), half)


def _random_runs(rng: np.random.Generator) -> list[Arguments]:
    level = rng.normal(size=5)
    return [((level + rng.normal(size=5) / 5).tolist(), level.tolist())]


_PAIRED_INTERVAL = FunctionCheck(
    reference=paired_interval,
    typed=[(([3.0, 5.0, 4.0], [2.0, 3.0, 1.0]), (2.0, -0.484138, 4.484138))],
    random=_random_runs,
    mistakes=[_normal, _unpaired, _spread, _population],
)

_SAME_ALGORITHM = ValueCheck(
    right="iGRPO 4+4, no draft".lower(),
    mistakes={
        "grpo-8": "GRPO-8 trains on eight completions of q; GRPO-4 on four.",
        "igrpo 4+4": "iGRPO's refinements answer q', which shows a draft; GRPO-4 answers q.",
        "igrpo 4+4, random draft": "A random draft is a draft: its refinements answer q', not q.",
    },
    otherwise="Answer with the name of a method of the countdown-cpu table.",
)

EXERCISES = [
    Exercise("paired_interval", "06", "code", difficulty=3, minutes=12, verify=_PAIRED_INTERVAL),
    Exercise("same_algorithm", "06", "prediction", difficulty=2, minutes=3, verify=_SAME_ALGORITHM),
    Exercise("copy_rate", "06", "code", difficulty=1, minutes=5, verify=_COPY_RATE),
]
