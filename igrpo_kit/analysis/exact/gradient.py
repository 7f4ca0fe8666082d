"""Exact expectations for a policy over K answers, given by its logits: every expectation is a finite sum.

These check claims about estimators to machine precision: the effect of the group mean on the gradient
(Eq. 19), and the effect of not differentiating through Stage 1 (Appendix A.1). Equations:
https://arxiv.org/abs/2602.09000.
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
    """Probability of each answer to be the best of N drafts, with ties going to the first draft (Eq. 2).

    Let F(x) be the probability that a draft's reward is at most x, and F(<x) that it is below x. The best
    reward is x with probability F(x)^N - F(<x)^N. The first draft with this reward is one of the answers with
    this reward, in proportion to their probabilities. For rewards 0 and 1, the correct answers sum to
    1 - (1 - p)^N (Proposition 3.1).

    Args:
        probabilities: of the K answers under the policy, all above 0.
        rewards: of the K answers.
        num_drafts: N.

    Returns:
        Probabilities, differentiable in `probabilities`.

    Raises:
        ValueError: num_drafts is below 1, or an answer has probability 0.
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
    """E[(1/G) sum_j A_j grad log pi(o_j)], the expectation of Eq. 19, summed over all K^G groups.

    The gradient is with respect to the logits. The gradient of the expected reward itself is
    pi * (rewards - expected reward).

    Args:
        logits: of the K answers.
        rewards: of the K answers.
        group_size: G.
        advantages: maps rewards [P, G] to advantages [P, G].

    Raises:
        ValueError: a group has fewer than 2 answers, or there are more than `MAX_GROUPS` groups.
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
