"""The capstone of lesson 04: the learner's own GRPO loss, and three objectives one line away from it.

A loss is judged by its value *and* its gradient: a loss that is detached somewhere has the right value.
Dr. GRPO: https://arxiv.org/abs/2503.20783. DAPO: https://arxiv.org/abs/2503.14476. GSPO:
https://arxiv.org/abs/2507.18071.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from igrpo_kit.classroom.exercise import Arguments, Exercise, FunctionCheck
from igrpo_kit.core.losses import DAPO, GRPO, GSPO, DrGRPO, Objective


def loss_and_gradient(loss: Callable[..., Any]) -> Callable[..., Any]:
    """A loss as a function that returns its value and its gradient with respect to the log-probs [B, T]."""

    def probe(log_probs: Tensor, *others: Any) -> Any:
        given = log_probs.clone().requires_grad_()
        value = loss(given, *others)
        if not isinstance(value, Tensor) or value.ndim:
            return value
        gradient = None
        if value.requires_grad:
            (gradient,) = torch.autograd.grad(value, given, allow_unused=True)
        return {
            "loss": value.detach(),
            "gradient": torch.zeros_like(log_probs) if gradient is None else gradient,
        }

    return probe


def _random_batches(rng: np.random.Generator) -> list[Arguments]:
    """Log-probs, old log-probs, advantages, mask: ragged rows, B != T, ratios far from 1."""
    batches: list[Arguments] = []
    for B, T in ((4, 6), (3, 5), (6, 3)):
        lengths = torch.tensor(rng.integers(1, T + 1, (B, 1)))
        log_probs, old = (torch.tensor(-rng.random((B, T)) * 1.5) for _ in range(2))
        advantages = torch.tensor(rng.normal(size=B))
        batches.append((log_probs, old, advantages, torch.arange(T) < lengths))
    return batches


def _loss_of(objective: Objective) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    return lambda log_probs, old, A, mask: objective.loss(log_probs, old, A, mask)[0]


# --- GRPO


def grpo_loss(log_probs: Tensor, old_log_probs: Tensor, A: Tensor, mask: Tensor, clip: float) -> Tensor:
    """Minus Eq. 5 with beta = 0, by the kit's objective."""
    return _loss_of(GRPO(clip_low=clip, clip_high=clip))(log_probs, old_log_probs, A, mask)


def _terms(log_probs: Tensor, old: Tensor, A: Tensor, clip: float) -> Tensor:
    ratio = (log_probs - old).exp()
    return torch.minimum(ratio * A[:, None], ratio.clamp(1 - clip, 1 + clip) * A[:, None])


def _mean(terms: Tensor, mask: Tensor) -> Tensor:
    return ((terms * mask).sum(1) / mask.sum(1)).mean()


def _maximized(log_probs: Tensor, old: Tensor, A: Tensor, mask: Tensor, clip: float) -> Tensor:
    """The sign is reversed: this is what GRPO maximizes, and an optimizer minimizes its loss. Negate it."""
    return -grpo_loss(log_probs, old, A, mask, clip)


def _no_clip(log_probs: Tensor, old: Tensor, A: Tensor, mask: Tensor, clip: float) -> Tensor:
    """The clip is missing: take the smaller of ratio * A and clipped ratio * A."""
    return -_mean((log_probs - old).exp() * A[:, None], mask)


def _clip_alone(log_probs: Tensor, old: Tensor, A: Tensor, mask: Tensor, clip: float) -> Tensor:
    """You use the clipped term alone; take the smaller of it and ratio * A."""
    return -_mean((log_probs - old).exp().clamp(1 - clip, 1 + clip) * A[:, None], mask)


def _max_of_both(log_probs: Tensor, old: Tensor, A: Tensor, mask: Tensor, clip: float) -> Tensor:
    """You take the larger of the two terms; the clip is pessimistic, so take the smaller."""
    ratio = (log_probs - old).exp()
    return -_mean(torch.maximum(ratio * A[:, None], ratio.clamp(1 - clip, 1 + clip) * A[:, None]), mask)


