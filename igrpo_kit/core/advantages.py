"""Group-relative advantages: each completion against its siblings, no value function (Eqs. 4, 17, 18).

The reward's expectation (Eq. 13) has the score-function gradient of Eqs. 14 and 15; a baseline that does not
depend on the sample leaves it unbiased (Eq. 16). Here the baseline is the group's mean.

A group is the axis G of a [P, G] tensor, never a key. Every function is computed in float64 and cast back,
so that a group whose rewards nearly agree cannot blow up through cancellation.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def _check_rewards(rewards: Tensor) -> None:
    if rewards.shape[1] < 2:
        raise ValueError(f"rewards: a group needs at least 2 completions, got G = {rewards.shape[1]}")
    bad = (~rewards.isfinite()).any(dim=1).nonzero().flatten().tolist()
    if bad:
        raise ValueError(f"rewards: NaN or infinite in group(s) {bad}")


def dead_groups(rewards: Float[Tensor, "P G"]) -> Bool[Tensor, " P"]:
    """True where all rewards of a group are equal: its standard deviation is 0 and it teaches nothing.

    Compared exactly, not by a small std: eight times 0.7 has a float32 std of 6e-8, not 0.
    Raises ValueError naming the groups with a NaN or infinite reward, or for G < 2.
    """
    _check_rewards(rewards)
    return rewards.amax(dim=1) == rewards.amin(dim=1)


def group_advantages(rewards: Float[Tensor, "P G"], *, scale_by_std: bool = True) -> Float[Tensor, "P G"]:
    """A_j = (R_j - mean) / std within each group, exactly 0 where std is 0 (Eqs. 4 and 18).

    std is the *sample* standard deviation (ddof = 1), as the paper words it; there is no epsilon.
    `scale_by_std=False` leaves the division out (Dr. GRPO, arXiv 2503.20783).
    For binary rewards with share p of ones: sqrt((G-1)/G) * sqrt((1-p)/p) for a right completion and
    -sqrt((G-1)/G) * sqrt(p/(1-p)) for a wrong one.

    Raises ValueError naming the groups with a NaN or infinite reward, or for G < 2.
    """
    dead = dead_groups(rewards)
    exact = rewards.double()
    centered = exact - exact.mean(dim=1, keepdim=True)
    if scale_by_std:
        centered = centered / exact.std(dim=1, keepdim=True, correction=1)
    return centered.masked_fill(dead[:, None], 0.0).to(rewards.dtype)


def leave_one_out_advantages(rewards: Float[Tensor, "P G"]) -> Float[Tensor, "P G"]:
    """A_j = R_j - mean of the *other* rewards: an unbiased baseline (RLOO, arXiv 2402.14740).

    Equals G/(G-1) times the centered reward of Dr. GRPO: a group's own mean contains the sample it judges
    and shrinks the expected gradient by (G-1)/G.

    Raises ValueError naming the groups with a NaN or infinite reward, or for G < 2.
    """
    G = rewards.shape[1]
    return group_advantages(rewards, scale_by_std=False) * (G / (G - 1))


def fill_unscored(rewards: Float[Tensor, "P G"]) -> Float[Tensor, "P G"]:
    """Rewards with NaN, a completion that could not be scored, replaced by its group's mean of the scored.

    Such a completion then has advantage 0: it is neither rewarded nor punished for a judge's failure. A
    group without any scored completion becomes 0 throughout, which is dead.
    """
    scored = ~rewards.isnan()
    mean = rewards.double().nansum(dim=1, keepdim=True) / scored.sum(dim=1, keepdim=True).clamp(min=1)
    # Where all scored rewards agree, rounding must not make the mean another number: the group is dead.
    low = rewards.nan_to_num(nan=torch.inf).amin(dim=1, keepdim=True)
    high = rewards.nan_to_num(nan=-torch.inf).amax(dim=1, keepdim=True)
    mean = torch.where(scored.any(dim=1, keepdim=True), mean.to(rewards.dtype).clamp(low, high), 0.0)
    return torch.where(scored, rewards, mean)
