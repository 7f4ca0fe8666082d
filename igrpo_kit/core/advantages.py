"""Group-relative advantages: each completion compared with the others of its group (Eqs. 4, 17, 18).

Equations: https://arxiv.org/abs/2602.09000. The expected reward (Eq. 13) has the score-function gradient of
Eqs. 14 and 15; a baseline that does not depend on the sample leaves it unbiased (Eq. 16). Here the baseline
is the mean reward of the group, and there is no value function.

A group is axis G of a [P, G] tensor; there are no group ids. All functions compute in float64 and cast back,
so that cancellation does not produce large advantages in groups whose rewards are nearly equal.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def _check_size(rewards: Tensor) -> None:
    if rewards.shape[1] < 2:
        raise ValueError(f"rewards: a group needs at least 2 completions, got G = {rewards.shape[1]}")


def _refuse(bad: Tensor, what: str) -> None:
    groups = bad.any(dim=1).nonzero().flatten().tolist()
    if groups:
        raise ValueError(f"rewards: {what} in group(s) {groups}")


def dead_groups(rewards: Float[Tensor, "P G"]) -> Bool[Tensor, " P"]:
    """True for groups whose rewards are all equal: their std is 0 and they contribute no policy gradient.

    The comparison is exact: eight rewards of 0.7 have a float32 std of 6e-8, not 0. A completion that could
    not be scored has the reward NaN and does not count.

    Raises:
        ValueError: G < 2, or a reward is infinite (the message lists the groups).
    """
    _check_size(rewards)
    _refuse(rewards.isinf(), "infinite")
    return rewards.nan_to_num(nan=-torch.inf).amax(dim=1) <= rewards.nan_to_num(nan=torch.inf).amin(dim=1)


def group_advantages(rewards: Float[Tensor, "P G"], *, scale_by_std: bool = True) -> Float[Tensor, "P G"]:
    """A_j = (R_j - mean) / std within each group, exactly 0 where std is 0 (Eqs. 4 and 18).

    std is the *sample* standard deviation (ddof = 1), following the paper's wording; no epsilon is added.
    For binary rewards with a fraction p of ones, the advantage is sqrt((G-1)/G) * sqrt((1-p)/p) for a correct
    completion and -sqrt((G-1)/G) * sqrt(p/(1-p)) for an incorrect one.

    Args:
        rewards: one row per group.
        scale_by_std: False omits the division by std (Dr. GRPO, https://arxiv.org/abs/2503.20783).

    Returns:
        The advantages, in the dtype of `rewards`.

    Raises:
        ValueError: G < 2, or a reward is NaN or infinite (the message lists the groups); for NaN as "not
            scored" see `advantages_of_scored`.
    """
    dead = dead_groups(rewards)
    _refuse(rewards.isnan(), "NaN")
    exact = rewards.double()
    centered = exact - exact.mean(dim=1, keepdim=True)
    if scale_by_std:
        centered = centered / exact.std(dim=1, keepdim=True, correction=1)
    return centered.masked_fill(dead[:, None], 0.0).to(rewards.dtype)


def leave_one_out_advantages(rewards: Float[Tensor, "P G"]) -> Float[Tensor, "P G"]:
    """A_j = R_j - mean of the *other* rewards of the group (RLOO, https://arxiv.org/abs/2402.14740).

    This baseline is unbiased. The result is G/(G-1) times the centered reward of Dr. GRPO, whose baseline
    includes the sample itself and so scales the expected gradient by (G-1)/G.

    Raises:
        ValueError: G < 2, or a reward is NaN or infinite (the message lists the groups).
    """
    G = rewards.shape[1]
    return group_advantages(rewards, scale_by_std=False) * (G / (G - 1))


def advantages_of_scored(
    rewards: Float[Tensor, "P G"], advantages: Callable[[Tensor], Tensor]
) -> Float[Tensor, "P G"]:
    """Advantages among the scored completions of each group; 0 for those not scored, whose reward is NaN.

    A failure of the judge then neither rewards nor penalizes a completion, and does not change the advantages
    of the others. (If it got the group's mean instead, it would shrink the std, and the others' advantages
    would grow.) A group with fewer than 2 scored completions is dead. TRL does the same.

    Args:
        rewards: one row per group.
        advantages: rewards [P, G] -> advantages [P, G], such as `group_advantages`.

    Raises:
        ValueError: as `advantages`.
    """
    scored = ~rewards.isnan()
    if scored.all():
        return advantages(rewards)
    result = torch.zeros_like(rewards)
    for i, known in enumerate(scored):
        if known.sum() >= 2:
            result[i, known] = advantages(rewards[i, known][None])[0]
    return result
