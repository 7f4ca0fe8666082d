"""Curves of unbiased pass@k: the probability that at least one of k samples is correct.

The estimator: https://arxiv.org/abs/2107.03374. From the same K samples per problem: Pass@1 averaged over
runs (Section 4.1 of https://arxiv.org/abs/2602.09000), and the majority vote. Intervals are over problems
unless stated otherwise.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from igrpo_kit.analysis.stats.intervals import Interval, bootstrap_interval, bootstrap_means, student_interval
from igrpo_kit.core.passk import pass_at_k
from igrpo_kit.core.toy import Numbers


@dataclass(frozen=True)
class PassCurve:
    """Pass@N over problems for many N, with the noise of two ways of measuring it."""

    n: Int[np.ndarray, " K"]
    estimate: Float[np.ndarray, " K"]
    """unbiased, mean over problems"""
    low: Float[np.ndarray, " K"]
    high: Float[np.ndarray, " K"]
    """upper end of the interval over problems, see `pass_at_k_curve`"""
    redraw_std: Float[np.ndarray, " K"]
    """standard deviation of the fraction of problems solved by one set of N samples; NaN for N > K / 2"""
    single_draw_std: Float[np.ndarray, " K"]
    """the same if the problems are also resampled: sqrt(m (1 - m) / P) for a fraction m of P problems"""


def pass_at_k_curve(
    num_samples: Numbers,
    num_correct: Numbers,
    ks: Sequence[int] | None = None,
    *,
    rng: np.random.Generator,
    resamples: int = 2000,
    confidence: float = 0.95,
) -> PassCurve:
    """Pass@N for N in `ks`, by default every N up to the fewest samples of a problem (the axes of Fig. S.1).

    A point of Fig. S.1 is a fraction of 30 problems (26 to 29 of 30), with one set of N samples each. If the
    same problems were sampled again, it would vary by `redraw_std`. With m_N = 1 - (1 - p)^N, its variance is
    the mean of m_N (1 - m_N) = m_2N - m_N, divided by P. Pass@2N - pass@N is an unbiased estimate of this
    mean, hence the limit K / 2.

    The interval is a percentile bootstrap over the problems and four more, two never solved and two always
    ("plus four", Agresti and Coull 1998). Without these it has no width where every problem is solved,
    although another problem might not be.

    Args:
        num_samples: samples per problem, K.
        num_correct: correct samples per problem.
        ks: the values of N.
        rng: source of randomness.
        resamples: number of bootstrap samples.
        confidence: of the interval.

    Raises:
        ValueError: as `pass_at_k`.
    """
    n, c = np.broadcast_arrays(np.atleast_1d(num_samples), np.atleast_1d(num_correct))
    ks = range(1, int(n.min()) + 1) if ks is None else ks
    per_problem = np.stack([pass_at_k(n, c, k) for k in ks], axis=1)
    low, high = _band(per_problem, rng=rng, resamples=resamples, confidence=confidence)
    estimate = per_problem.mean(axis=0)
    variance = [
        np.mean(pass_at_k(n, c, 2 * k)) - m if 2 * k <= n.min() else np.nan
        for k, m in zip(ks, estimate, strict=True)
    ]
    return PassCurve(
        n=np.array(ks),
        estimate=estimate,
        low=low,
        high=high,
        redraw_std=np.sqrt(np.maximum(variance, 0.0) / len(n)),
        single_draw_std=np.sqrt(estimate * (1 - estimate) / len(n)),
    )


def _band(
    per_problem: Float[np.ndarray, "P K"], *, rng: np.random.Generator, resamples: int, confidence: float
) -> Float[np.ndarray, "2 K"]:
    """Lower and upper ends of the interval of the column means; see `pass_at_k_curve`."""
    ends = np.repeat([[0.0], [0.0], [1.0], [1.0]], per_problem.shape[1], axis=1)
    means = bootstrap_means(np.concatenate([per_problem, ends]), rng=rng, resamples=resamples)
    return np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)


@dataclass(frozen=True)
class RunAverage:
    """Pass@1 as reported in Section 4.1, the mean of K runs over the problems, with two intervals."""

    runs: Float[np.ndarray, " K"]
    """fraction of correct answers in each run"""
    over_runs: Interval
    """Student's interval over the runs, for Pass@1 of these problems"""
    over_problems: Interval
    """bootstrap over problems, for Pass@1 of other problems like these"""


