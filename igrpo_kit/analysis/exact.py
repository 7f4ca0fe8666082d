"""Worlds so small that every expectation is a finite sum: a policy over K answers, given by its logits.

Here the claims about estimators that large models leave to faith can be checked to the last digit: what the
group's own mean does to a gradient (Eq. 19), and what is lost by not differentiating Stage 1 (Appendix A.1).
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from igrpo_kit.core.advantages import group_advantages

MAX_GROUPS = 1 << 20


def best_draft_probabilities(
    probabilities: Float[Tensor, " K"], rewards: Float[Tensor, " K"], num_drafts: int
) -> Float[Tensor, " K"]:
    """The chance of each answer to be the best of `num_drafts` drafts, ties going to the first (Eq. 2).

    With F(x) the chance of a draft with a reward of at most x, and F(<x) below it: the best reward is x with
    F(x)^N - F(<x)^N, and the first draft that has it is any answer with that reward, in proportion to its
    probability. Differentiable in the probabilities; for rewards 0 and 1 the right answers sum to
    1 - (1 - p)^N (Proposition 3.1).

    Raises ValueError where num_drafts is below 1 or an answer has probability 0.
    """
    if num_drafts < 1 or not (probabilities > 0).all():
        raise ValueError(f"num_drafts >= 1 and positive probabilities are needed, got {num_drafts=}")
    same = (rewards[:, None] == rewards[None, :]).to(probabilities.dtype) @ probabilities
    below = (rewards[:, None] > rewards[None, :]).to(probabilities.dtype) @ probabilities
    return probabilities / same * ((below + same) ** num_drafts - below**num_drafts)


def expected_group_gradient(
    logits: Float[Tensor, " K"],
    rewards: Float[Tensor, " K"],
    group_size: int,
    advantages: Callable[[Float[Tensor, "P G"]], Float[Tensor, "P G"]] = group_advantages,
) -> Float[Tensor, " K"]:
    """E[(1/G) sum_j A_j grad log pi(o_j)] in the logits, summed over all K^G groups: Eq. 19's expectation.

    `advantages` makes A [P, G] of rewards [P, G]. The gradient of the expected reward itself is
    pi * (rewards - expected reward).

    Raises ValueError for a group of fewer than 2 and for more than `MAX_GROUPS` groups.
    """
    K = len(logits)
    if group_size < 2 or K**group_size > MAX_GROUPS:
        raise ValueError(f"group_size: 2 or more, and at most {MAX_GROUPS:,} groups, got {K}^{group_size}")
    pi = logits.softmax(dim=0)
    groups = torch.cartesian_prod(*[torch.arange(K)] * group_size)  # [K^G, G]
    weights = pi[groups].prod(dim=1, keepdim=True)
    terms = weights * advantages(rewards[groups]) / group_size
    pulls = torch.zeros_like(pi).index_add(0, groups.flatten(), terms.flatten())
    return pulls - pi * terms.sum()  # grad log pi(o) = onehot(o) - pi
