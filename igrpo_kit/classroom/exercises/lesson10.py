"""Exercises of lesson 10, reading the paper."""

import math

import numpy as np

from igrpo_kit.classroom.exercise import Arguments, Exercise, FunctionCheck, ValueCheck


def standard_error(percent: float, problems: int) -> float:
    """Of an accuracy in percent over independent problems, in percentage points."""
    p = percent / 100
    return 100 * math.sqrt(p * (1 - p) / problems)


def _variance(percent: float, problems: int) -> float:
    """That is the variance; the standard error is its square root."""
    p = percent / 100
    return 100 * p * (1 - p) / problems


def _of_one_problem(percent: float, problems: int) -> float:
    """That is the spread of a single problem; the mean of n problems has 1 / sqrt(n) of it."""
    p = percent / 100
    return 100 * math.sqrt(p * (1 - p))


def _as_share(percent: float, problems: int) -> float:
    """You return a fraction; percentage points are a hundred times that."""
    return standard_error(percent, problems) / 100


def _interval(percent: float, problems: int) -> float:
    """1.96 times too large: that is half of a 95% interval, not the standard error."""
    return 1.96 * standard_error(percent, problems)


def _random_accuracies(rng: np.random.Generator) -> list[Arguments]:
    return [(float(rng.uniform(20, 80)), n) for n in (30, 40, 500)]


_STANDARD_ERROR = FunctionCheck(
    reference=standard_error,
    typed=[((50.0, 100), 5.0), ((80.0, 400), 2.0), ((100.0, 30), 0.0)],
    random=_random_accuracies,
    mistakes=[_variance, _of_one_problem, _as_share, _interval],
)


def error_of_mean(errors: list[float]) -> float:
    """Of the mean of independent numbers: errors add in squares."""
    return math.sqrt(sum(e**2 for e in errors)) / len(errors)


def _mean_error(errors: list[float]) -> float:
    """That is the mean of the errors: independent errors partly cancel, so they add in squares."""
    return sum(errors) / len(errors)


def _error_of_sum(errors: list[float]) -> float:
    """That is the error of the *sum*; the mean divides it by the number of benchmarks."""
    return math.sqrt(sum(e**2 for e in errors))


def _root_mean_square(errors: list[float]) -> float:
    """Divide by n outside the root: that is the root mean square, the error of one benchmark on average."""
    return math.sqrt(sum(e**2 for e in errors) / len(errors))


def _random_errors(rng: np.random.Generator) -> list[Arguments]:
    return [(rng.uniform(0.2, 4, n).tolist(),) for n in (2, 6)]


_ERROR_OF_MEAN = FunctionCheck(
    reference=error_of_mean,
    typed=[(([3.0, 4.0],), 2.5), (([2.0],), 2.0)],
    random=_random_errors,
    mistakes=[_mean_error, _error_of_sum, _root_mean_square],
)


def reachable(printed: float, problems: int, runs: int) -> bool:
    """Whether some whole number of correct answers in all runs gives the printed percentage, two decimals."""
    total = problems * runs
    nearest = round(printed / 100 * total)
    return any(abs(100 * k / total - printed) <= 0.005 + 1e-9 for k in (nearest - 1, nearest, nearest + 1))


def _one_run(printed: float, problems: int, runs: int) -> bool:
    """The printed number is a mean over `runs` runs: answers are counted in problems * runs."""
    return reachable(printed, problems, 1)


def _exactly(printed: float, problems: int, runs: int) -> bool:
    """Two decimals are printed, so a value that *rounds* to the printed one is reachable too."""
    k = printed / 100 * problems * runs
    return abs(k - round(k)) < 1e-9


def _no_slack(printed: float, problems: int, runs: int) -> bool:
    """In floats 54.38 - 54.375 is a little more than 0.005: leave a little room, 1e-9 say."""
    total = problems * runs
    return abs(100 * round(printed / 100 * total) / total - printed) <= 0.005


def _always(printed: float, problems: int, runs: int) -> bool:
    """You accept every percentage: only multiples of 100 / (problems * runs) can occur."""
    return True


def _random_percentages(rng: np.random.Generator) -> list[Arguments]:
    """Percentages of a random count, as printed, and their neighbors that no count gives."""
    found: list[Arguments] = []
    for problems, runs in ((30, 1), (40, 2), (30, 8), (500, 1)):
        printed = round(100 * int(rng.integers(1, problems * runs)) / (problems * runs), 2)
        found += [(printed, problems, runs), (round(printed + 0.02, 2), problems, runs)]
    return found


_REACHABLE = FunctionCheck(
    reference=reachable,
    typed=[
        ((33.33, 30, 1), True),
        ((35.0, 30, 1), False),
        ((35.0, 30, 2), True),
        ((52.5, 40, 1), True),
        ((50.4, 500, 1), True),
        ((50.45, 500, 1), False),
        ((54.38, 30, 64), True),
        ((54.4, 30, 64), False),
        ((0.0, 30, 1), True),
        ((100.0, 30, 1), True),
        ((66.67, 30, 1), True),
        ((66.66, 30, 1), False),
        ((16.67, 30, 64), True),
        ((16.66, 30, 64), False),
        ((3.33, 30, 8), True),
        ((0.01, 40, 1), False),
    ],
    random=_random_percentages,
    mistakes=[_one_run, _exactly, _no_slack, _always],
)

_ESTIMATOR_BIAS = ValueCheck(
    right=0.75,
    mistakes={
        1.0: "The mean a completion is compared with contains its own reward: its part of the mean "
        "pulls against it.",
        0.25: "1/G is the part that is lost; what is left?",
        4 / 3: "Upside down: the push becomes smaller, not larger.",
    },
    otherwise="The baseline holds 1/G of the completion's own reward. What share of it is left?",
)

EXERCISES = [
    Exercise("reachable", "10", "code", difficulty=2, minutes=12, verify=_REACHABLE),
    Exercise("standard_error", "10", "code", difficulty=1, minutes=5, verify=_STANDARD_ERROR),
    Exercise("error_of_mean", "10", "code", difficulty=1, minutes=3, verify=_ERROR_OF_MEAN),
    Exercise("estimator_bias", "10", "prediction", difficulty=2, minutes=4, verify=_ESTIMATOR_BIAS),
]
