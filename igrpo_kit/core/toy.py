"""The binary-reward model of iGRPO: closed forms, and the simulations that check them.

Here a prompt is nothing but its success probability p = Pr[R(o) = 1] (Proposition 3.1). That is enough
to see what Stage 1 buys (a better draft), what it costs (a smaller group), and when a group has nothing
to teach (all its rewards agree, so every advantage is 0).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

Numbers = int | float | np.number | np.ndarray | Sequence

_CHUNK = 1 << 22  # uniform draws held at once: 32 MB whatever the number of trials


def _probability(p: Numbers, name: str) -> np.ndarray:
    array = np.asarray(p, dtype=np.float64)
    if not np.all((array >= 0) & (array <= 1)):  # NaN fails both comparisons
        raise ValueError(f"{name} must lie in [0, 1], got {p!r}")
    return array


def _count(n: Numbers, name: str) -> np.ndarray:
    array = np.asarray(n)
    if not np.issubdtype(array.dtype, np.integer) or not np.all(array >= 1):
        raise ValueError(f"{name} must be a whole number >= 1, got {n!r}")
    return array


def best_of_n_probability(p: Numbers, n: Numbers) -> np.ndarray | np.float64:
    """Probability that the best of n independent drafts is right: 1 - (1 - p)^n (Proposition 3.1).

    `p` and `n` broadcast against each other. p is one prompt's success probability; put a mean over
    prompts in its place and the answer is too high (Jensen: the formula is concave in p).

    Raises ValueError where p is not in [0, 1] or n is not a whole number >= 1.
    """
    p, n = _probability(p, "p"), _count(n, "n")
    with np.errstate(divide="ignore"):  # p = 1: log 0 = -inf, and the answer is exactly 1
        return -np.expm1(n * np.log1p(-p))  # keeps its digits for p = 1e-12, where 1 - (1-p)^n has none


def dead_group_probability(p: Numbers, group_size: Numbers) -> np.ndarray | np.float64:
    """Probability that all rewards of a group agree: p^G + (1 - p)^G. Then every advantage is 0 (Eq. 4).

    `p` and `group_size` broadcast. A group of one is always dead.

    Raises ValueError where p is not in [0, 1] or group_size is not a whole number >= 1.
    """
    p, group_size = _probability(p, "p"), _count(group_size, "group_size")
    return np.minimum(p**group_size + (1 - p) ** group_size, 1.0)  # p + (1 - p) may round above 1


def simulate_best_of_n(p: float, n: int, trials: int, rng: np.random.Generator) -> float:
    """Share of `trials` in which at least one of n drafts is right. Draws every draft; uses no formula.

    Its standard error is sqrt(x (1 - x) / trials) with x = 1 - (1 - p)^n.

    Raises ValueError where p is not in [0, 1], or n or trials is not a whole number >= 1.
    """
    _probability(p, "p"), _count(n, "n"), _count(trials, "trials")
    step, hits = max(1, _CHUNK // n), 0
    for start in range(0, trials, step):
        drafts_right = rng.random((min(step, trials - start), n)) < p
        hits += int(drafts_right.any(axis=1).sum())
    return hits / trials


@dataclass(frozen=True)
class ToyResult:
    """What `simulate_igrpo` saw, as shares of its prompts; the budget is R = N + G rollouts each."""

    draft_reward: float
    """mean reward of a single draft: the policy's mean success probability"""
    best_draft_reward: float
    """mean reward of the best of N drafts"""
    refinement_reward: float
    """mean reward of a refinement"""
    mixed_grpo_full: float
    """share of GRPO's groups of R = N + G that hold a right and a wrong completion"""
    mixed_grpo_small: float
    """the same for GRPO with groups of G: iGRPO's gradient budget without its drafts"""
    mixed_igrpo: float
    """the same for iGRPO's groups of G refinements"""


def _mixed(p: Float[np.ndarray, " P"], group_size: int, rng: np.random.Generator) -> float:
    right = rng.binomial(group_size, p)
    return float(((right > 0) & (right < group_size)).mean())


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
    """One step of iGRPO and of two GRPO baselines on prompts whose difficulties differ.

    Each prompt's p is drawn from a Beta with mean `p_mean` and `p_concentration` = alpha + beta (large:
    all prompts alike; small: most are hopeless or trivial). A refinement of a right draft is right with
    probability `p_keep`; one of a wrong draft with `p_fix`, or, if `p_fix` is None, with the prompt's own
    p: the draft then carries no information beyond the verifier's bit.

    Raises ValueError naming the argument: p_mean not strictly inside (0, 1), p_concentration <= 0, a
    probability outside [0, 1], or a count below 1.
    """
    if not 0 < p_mean < 1:
        raise ValueError(f"p_mean must lie strictly between 0 and 1, got {p_mean}")
    if not (np.isfinite(p_concentration) and p_concentration > 0):
        raise ValueError(f"p_concentration must be positive and finite, got {p_concentration}")
    _probability(p_keep, "p_keep"), _count(prompts, "prompts")
    _count(num_drafts, "num_drafts"), _count(num_refinements, "num_refinements")
    if p_fix is not None:
        _probability(p_fix, "p_fix")

    p = rng.beta(p_mean * p_concentration, (1 - p_mean) * p_concentration, size=prompts)
    right_drafts = rng.binomial(num_drafts, p)
    best_is_right = right_drafts > 0
    p_refine = np.where(best_is_right, p_keep, p if p_fix is None else p_fix)
    right = rng.binomial(num_refinements, p_refine)
    return ToyResult(
        draft_reward=float(right_drafts.mean() / num_drafts),
        best_draft_reward=float(best_is_right.mean()),
        refinement_reward=float(right.mean() / num_refinements),
        mixed_grpo_full=_mixed(p, num_drafts + num_refinements, rng),
        mixed_grpo_small=_mixed(p, num_refinements, rng),
        mixed_igrpo=float(((right > 0) & (right < num_refinements)).mean()),
    )
