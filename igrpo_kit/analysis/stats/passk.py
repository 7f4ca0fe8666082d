"""pass@k without bias: the chance that k of the n samples drawn hold a right one (https://arxiv.org/abs/2107.03374).

Beside it what K samples per problem say of other ways to use N of them: Pass@1 averaged over runs
(Section 4.1) and the majority vote. Every interval is over problems unless it says otherwise.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from igrpo_kit.analysis.stats.intervals import Interval, bootstrap_interval, bootstrap_means, student_interval
from igrpo_kit.core.passk import pass_at_k

Numbers = int | np.integer | np.ndarray | Sequence


@dataclass(frozen=True)
class PassCurve:
    """Pass@N over problems for many N, with the noise of the two ways of measuring it."""

    n: Int[np.ndarray, " K"]
    estimate: Float[np.ndarray, " K"]
    """unbiased, mean over problems"""
    low: Float[np.ndarray, " K"]
    high: Float[np.ndarray, " K"]
    """percentile bootstrap over problems"""
    redraw_std: Float[np.ndarray, " K"]
    """standard deviation of "did one of N succeed?" asked once of these problems; NaN for N > K / 2"""
    single_draw_std: Float[np.ndarray, " K"]
    """the same with the problems drawn anew as well: sqrt(m (1 - m) / P), a share of P problems"""


def pass_at_k_curve(
    num_samples: Numbers,
    num_correct: Numbers,
    ks: Sequence[int] | None = None,
    *,
    rng: np.random.Generator,
    resamples: int = 2000,
    confidence: float = 0.95,
) -> PassCurve:
    """Pass@N for N in `ks`, by default every N up to the fewest samples a problem has (Fig. S.1's axes).

    A point of Fig. S.1 is a share of 30 problems, one draw of N samples for each (26 to 29 of 30). Drawn
    again for the same problems it would vary by `redraw_std`: with m_N = 1 - (1 - p)^N its variance is the
    mean of m_N (1 - m_N) = m_2N - m_N over P; pass@2N - pass@N is unbiased for that, hence the limit K / 2.

    Raises ValueError as `pass_at_k` does.
    """
    n, c = np.broadcast_arrays(np.atleast_1d(num_samples), np.atleast_1d(num_correct))
    ks = range(1, int(n.min()) + 1) if ks is None else ks
    per_problem = np.stack([pass_at_k(n, c, k) for k in ks], axis=1)
    means = bootstrap_means(per_problem, rng=rng, resamples=resamples)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
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


@dataclass(frozen=True)
class RunAverage:
    """Pass@1 as Section 4.1 reports it, the mean of K runs over the problems, and how sure it is."""

    runs: Float[np.ndarray, " K"]
    """share of right answers in each run"""
    over_runs: Interval
    """Student's over the runs: how well these problems' Pass@1 is known"""
    over_problems: Interval
    """bootstrap over problems: how well that of other problems like these is known"""


def pass_at_1_over_runs(
    right: Bool[np.ndarray, "P K"], *, rng: np.random.Generator, confidence: float = 0.95
) -> RunAverage:
    """Average the K runs (64 for AIME, 8 for the others in Section 4.1); `right` is problems by runs.

    More runs narrow the first interval towards 0, and leave the second, which is that of 30 problems.
    Raises ValueError for fewer than 2 runs.
    """
    runs = right.mean(axis=0)
    per_problem = right.mean(axis=1)
    return RunAverage(
        runs,
        student_interval(runs, confidence=confidence),
        bootstrap_interval(per_problem, rng=rng, confidence=confidence),
    )


@dataclass(frozen=True)
class MajorityCurve:
    """Share of problems whose majority answer of N samples is right, with a bootstrap over problems."""

    n: Int[np.ndarray, " K"]
    estimate: Float[np.ndarray, " K"]
    low: Float[np.ndarray, " K"]
    high: Float[np.ndarray, " K"]


def majority_at_k(
    answers: Sequence[str | None],
    right: Sequence[bool] | Bool[np.ndarray, " K"],
    ks: Sequence[int],
    *,
    rng: np.random.Generator,
    draws: int = 200,
) -> Float[np.ndarray, " ks"]:
    """For one problem: the chance that the most frequent answer among N of its K samples is right.

    An answer is its text: two spellings of one number are two candidates. None, a sample without an answer,
    has no vote, and where nobody votes the result is wrong. **Ties** are broken at random among the leaders:
    a tie counts as the share of right ones among them. The mean over subsets of N is estimated from `draws`
    random orders of the samples, N = K and N = 1 exactly.

    Raises ValueError where answers and right differ in length, or a k is not in 1..K.
    """
    K = len(answers)
    if len(right) != K:
        raise ValueError(f"right: one entry per answer, {K}, got {len(right)}")
    if min(ks) < 1 or max(ks) > K:
        raise ValueError(f"ks: from 1 to {K} samples, got {min(ks)} to {max(ks)}")
    candidates = {answer: i for i, answer in enumerate(dict.fromkeys(a for a in answers if a is not None))}
    R = len(candidates)
    votes = np.array([R if a is None else candidates[a] for a in answers])
    given = np.bincount(votes, minlength=R + 1)
    # One spelling has one grade, unless a grader timed out on some of its copies.
    worth = np.bincount(votes, weights=np.asarray(right, dtype=float), minlength=R + 1)[:R] / given[:R]
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
    right: Bool[np.ndarray, "P K"],
    ks: Sequence[int],
    *,
    rng: np.random.Generator,
    draws: int = 200,
    resamples: int = 2000,
    confidence: float = 0.95,
) -> MajorityCurve:
    """`majority_at_k` of each problem, averaged, with a bootstrap interval over problems.

    Raises ValueError as `majority_at_k` does.
    """
    rows = zip(answers, right, strict=True)
    per_problem = np.stack([majority_at_k(a, r, ks, rng=rng, draws=draws) for a, r in rows])
    means = bootstrap_means(per_problem, rng=rng, resamples=resamples)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return MajorityCurve(np.array(ks), per_problem.mean(axis=0), low, high)