def _ratio_reversed(log_probs: Tensor, old: Tensor, A: Tensor, mask: Tensor, clip: float) -> Tensor:
    """The ratio is upside down: it is pi / pi_old, so exp(log_probs - old_log_probs)."""
    return -_mean(_terms(old, log_probs, A, clip), mask)


def _log_ratio(log_probs: Tensor, old: Tensor, A: Tensor, mask: Tensor, clip: float) -> Tensor:
    """The exp is missing: the ratio of two probabilities is exp of the difference of their logarithms."""
    d = log_probs - old
    return -_mean(torch.minimum(d * A[:, None], d.clamp(1 - clip, 1 + clip) * A[:, None]), mask)


def _all_tokens(log_probs: Tensor, old: Tensor, A: Tensor, mask: Tensor, clip: float) -> Tensor:
    """The mean goes over all tokens: a long completion weighs more. Eq. 5 weighs each completion alike."""
    return -(_terms(log_probs, old, A, clip) * mask).sum() / mask.sum()


def _over_width(log_probs: Tensor, old: Tensor, A: Tensor, mask: Tensor, clip: float) -> Tensor:
    """You divide by the padded width T; divide each row by its own number of trained tokens."""
    return -(_terms(log_probs, old, A, clip) * mask).mean(1).mean()


def _unmasked(log_probs: Tensor, old: Tensor, A: Tensor, mask: Tensor, clip: float) -> Tensor:
    """The mask is not used: padding is trained as well."""
    return -_terms(log_probs, old, A, clip).mean()


def _sum_of_tokens(log_probs: Tensor, old: Tensor, A: Tensor, mask: Tensor, clip: float) -> Tensor:
    """You add up the tokens of a completion; divide by their number, 1/|o| in Eq. 5."""
    return -(_terms(log_probs, old, A, clip) * mask).sum(1).mean()


def _sum_of_rows(log_probs: Tensor, old: Tensor, A: Tensor, mask: Tensor, clip: float) -> Tensor:
    """You add up the completions; take their mean."""
    return -((_terms(log_probs, old, A, clip) * mask).sum(1) / mask.sum(1)).sum()


def _detached(log_probs: Tensor, old: Tensor, A: Tensor, mask: Tensor, clip: float) -> Tensor:
    """The value is right and the gradient is 0: the log-probs are detached. Only the old ones should be."""
    return -_mean(_terms(log_probs.detach(), old, A, clip), mask)


_RATIO_1 = (
    torch.full((1, 2), -1.0),
    torch.full((1, 2), -1.0),
    torch.tensor([2.0]),
    torch.tensor([[True, True]]),
)
"""one completion of two tokens with A = 2, at ratio 1"""


_COMMON_MISTAKES = [_maximized, _unmasked, _detached, _ratio_reversed, _log_ratio]

_GRPO_LOSS = FunctionCheck(
    reference=grpo_loss,
    typed=[
        # ratio 1: the loss is minus the mean of A, the gradient minus A / |o| / B on each trained token
        (
            (
                torch.full((2, 2), -1.0),
                torch.full((2, 2), -1.0),
                torch.tensor([1.0, -3.0]),
                torch.tensor([[True, True], [True, False]]),
                0.2,
            ),
            {"loss": torch.tensor(1.0), "gradient": torch.tensor([[-0.25, -0.25], [1.5, 0.0]])},
        ),
        # ratio 2: at A > 0 it is clipped to 1.2, without a gradient; at A < 0 it is not
        (
            (
                torch.zeros(2, 1),
                torch.full((2, 1), -0.6931472),
                torch.tensor([1.0, -1.0]),
                torch.ones(2, 1, dtype=torch.bool),
                0.2,
            ),
            {"loss": torch.tensor(0.4), "gradient": torch.tensor([[0.0], [1.0]])},
        ),
        ((*_RATIO_1, 0.2), {"loss": torch.tensor(-2.0), "gradient": torch.tensor([[-1.0, -1.0]])}),
    ],
    random=lambda rng: [(*batch, 0.2) for batch in _random_batches(rng)],
    mistakes=[
        *_COMMON_MISTAKES,
        _no_clip,
        _clip_alone,
        _max_of_both,
        _all_tokens,
        _over_width,
        _sum_of_tokens,
        _sum_of_rows,
    ],
    probe=loss_and_gradient,
)

