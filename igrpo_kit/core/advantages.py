"""Group-relative advantages: each completion compared with the others of its group (Eqs. 4, 17, 18).

Equations: https://arxiv.org/abs/2602.09000. The expected reward (Eq. 13) has the score-function gradient of
Eqs. 14 and 15; a baseline that does not depend on the sample leaves it unbiased (Eq. 16). Here the baseline
is the mean reward of the group, and there is no value function.

A group is axis G of a [P, G] tensor; there are no group ids. All functions compute in float64 and cast back,
so that cancellation does not produce large advantages in groups whose rewards are nearly equal.
"""

from collections.abc import Callable, Sequence

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


def gdpo_advantages(rewards: Float[Tensor, "K P G"], weights: Sequence[float]) -> Float[Tensor, "P G"]:
    """A = Z / std(Z) with Z = sum_k w_k A_k, and A_k the `group_advantages` of reward k alone (GDPO).

    GRPO adds the rewards first and divides the sum by its own std, so that (0, 1) and (0, 2) become equal.
    Here each reward is normalized within its group, and the sum once over the batch, whose mean is 0 already.
    https://arxiv.org/abs/2601.05242 and its code, https://github.com/NVlabs/GDPO. Left out: the 1e-4 that the
    code adds to each std (a std of 0 gives 0 here), and rewards that count only if a harder one is reached.

    Args:
        rewards: K rewards of each completion, not multiplied by their weights; NaN if not scored.
        weights: one per reward.

    Returns:
        The advantages, with sample standard deviation 1 over the batch unless all are 0, in the dtype of
        `rewards`. Unlike GRPO's, they depend on the other groups of the batch.

    Raises:
        ValueError: not one weight per reward, G < 2, or a reward is infinite.
    """
    if len(weights) != len(rewards):
        raise ValueError(f"weights: {len(weights)} of them for {len(rewards)} rewards")
    parts = torch.stack(
        [
            w * advantages_of_scored(part.double(), group_advantages)
            for w, part in zip(weights, rewards, strict=True)
        ]
    )
    total = parts.sum(dim=0)
    # Opposite rewards cancel up to rounding; the division must not turn what is left into an advantage.
    total = total.masked_fill(total.abs() <= 1e-12 * parts.abs().sum(dim=0), 0.0)
    std = total.std(correction=1)
    return (total / std if std > 0 else total).to(rewards.dtype)


def sgpo_rewards(
    rewards: Float[Tensor, "P G"], correct: Bool[Tensor, "P G"], scores: Float[Tensor, "P G"]
) -> Float[Tensor, "P G"]:
    """The rewards, and in groups without a correct completion the scores of their steps instead (SGPO).

    A group of incorrect completions is dead for GRPO if its rewards are binary. SGPO compares its completions
    by how far each one got before its first incorrect step, https://arxiv.org/abs/2505.11595. Left out: a
    logistic function of the score with two settings; here the score itself is the reward. Groups with a
    correct completion keep their rewards. (Written from the paper's abstract and public descriptions.)

    Args:
        rewards: binary rewards; those of completions that could not be scored are NaN and stay NaN.
        correct: True for correct completions.
        scores: fraction of a completion before its first incorrect step, from 0 to 1.
    """
    all_incorrect = ~correct.any(dim=1, keepdim=True)
    return torch.where(all_incorrect & ~rewards.isnan(), scores, rewards)


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