def pass_at_1_over_runs(
    correct: Bool[np.ndarray, "P K"], *, rng: np.random.Generator, confidence: float = 0.95
) -> RunAverage:
    """Average over K runs (in Section 4.1, 64 for AIME and 8 for the others).

    More runs narrow the first interval toward 0, but not the second, which depends on the number of
    problems.

    Args:
        correct: whether the answer is correct, problems by runs.
        rng: source of randomness.
        confidence: of both intervals.

    Raises:
        ValueError: there are fewer than 2 runs.
    """
    runs = correct.mean(axis=0)
    per_problem = correct.mean(axis=1)
    return RunAverage(
        runs,
        student_interval(runs, confidence=confidence),
        bootstrap_interval(per_problem, rng=rng, confidence=confidence),
    )


@dataclass(frozen=True)
class MajorityCurve:
    """Fraction of problems whose majority answer of N samples is correct, with a bootstrap over problems."""

    n: Int[np.ndarray, " K"]
    estimate: Float[np.ndarray, " K"]
    low: Float[np.ndarray, " K"]
    high: Float[np.ndarray, " K"]


def majority_at_k(
    answers: Sequence[str | None],
    correct: Sequence[bool] | Bool[np.ndarray, " K"],
    ks: Sequence[int],
    *,
    rng: np.random.Generator,
    draws: int = 200,
) -> Float[np.ndarray, " ks"]:
    """For one problem: the probability that the most frequent answer among N of its K samples is correct.

    Answers are compared as text, so two spellings of a number are two candidates. A sample without an answer
    (None) has no vote; without any votes, the result is incorrect. **Ties** are broken at random, so a tie
    counts as the fraction of correct answers among the tied ones.

    Args:
        answers: of the K samples.
        correct: whether each answer is correct.
        ks: the values of N.
        rng: source of randomness.
        draws: random orders of the samples from which the mean over subsets is estimated; exact for N = 1 and
            K.

    Returns:
        One probability for each N.

    Raises:
        ValueError: `answers` and `correct` differ in length, or an N is not in 1..K.
    """
    K = len(answers)
    if len(correct) != K:
        raise ValueError(f"correct: one entry per answer, {K}, got {len(correct)}")
    if min(ks) < 1 or max(ks) > K:
        raise ValueError(f"ks: from 1 to {K} samples, got {min(ks)} to {max(ks)}")
    candidates = {answer: i for i, answer in enumerate(dict.fromkeys(a for a in answers if a is not None))}
    R = len(candidates)
    votes = np.array([R if a is None else candidates[a] for a in answers])
    given = np.bincount(votes, minlength=R + 1)
    # A spelling has one grade, unless the grader timed out on some of its copies.
    worth = np.bincount(votes, weights=np.asarray(correct, dtype=float), minlength=R + 1)[:R] / given[:R]
    orders = rng.permuted(np.tile(votes, (draws, 1)), axis=1)
    rows = np.arange(draws)[:, None] * (R + 1)
    results = []
    for k in ks:
        if k == 1:
            results.append(float(given[:R] @ worth) / K)
            continue
        picked = votes[None] if k == K else orders[:, :k]
        counts = np.bincount((picked + rows[: len(picked)]).ravel(), minlength=len(picked) * (R + 1))
        counts = counts.reshape(-1, R + 1)[:, :R]
        leaders = (counts == counts.max(axis=1, keepdims=True, initial=1)).astype(float)
        results.append(float(np.mean(leaders @ worth / np.maximum(leaders.sum(axis=1), 1))))
    return np.array(results)


def majority_curve(
    answers: Sequence[Sequence[str | None]],
    correct: Bool[np.ndarray, "P K"],
    ks: Sequence[int],
    *,
    rng: np.random.Generator,
    draws: int = 200,
    resamples: int = 2000,
    confidence: float = 0.95,
) -> MajorityCurve:
    """`majority_at_k` averaged over problems, with a bootstrap interval over problems.

    Args:
        answers: of the K samples, for each problem.
        correct: whether each answer is correct.
        ks: the values of N.
        rng: source of randomness.
        draws: as in `majority_at_k`.
        resamples: number of bootstrap samples.
        confidence: of the interval.

    Raises:
        ValueError: as `majority_at_k`.
    """
    rows = zip(answers, correct, strict=True)
    per_problem = np.stack([majority_at_k(a, r, ks, rng=rng, draws=draws) for a, r in rows])
    low, high = _band(per_problem, rng=rng, resamples=resamples, confidence=confidence)
    return MajorityCurve(np.array(ks), per_problem.mean(axis=0), low, high)
