"""The binary-reward model of iGRPO: closed forms, and the simulations that check them.

Equations: https://arxiv.org/abs/2602.09000. A prompt is reduced to its success probability p = Pr[R(o) = 1]
(Proposition 3.1). This is enough to show what Stage 1 gains (a better draft), what it costs (a smaller
group), and when a group contributes no gradient (all its rewards are equal, so every advantage is 0).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

Numbers = int | float | np.number | np.ndarray | Sequence

_CHUNK = 1 << 22  # uniform numbers held at a time: 32 MB for any number of trials


def as_probability(p: Numbers, name: str) -> np.ndarray:
    """p as float64. Raises ValueError, naming the argument, where one is not in [0, 1]."""
    array = np.asarray(p, dtype=np.float64)
    if not np.all((array >= 0) & (array <= 1)):  # NaN fails both comparisons
        raise ValueError(f"{name} must lie in [0, 1], got {p!r}")
    return array


def as_count(n: Numbers, name: str) -> np.ndarray:
    """n as an array. Raises ValueError, naming the argument, where one is not a whole number >= 1."""
    array = np.asarray(n)
    if not np.issubdtype(array.dtype, np.integer) or not np.all(array >= 1):
        raise ValueError(f"{name} must be a whole number >= 1, got {n!r}")
    return array


def best_of_n_probability(p: Numbers, n: Numbers) -> np.ndarray | np.float64:
    """Probability that the best of n independent drafts is correct: 1 - (1 - p)^n (Proposition 3.1).

    Args:
        p: success probability of one prompt. A mean over prompts gives too high a result, because the formula
            is concave in p (Jensen's inequality).
        n: number of drafts; broadcasts with `p`.

    Raises:
        ValueError: p is not in [0, 1], or n is not a whole number >= 1.
    """
    p, n = as_probability(p, "p"), as_count(n, "n")
    with np.errstate(divide="ignore"):  # p = 1: log 0 = -inf, and the result is exactly 1
        return -np.expm1(n * np.log1p(-p))  # accurate for p = 1e-12, where 1 - (1-p)^n is not


def dead_group_probability(p: Numbers, group_size: Numbers) -> np.ndarray | np.float64:
    """Probability that all rewards of a group are equal: p^G + (1 - p)^G. Every advantage is then 0 (Eq. 4).

    `p` and `group_size` broadcast. A group of one is always dead.

    Raises:
        ValueError: p is not in [0, 1], or group_size is not a whole number >= 1.
    """
    p, group_size = as_probability(p, "p"), as_count(group_size, "group_size")
    return np.minimum(p**group_size + (1 - p) ** group_size, 1.0)  # p + (1 - p) may round above 1


def simulate_best_of_n(p: float, n: int, trials: int, rng: np.random.Generator) -> float:
    """Fraction of `trials` in which at least one of n drafts is correct.

    It samples every draft and uses no formula. Its standard error is sqrt(x (1 - x) / trials) with
    x = 1 - (1 - p)^n.

    Args:
        p: success probability of a draft.
        n: drafts per trial.
        trials: number of trials.
        rng: source of the random numbers.

    Raises:
        ValueError: p is not in [0, 1], or n or trials is not a whole number >= 1.
    """
    as_probability(p, "p"), as_count(n, "n"), as_count(trials, "trials")
    step, hits = max(1, _CHUNK // n), 0
    for start in range(0, trials, step):
        drafts_correct = rng.random((min(step, trials - start), n)) < p
        hits += int(drafts_correct.any(axis=1).sum())
    return hits / trials


@dataclass(frozen=True)
class ToyResult:
    """Means over the prompts of `simulate_igrpo`; the budget is R = N + G rollouts per prompt."""

    draft_reward: float
    """mean reward of a single draft: the policy's mean success probability"""
    best_draft_reward: float
    """mean reward of the best of N drafts"""
    refinement_reward: float
    """mean reward of a refinement"""
    mixed_grpo_full: float
    """fraction of GRPO's groups of R = N + G with both correct and incorrect completions"""
    mixed_grpo_small: float
    """the same for GRPO with groups of G: iGRPO's gradient budget without its drafts"""
    mixed_igrpo: float
    """the same for iGRPO's groups of G refinements"""


def _mixed(p: Float[np.ndarray, " P"], group_size: int, rng: np.random.Generator) -> float:
    correct = rng.binomial(group_size, p)
    return float(((correct > 0) & (correct < group_size)).mean())


def simulate_igrpo(
    *,
    p_mean: float,
    p_concentration: float,
    p_fix: float | None,
    p_keep: float,
    num_drafts: int,
    num_refinements: int,
    prompts: int,
    rng: np.random.Generator,
) -> ToyResult:
    """Simulate one step of iGRPO and of two GRPO baselines on prompts of different difficulty.

    The success probability p of each prompt is sampled from a Beta distribution.

    Args:
        p_mean: mean of the Beta distribution.
        p_concentration: its alpha + beta. Large: all prompts are similar; small: most are hopeless or easy.
        p_fix: probability that a refinement of an incorrect draft is correct. None: the prompt's own p, so
            that the draft carries no information beyond its verdict.
        p_keep: probability that a refinement of a correct draft is correct.
        num_drafts, num_refinements: N and G.
        prompts: number of prompts.
        rng: source of the random numbers.

    Raises:
        ValueError: p_mean is not strictly inside (0, 1), p_concentration <= 0, a probability is outside
            [0, 1], or a count is below 1 (the message names the argument).
    """
    if not 0 < p_mean < 1:
        raise ValueError(f"p_mean must lie strictly between 0 and 1, got {p_mean}")
    if not (np.isfinite(p_concentration) and p_concentration > 0):
        raise ValueError(f"p_concentration must be positive and finite, got {p_concentration}")
    as_probability(p_keep, "p_keep"), as_count(prompts, "prompts")
    as_count(num_drafts, "num_drafts"), as_count(num_refinements, "num_refinements")
    if p_fix is not None:
        as_probability(p_fix, "p_fix")

    p = rng.beta(p_mean * p_concentration, (1 - p_mean) * p_concentration, size=prompts)
    correct_drafts = rng.binomial(num_drafts, p)
    best_is_correct = correct_drafts > 0
    p_refine = np.where(best_is_correct, p_keep, p if p_fix is None else p_fix)
    correct = rng.binomial(num_refinements, p_refine)
    return ToyResult(
        draft_reward=float(correct_drafts.mean() / num_drafts),
        best_draft_reward=float(best_is_correct.mean()),
        refinement_reward=float(correct.mean() / num_refinements),
        mixed_grpo_full=_mixed(p, num_drafts + num_refinements, rng),
        mixed_grpo_small=_mixed(p, num_refinements, rng),
        mixed_igrpo=float(((correct > 0) & (correct < num_refinements)).mean()),
    )