# --- one line away


def dapo_loss(log_probs: Tensor, old_log_probs: Tensor, A: Tensor, mask: Tensor) -> Tensor:
    """DAPO's: clip from 0.8 to 1.28, mean over all tokens."""
    return _loss_of(DAPO())(log_probs, old_log_probs, A, mask)


def _dapo_symmetric(log_probs: Tensor, old: Tensor, A: Tensor, mask: Tensor) -> Tensor:
    """The clip is GRPO's: DAPO's upper limit is 1.28."""
    return _all_tokens(log_probs, old, A, mask, 0.2)


def _dapo_sequence_mean(log_probs: Tensor, old: Tensor, A: Tensor, mask: Tensor) -> Tensor:
    """The mean is GRPO's: DAPO divides the sum over all tokens by their number in the batch."""
    return _loss_of(GRPO(clip_low=0.2, clip_high=0.28))(log_probs, old, A, mask)


def _dapo_both_limits(log_probs: Tensor, old: Tensor, A: Tensor, mask: Tensor) -> Tensor:
    """Both limits moved: the lower one stays at 0.8, only the upper is 1.28."""
    return _all_tokens(log_probs, old, A, mask, 0.28)


def _dapo_negated(log_probs: Tensor, old: Tensor, A: Tensor, mask: Tensor) -> Tensor:
    """The sign is reversed: this is to be maximized. Negate it."""
    return -dapo_loss(log_probs, old, A, mask)


def _grpo_as_it_was(log_probs: Tensor, old: Tensor, A: Tensor, mask: Tensor) -> Tensor:
    """This is still GRPO's loss; change the line that the exercise names."""
    return grpo_loss(log_probs, old, A, mask, 0.2)


_DAPO_LOSS = FunctionCheck(
    reference=dapo_loss,
    typed=[
        # ratio 1, lengths 2 and 1: minus (1 + 1 - 3) / 3
        (
            (
                torch.full((2, 2), -1.0),
                torch.full((2, 2), -1.0),
                torch.tensor([1.0, -3.0]),
                torch.tensor([[True, True], [True, False]]),
            ),
            {"loss": torch.tensor(1 / 3), "gradient": torch.tensor([[-1 / 3, -1 / 3], [1.0, 0.0]])},
        ),
        (_RATIO_1, {"loss": torch.tensor(-2.0), "gradient": torch.tensor([[-1.0, -1.0]])}),
    ],
    random=_random_batches,
    mistakes=[_grpo_as_it_was, _dapo_symmetric, _dapo_sequence_mean, _dapo_both_limits, _dapo_negated],
    probe=loss_and_gradient,
)


def dr_grpo_loss(
    log_probs: Tensor, old_log_probs: Tensor, A: Tensor, mask: Tensor, max_length: int
) -> Tensor:
    """Dr. GRPO's: the sum over a completion's tokens, divided by a constant."""
    return _loss_of(DrGRPO(max_length=max_length))(log_probs, old_log_probs, A, mask)


def _dr_own_length(log_probs: Tensor, old: Tensor, A: Tensor, mask: Tensor, max_length: int) -> Tensor:
    """You still divide by each completion's own length; divide by the constant max_length."""
    return grpo_loss(log_probs, old, A, mask, 0.2)


def _dr_sum(log_probs: Tensor, old: Tensor, A: Tensor, mask: Tensor, max_length: int) -> Tensor:
    """The constant is missing: divide the sum over tokens by max_length."""
    return _sum_of_tokens(log_probs, old, A, mask, 0.2)


def _dr_all_tokens(log_probs: Tensor, old: Tensor, A: Tensor, mask: Tensor, max_length: int) -> Tensor:
    """That is the mean over all tokens, DAPO's: the divisor must not depend on lengths."""
    return _all_tokens(log_probs, old, A, mask, 0.2)


def _dr_rows_added(log_probs: Tensor, old: Tensor, A: Tensor, mask: Tensor, max_length: int) -> Tensor:
    """You add up the completions; take their mean."""
    return dr_grpo_loss(log_probs, old, A, mask, max_length) * len(A)


