"""Selection of the draft for Stage 2: the best one (Eq. 2), and controls that test whether this matters.

Equations: https://arxiv.org/abs/2602.09000. Every selector takes rewards [P, N] and returns one index per
prompt, so selectors are interchangeable. A reward of NaN means that the draft was not scored: it is never
selected, and a prompt without any scored draft is an error, not an arbitrary choice.
"""

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

NO_DRAFT = -1
"""The index that `select_no_draft` returns: Stage 2 then samples from q itself."""


def _scored(rewards: Tensor) -> Tensor:
    scored = ~rewards.isnan()
    unscored_rows = (~scored.any(dim=1)).nonzero().flatten().tolist()
    if unscored_rows:
        raise ValueError(f"rewards: every draft is NaN for prompt(s) {unscored_rows}; nothing to select")
    return scored


def _pick(candidates: Tensor, generator: torch.Generator | None) -> Tensor:
    """The first True of each row or, with a generator, a uniformly random one."""
    if generator is None:
        return candidates.int().argmax(dim=1)  # argmax of 0/1 is the first 1
    noise = torch.rand(candidates.shape, generator=generator, device=generator.device)
    return noise.to(candidates.device).masked_fill(~candidates, -1.0).argmax(dim=1)


def select_best_draft(
    rewards: Float[Tensor, "P N"], *, generator: torch.Generator | None = None
) -> Int[Tensor, " P"]:
    """Index of the highest-reward draft of each prompt: argmax_i R(d_i) (Eqs. 2, 9).

    The paper does not say how ties are broken, and with a binary reward they are common. Here the first draft
    is selected or, with a `generator`, a random one.

    Raises:
        ValueError: all drafts of a prompt are NaN (the message lists the prompts).
    """
    scored = _scored(rewards)
    best = rewards.masked_fill(~scored, -torch.inf).amax(dim=1, keepdim=True)
    return _pick(scored & (rewards == best), generator)


def select_worst_draft(
    rewards: Float[Tensor, "P N"], *, generator: torch.Generator | None = None
) -> Int[Tensor, " P"]:
    """Index of the lowest-reward draft: the control that tests whether a *good* draft is needed.

    Ties and NaN are handled as in `select_best_draft`.
    """
    return select_best_draft(-rewards, generator=generator)


def select_random_draft(
    rewards: Float[Tensor, "P N"], *, generator: torch.Generator | None = None
) -> Int[Tensor, " P"]:
    """Index of a uniformly random scored draft: the control that keeps the template but not the selection.

    Without a `generator`, torch's global one is used. NaN is handled as in `select_best_draft`.
    """
    return _pick(_scored(rewards), torch.default_generator if generator is None else generator)


def select_first_draft(rewards: Float[Tensor, "P N"]) -> Int[Tensor, " P"]:
    """Index of the first scored draft: random selection without random numbers (drafts are exchangeable)."""
    return _pick(_scored(rewards), None)


def select_no_draft(rewards: Float[Tensor, "P N"]) -> Int[Tensor, " P"]:
    """`NO_DRAFT` for every prompt: Stage 1 is sampled but not used, and Stage 2 samples from q alone."""
    return torch.full((rewards.shape[0],), NO_DRAFT, device=rewards.device)


def select_oracle_draft(
    rewards: Float[Tensor, "P N"], *, true_rewards: Float[Tensor, "P N"]
) -> Int[Tensor, " P"]:
    """Index of the best draft by `true_rewards`; ties go to the higher reward, then to the first draft.

    The choice of a perfect judge, for rewards that are noisy or include format.

    Raises:
        ValueError: all drafts of a prompt are NaN, in either argument (the message lists the prompts).
    """
    scored = _scored(true_rewards)
    best = true_rewards.masked_fill(~scored, -torch.inf).amax(dim=1, keepdim=True)
    return select_best_draft(rewards.masked_fill(~(scored & (true_rewards == best)), torch.nan))


Selector = Callable[[Tensor], Tensor]
"""Maps rewards [P, N] to the index of each problem's draft, or NO_DRAFT."""

SELECTORS: dict[str, Callable[..., Tensor]] = {
    "best": select_best_draft,
    "random": select_random_draft,
    "worst": select_worst_draft,
    "first": select_first_draft,
    "none": select_no_draft,
}
"""Selectors by name: the paper's rule (Eq. 2) and its controls."""


def selector(select: str | Selector, generator: torch.Generator | None = None) -> Selector:
    """A selector by its name in `SELECTORS`; a callable is returned unchanged.

    Args:
        select: a name or a callable.
        generator: makes "random" reproducible.

    Raises:
        ValueError: the name is unknown.
    """
    if callable(select):
        return select
    if select not in SELECTORS:
        raise ValueError(f"select: one of {', '.join(SELECTORS)} or a callable, got {select!r}")
    return partial(select_random_draft, generator=generator) if select == "random" else SELECTORS[select]


def select_drafts(rewards: Float[Tensor, "P N"], select: str | Selector) -> Int[Tensor, " P"]:
    """The selector's choice for each prompt; NO_DRAFT where none of the prompt's drafts was scored."""
    unscored = rewards.isnan().all(dim=1)
    return selector(select)(rewards.masked_fill(unscored[:, None], 0.0)).masked_fill(unscored, NO_DRAFT)
