"""How long a method waits for its first live group: closed forms, for prompts whose p differs.

A group whose rewards are all equal is dead (Eq. 4), so a method cannot learn before its first live group.
While right answers are rare, GRPO with R rollouts per prompt waits about 1 / (P R p) steps, and Stage 2 of
iGRPO about 1 / (P G r) steps, with r the repair rate: the probability that a refinement of the policy's own
wrong draft is right. Equations: https://arxiv.org/abs/2602.09000.

Left out: everything that happens before the first live group (nothing is learned then, so p and r do not
move) and after it. One live group is not yet a take-off.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.special import expit, logit, roots_hermitenorm

from igrpo_kit.core.toy import Numbers, as_count, as_probability, best_of_n_probability


def live_probability(p: Numbers, group_size: Numbers) -> np.ndarray | np.float64:
    """1 - p^G - (1 - p)^G: the probability that the rewards of a group are not all equal (Eq. 4).

    Accurate for p = 1e-12, unlike 1 - `dead_group_probability`. `p` and `group_size` broadcast.

    Raises:
        ValueError: p is not in [0, 1], or group_size is not a whole number >= 1.
    """
    p, group_size = as_probability(p, "p"), as_count(group_size, "group_size")
    rare = np.minimum(p, 1 - p)  # the formula is symmetric, and is evaluated where nothing cancels
    return np.maximum(best_of_n_probability(rare, group_size) - rare**group_size, 0.0)


@dataclass(frozen=True)
class BetaPrompts:
    """Prompts whose p follows a Beta distribution with alpha + beta = concentration.

    A large concentration makes them alike, a small one hopeless or easy.

    Raises:
        ValueError: mean is not strictly between 0 and 1, or concentration is not positive and finite.
    """

    mean: float
    concentration: float

    def __post_init__(self) -> None:
        _check_mean(self.mean)
        if not 0 < self.concentration < np.inf:
            raise ValueError(f"concentration must be positive and finite, got {self.concentration}")

    def best_of_n(self, n: int) -> float:
        """E[1 - (1 - p)^n] = 1 - prod_{i<n} (beta + i) / (alpha + beta + i)."""
        return _beta_best(self.mean, self.concentration, n)

    def live(self, group_size: int) -> float:
        """E[1 - p^G - (1 - p)^G], the share of live groups, by the same products."""
        rare = min(self.mean, 1 - self.mean)  # symmetric in p and 1 - p: evaluated where less cancels
        others = np.arange(1, int(as_count(group_size, "group_size")))
        all_right = rare * np.prod((rare * self.concentration + others) / (self.concentration + others))
        return max(0.0, _beta_best(rare, self.concentration, group_size) - float(all_right))


@dataclass(frozen=True)
class LogitNormalPrompts:
    """Prompts whose logit p is normal with standard deviation `sd`, placed so that the mean of p is `mean`.

    Expectations are by Gauss-Hermite quadrature over 64 nodes. sd = 0: all prompts have the same p.

    Raises:
        ValueError: mean is not strictly between 0 and 1, or sd is negative or not finite.
    """

    mean: float
    sd: float = 0.0

    def __post_init__(self) -> None:
        _check_mean(self.mean)
        if not 0 <= self.sd < np.inf:
            raise ValueError(f"sd must be finite and not negative, got {self.sd}")

    def best_of_n(self, n: int) -> float:
        """E[1 - (1 - p)^n], Proposition 3.1 at each node."""
        p, weights = self._nodes()
        return float(weights @ best_of_n_probability(p, n))

    def live(self, group_size: int) -> float:
        """E[1 - p^G - (1 - p)^G], `live_probability` at each node."""
        p, weights = self._nodes()
        return float(weights @ live_probability(p, group_size))

    def _nodes(self) -> tuple[np.ndarray, np.ndarray]:
        x, weights = roots_hermitenorm(64)
        weights = weights / weights.sum()
        offsets = self.sd * x
        return expit(located(np.array(self.mean), offsets, weights) + offsets), weights


Prompts = BetaPrompts | LogitNormalPrompts


def _beta_best(mean: float, concentration: float, n: int) -> float:
    alpha = mean * concentration
    return float(-np.expm1(np.log1p(-alpha / (concentration + np.arange(as_count(n, "n")))).sum()))


def located(
    mean: Float[np.ndarray, "*runs"], offsets: Float[np.ndarray, "*runs K"], weights: Float[np.ndarray, " K"]
) -> Float[np.ndarray, "*runs 1"]:
    """The logit x at which the weighted mean of sigmoid(x + offsets) is `mean`, by bisection."""
    low, high = (
        logit(mean)[..., None] - edge
        for edge in (offsets.max(-1, keepdims=True), offsets.min(-1, keepdims=True))
    )
    for _ in range(60):
        middle = (low + high) / 2
        below = expit(middle + offsets) @ weights < mean
        low, high = np.where(below[..., None], middle, low), np.where(below[..., None], high, middle)
    return (low + high) / 2


@dataclass(frozen=True)
class WaitingTime:
    """Steps until something happens for the first time, at a constant chance per step: geometric, from 1.

    Raises ValueError where chance is not in [0, 1].
    """

    chance: float
    """per step"""

    def __post_init__(self) -> None:
        as_probability(self.chance, "chance")

    @property
    def mean(self) -> float:
        """Expected steps, 1 / chance; infinite where the chance is 0."""
        return 1 / self.chance if self.chance else np.inf

    def reached_by(self, steps: Numbers) -> np.ndarray | np.float64:
        """Probability that it has happened within `steps`: 1 - (1 - chance)^steps."""
        return best_of_n_probability(self.chance, steps)

    def quantile(self, share: float) -> float:
        """The first step by which it has happened in at least this share of runs; infinite at chance 0.

        Raises ValueError where share is not strictly between 0 and 1.
        """
        if not 0 < share < 1:
            raise ValueError(f"share must lie strictly between 0 and 1, got {share}")
        if self.chance in (0.0, 1.0):
            return 1.0 if self.chance else np.inf
        steps = np.log1p(-share) / np.log1p(-self.chance)
        return float(max(1, np.ceil(steps * (1 - 1e-12))))  # a rounding error must not cost a step


def grpo_wait(prompts: Prompts, group_size: int, prompts_per_step: int) -> WaitingTime:
    """Steps until GRPO's first live group, with P prompts per step and `group_size` rollouts of each.

    The chance per step is 1 - (1 - E[live])^P. For small p the mean is about 1 / (P R p).

    Raises:
        ValueError: group_size or prompts_per_step is not a whole number >= 1.
    """
    return _first_of(prompts.live(group_size), prompts_per_step)


def refinement_wait(
    prompts: Prompts,
    *,
    repair: float,
    keep: float,
    num_drafts: int,
    num_refinements: int,
    prompts_per_step: int,
) -> WaitingTime:
    """Steps until the first live group of Stage 2: G refinements of the best of N drafts, for P prompts.

    A group is live with probability E[(1-p)^N] live(repair) + E[1 - (1-p)^N] live(keep). For small p the mean
    is about 1 / (P G repair).

    Args:
        prompts: the distribution of p.
        repair: probability that a refinement of a wrong draft is right, the same for all prompts.
        keep: the same for a right draft.
        num_drafts, num_refinements: N and G.
        prompts_per_step: P.

    Raises:
        ValueError: a probability is outside [0, 1], or a count is not a whole number >= 1.
    """
    as_probability(repair, "repair"), as_probability(keep, "keep")
    as_count(num_drafts, "num_drafts"), as_count(num_refinements, "num_refinements")
    best = prompts.best_of_n(num_drafts)
    repaired, kept = (float(live_probability(chance, num_refinements)) for chance in (repair, keep))
    return _first_of(best * kept + (1 - best) * repaired, prompts_per_step)


def _first_of(live: float, prompts_per_step: int) -> WaitingTime:
    as_count(prompts_per_step, "prompts_per_step")
    return WaitingTime(float(best_of_n_probability(min(live, 1.0), prompts_per_step)))


def _check_mean(mean: float) -> None:
    if not 0 < mean < 1:
        raise ValueError(f"mean must lie strictly between 0 and 1, got {mean}")
