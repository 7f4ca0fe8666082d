"""Confidence intervals: Wilson for proportions, Student for seeds, the bootstrap for problems. All seeded."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from jaxtyping import Float
from scipy.stats import t as student_t

Numbers = np.ndarray | Sequence

_CHUNK = 1 << 22  # resampled indices in memory at a time


@dataclass(frozen=True)
class Interval:
    """An estimate and its two-sided interval, in the unit of the estimate."""

    estimate: float
    low: float
    high: float
    confidence: float

    def __str__(self) -> str:
        return f"{self.estimate:.3f} [{self.low:.3f}, {self.high:.3f}]"


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie strictly between 0 and 1, got {confidence}")


def _finite_vector(values: Numbers, name: str, at_least: int) -> Float[np.ndarray, " n"]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) < at_least:
        raise ValueError(f"{name}: a flat list of at least {at_least}, got shape {array.shape}")
    bad = np.flatnonzero(~np.isfinite(array)).tolist()
    if bad:
        raise ValueError(f"{name}: NaN or infinite at {bad}")
    return array


def wilson_interval(successes: int, trials: int, *, confidence: float = 0.95) -> Interval:
    """Wilson's score interval for a proportion of independent trials (Wilson, 1927).

    Unlike estimate ± z * standard error, it stays inside [0, 1] and has a width for 0 and for `trials`
    successes: 28 of 30 gives 0.933 [0.787, 0.982].

    Args:
        successes: number of successes.
        trials: number of trials, at least 1.
        confidence: of the interval.

    Raises:
        ValueError: not 0 <= successes <= trials, or trials < 1.
    """
    _check_confidence(confidence)
    if not (trials >= 1 and 0 <= successes <= trials):
        raise ValueError(f"successes: 0 <= {successes} <= trials = {trials}, trials >= 1 is needed")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    p, z2n = successes / trials, z * z / trials
    center = (p + z2n / 2) / (1 + z2n)
    half = z / (1 + z2n) * (p * (1 - p) / trials + z2n / (4 * trials)) ** 0.5
    low = 0.0 if successes == 0 else center - half  # exact at the ends, without rounding errors
    high = 1.0 if successes == trials else center + half
    return Interval(p, low, high, confidence)


def student_interval(values: Numbers, *, confidence: float = 0.95) -> Interval:
    """mean ± t * s / sqrt(n) of a few independent runs, such as training seeds (Student, 1908).

    For 3 seeds t is 4.30, not 1.96. Raises ValueError for fewer than 2 values.
    """
    _check_confidence(confidence)
    array = _finite_vector(values, "values", at_least=2)
    half = student_t.ppf((1 + confidence) / 2, len(array) - 1) * array.std(ddof=1) / len(array) ** 0.5
    mean = float(array.mean())
    return Interval(mean, mean - float(half), mean + float(half), confidence)


def welch_interval(first: Numbers, second: Numbers, *, confidence: float = 0.95) -> Interval:
    """mean(first) - mean(second) of two independent samples, with Welch's interval (Welch, 1947).

    For runs that share a seed, compare it with `student_interval` of the paired differences. Pairing narrows
    the interval only if the runs of one seed are correlated; if not, it only halves the degrees of freedom.

    Raises:
        ValueError: fewer than 2 values in either, or a value is not finite.
    """
    _check_confidence(confidence)
    a, b = _finite_vector(first, "first", at_least=2), _finite_vector(second, "second", at_least=2)
    difference = float(a.mean() - b.mean())
    va, vb = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
    if va + vb == 0:
        return Interval(difference, difference, difference, confidence)
    freedom = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))
    half = float(student_t.ppf((1 + confidence) / 2, freedom) * (va + vb) ** 0.5)
    return Interval(difference, difference - half, difference + half, confidence)


def bootstrap_interval(
    values: Numbers, *, rng: np.random.Generator, confidence: float = 0.95, resamples: int = 10_000
) -> Interval:
    """Percentile bootstrap of the mean over problems (Efron, 1979).

    Problems are resampled, because the question is what another test set would give, and because the samples
    of a problem are not independent.

    Args:
        values: one number per problem, such as its pass@k.
        rng: source of randomness.
        confidence: of the interval.
        resamples: number of bootstrap samples.

    Raises:
        ValueError: `values` is empty or not finite.
    """
    _check_confidence(confidence)
    array = _finite_vector(values, "values", at_least=1)
    means = np.empty(resamples)
    step = max(1, _CHUNK // len(array))
    for i in range(0, resamples, step):
        picks = rng.integers(len(array), size=(min(step, resamples - i), len(array)))
        means[i : i + step] = array[picks].mean(axis=1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(array.mean()), float(low), float(high), confidence)


def paired_difference(
    first: Numbers,
    second: Numbers,
    *,
    rng: np.random.Generator,
    confidence: float = 0.95,
    resamples: int = 10_000,
) -> Interval:
    """Bootstrap interval of mean(first - second) over the same problems in the same order.

    Pairing removes the variance due to the difficulty of problems, so it can detect differences that two
    separate intervals do not show.

    Args:
        first: one number per problem.
        second: one number per problem.
        rng: source of randomness.
        confidence: of the interval.
        resamples: number of bootstrap samples.

    Raises:
        ValueError: the lengths differ.
    """
    a = _finite_vector(first, "first", at_least=1)
    b = _finite_vector(second, "second", at_least=1)
    if a.shape != b.shape:
        raise ValueError(f"second: one value per value of first, got {len(b)} for {len(a)}")
    return bootstrap_interval(a - b, rng=rng, confidence=confidence, resamples=resamples)


def bootstrap_means(
    values: Float[np.ndarray, "units K"], *, rng: np.random.Generator, resamples: int = 2000
) -> Float[np.ndarray, "resamples K"]:
    """Column means of resampled units (rows), for the bootstrap of a statistic of several means.

    A resample is sampled as the number of times each unit occurs in it, so that all resamples are one matrix
    product.

    Args:
        values: one row per unit.
        rng: source of randomness.
        resamples: number of bootstrap samples.

    Raises:
        ValueError: there are no units.
    """
    units = len(values)
    if units == 0:
        raise ValueError("values: at least one unit is needed")
    means = np.empty((resamples, values.shape[1]))
    step = max(1, _CHUNK // units)
    for i in range(0, resamples, step):
        counts = rng.multinomial(units, np.full(units, 1 / units), size=min(step, resamples - i))
        means[i : i + step] = counts @ values / units
    return means