_DR_GRPO_LOSS = FunctionCheck(
    reference=dr_grpo_loss,
    typed=[
        # ratio 1, lengths 2 and 1, max_length 4: minus the mean of (1 + 1) / 4 and -3 / 4
        (
            (
                torch.full((2, 2), -1.0),
                torch.full((2, 2), -1.0),
                torch.tensor([1.0, -3.0]),
                torch.tensor([[True, True], [True, False]]),
                4,
            ),
            {"loss": torch.tensor(0.125), "gradient": torch.tensor([[-0.125, -0.125], [0.375, 0.0]])},
        ),
        ((*_RATIO_1, 4), {"loss": torch.tensor(-1.0), "gradient": torch.tensor([[-0.5, -0.5]])}),
    ],
    random=lambda rng: [(*batch, 7) for batch in _random_batches(rng)],
    mistakes=[_dr_own_length, _dr_sum, _dr_all_tokens, _dr_rows_added],
    probe=loss_and_gradient,
)


def gspo_loss(log_probs: Tensor, old_log_probs: Tensor, A: Tensor, mask: Tensor, clip: float) -> Tensor:
    """GSPO's: one ratio per completion, the geometric mean of its tokens' ratios."""
    return _loss_of(GSPO(clip_low=clip, clip_high=clip))(log_probs, old_log_probs, A, mask)


def _with_ratio(ratio: Tensor, A: Tensor, mask: Tensor, clip: float) -> Tensor:
    terms = torch.minimum(ratio * A[:, None], ratio.clamp(1 - clip, 1 + clip) * A[:, None])
    return -_mean(terms.expand(mask.shape), mask)


def _gspo_arithmetic(log_probs: Tensor, old: Tensor, A: Tensor, mask: Tensor, clip: float) -> Tensor:
    """You average the ratios; average the *log*-ratios of the completion, then take exp."""
    ratio = ((log_probs - old).exp() * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)
    return _with_ratio(ratio, A, mask, clip)


def _gspo_product(log_probs: Tensor, old: Tensor, A: Tensor, mask: Tensor, clip: float) -> Tensor:
    """You add up the log-ratios; divide by the completion's length, or long ones leave the clip."""
    return _with_ratio(((log_probs - old) * mask).sum(1, keepdim=True).exp(), A, mask, clip)


def _gspo_padded(log_probs: Tensor, old: Tensor, A: Tensor, mask: Tensor, clip: float) -> Tensor:
    """Padding enters the mean of the log-ratios; use the mask there, too."""
    return _with_ratio((log_probs - old).mean(1, keepdim=True).exp(), A, mask, clip)


def _gspo_per_token(log_probs: Tensor, old: Tensor, A: Tensor, mask: Tensor, clip: float) -> Tensor:
    """The ratio is still one per token; GSPO has one per completion."""
    return grpo_loss(log_probs, old, A, mask, clip)


_GSPO_LOSS = FunctionCheck(
    reference=gspo_loss,
    typed=[
        # log-ratios log 2 and 0 (and padding): the ratio is sqrt 2 = 1.4142136, inside a clip of 0.5
        (
            (
                torch.tensor([[0.0, -1.0, -1.0]]),
                torch.tensor([[-0.6931472, -1.0, -5.0]]),
                torch.tensor([2.0]),
                torch.tensor([[True, True, False]]),
                0.5,
            ),
            {"loss": torch.tensor(-2.8284271), "gradient": torch.tensor([[-1.4142136, -1.4142136, 0.0]])},
        )
    ],
    random=lambda rng: [(*batch, 0.2) for batch in _random_batches(rng)],
    mistakes=[_gspo_per_token, _gspo_arithmetic, _gspo_product, _gspo_padded],
    probe=loss_and_gradient,
)

EXERCISES = [
    Exercise("grpo_loss", "04", "code", difficulty=3, minutes=20, verify=_GRPO_LOSS),
    Exercise("dr_grpo_loss", "04", "code", difficulty=1, minutes=4, verify=_DR_GRPO_LOSS),
    Exercise("dapo_loss", "04", "code", difficulty=1, minutes=5, verify=_DAPO_LOSS),
    Exercise("gspo_loss", "04", "code", difficulty=2, minutes=8, verify=_GSPO_LOSS),
]
