"""Exercises of lesson 04, GRPO by hand.

The mean over all tokens, a mistake here, is that of DAPO (https://arxiv.org/abs/2503.14476).
"""

import numpy as np
import torch
from torch import Tensor

from igrpo_kit.classroom.exercise import Arguments, Exercise, FunctionCheck, ValueCheck
from igrpo_kit.core.advantages import group_advantages
from igrpo_kit.core.losses import clipped_surrogate, k3_kl
from igrpo_kit.core.tokens import completion_mask, token_log_probs


def _random_rewards(rng: np.random.Generator) -> list[Arguments]:
    graded, binary = rng.random((3, 4)), rng.integers(0, 2, (5, 8)).astype(float)
    return [(torch.tensor(graded),), (torch.tensor(binary),)]


def _population_std(rewards: Tensor) -> Tensor:
    """You divide by the population standard deviation (ddof = 0); the paper says sample (ddof = 1)."""
    centered, std = rewards - rewards.mean(1, keepdim=True), rewards.std(1, keepdim=True, correction=0)
    return torch.where(std == 0, 0.0, centered / std)


def _over_the_batch(rewards: Tensor) -> Tensor:
    """Mean and std are taken over the whole batch; each group, a row, is to be compared with itself."""
    return (rewards - rewards.mean()) / rewards.std()


def _only_centered(rewards: Tensor) -> Tensor:
    """You subtract the mean, but do not divide by the standard deviation."""
    return rewards - rewards.mean(dim=1, keepdim=True)


def _nan_where_dead(rewards: Tensor) -> Tensor:
    """A dead group gives 0/0 = NaN; the convention (Eq. 18) is exactly 0."""
    return (rewards - rewards.mean(dim=1, keepdim=True)) / rewards.std(dim=1, keepdim=True)


def _random_ids(rng: np.random.Generator) -> list[Arguments]:
    return [(torch.tensor(rng.integers(0, 3, (6, 7))), 0)]


def _no_eos(ids: Tensor, eos_id: int) -> Tensor:
    """The first EOS is masked out as well: then the policy is never trained to stop. Keep it."""
    return (ids == eos_id).cumsum(dim=1) == 0


def _anything_but_eos(ids: Tensor, eos_id: int) -> Tensor:
    """ids != eos_id drops every EOS, including the one that was sampled, and trains what follows it."""
    return ids != eos_id


def _up_to_the_last_eos(ids: Tensor, eos_id: int) -> Tensor:
    """You keep tokens up to the *last* EOS. What follows the first one was never part of the completion."""
    ends = (ids == eos_id).flip(1).cumsum(dim=1).flip(1) > 0
    return ends | ~(ids == eos_id).any(dim=1, keepdim=True)


def _everything(ids: Tensor, eos_id: int) -> Tensor:
    """Everything is True: padding after the first EOS would be trained."""
    return torch.ones_like(ids, dtype=torch.bool)


def _random_log_probs(rng: np.random.Generator) -> list[Arguments]:
    return [(torch.tensor(-rng.random((2, 3))), torch.tensor(-rng.random((2, 3))))]


def _k3_reversed(log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    """The ratio is upside down: k3 uses pi_ref / pi, so ref minus log_probs (Eq. 24)."""
    return k3_kl(ref_log_probs, log_probs)


def _k1(log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    """That is k1, log(pi / pi_ref): unbiased, but it can be negative. k3 adds exp(d) - 1."""
    return log_probs - ref_log_probs


def _k2(log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    """That is k2, half the squared log-ratio: never negative, but biased."""
    return (log_probs - ref_log_probs) ** 2 / 2


def _no_minus_one(log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    """The - 1 is missing: for equal policies the penalty must be 0."""
    return k3_kl(log_probs, ref_log_probs) + 1


_K3_KL = FunctionCheck(
    reference=k3_kl,
    typed=[
        ((torch.tensor([[-1.0]]), torch.tensor([[-1.0]])), torch.tensor([[0.0]])),
        ((torch.tensor([[-2.0]]), torch.tensor([[-1.0]])), torch.tensor([[0.7182818]])),
    ],
    random=_random_log_probs,
    mistakes=[_k3_reversed, _k1, _k2, _no_minus_one],
)


def _random_surrogate(rng: np.random.Generator) -> list[Arguments]:
    ratio, advantages = rng.uniform(0.4, 1.8, (3, 4)), rng.normal(size=(3, 1))
    return [(torch.tensor(ratio), torch.tensor(advantages), 0.2)]


def surrogate(ratio: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """min(ratio * A, clip(ratio) * A) of Eq. 21, token by token."""
    old = torch.zeros_like(ratio)
    return clipped_surrogate(ratio.log(), old, advantages.squeeze(1), clip_low=clip, clip_high=clip)


def _max_for_min(ratio: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """max instead of min: the clip must be pessimistic, the smaller of the two."""
    return torch.maximum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)


def _only_clipped(ratio: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """Only the clipped term: a bad token whose probability has *grown* must still be pushed down."""
    return ratio.clamp(1 - clip, 1 + clip) * advantages


def _unclipped(ratio: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """The clip is missing: nothing keeps the policy near the one that sampled."""
    return ratio * advantages


def _clipped_product(ratio: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """You clip ratio * A; it is the ratio that is clipped."""
    return torch.minimum(ratio * advantages, (ratio * advantages).clamp(1 - clip, 1 + clip))


_CLIPPED_SURROGATE = FunctionCheck(
    reference=surrogate,
    typed=[
        (
            (torch.tensor([[1.5, 0.5], [1.5, 0.5]]), torch.tensor([[1.0], [-1.0]]), 0.2),
            torch.tensor([[1.2, 0.5], [-1.5, -0.8]]),
        )
    ],
    random=_random_surrogate,
    mistakes=[_max_for_min, _only_clipped, _unclipped, _clipped_product],
)


def sequence_mean(values: Tensor, mask: Tensor) -> Tensor:
    """The mean over each completion's own tokens, then the mean over completions: 1/|o| of Eq. 5."""
    return ((values * mask).sum(dim=1) / mask.sum(dim=1)).mean()


def _token_mean(values: Tensor, mask: Tensor) -> Tensor:
    """That is DAPO's mean over all tokens: a long completion weighs more. Eq. 5 weighs completions alike."""
    return (values * mask).sum() / mask.sum()


def _padded_mean(values: Tensor, mask: Tensor) -> Tensor:
    """You divide by T, the padded width, not by each completion's own length."""
    return (values * mask).mean(dim=1).mean()


def _mask_ignored(values: Tensor, mask: Tensor) -> Tensor:
    """The mask is not used: padding enters the mean."""
    return values.mean()


def _random_values(rng: np.random.Generator) -> list[Arguments]:
    lengths = torch.tensor([[1], [2], [5], [3]])
    return [(torch.tensor(rng.normal(size=(4, 5))), torch.arange(5) < lengths)]


_SEQUENCE_MEAN = FunctionCheck(
    reference=sequence_mean,
    typed=[
        (
            (
                torch.tensor([[6.0, 9.0, 9.0], [1.0, 2.0, 3.0]]),
                torch.tensor([[True, False, False], [True] * 3]),
            ),
            4.0,
        ),
        # -6, and the mean of -2 and -4
        ((torch.tensor([[-6.0, 9.0], [-2.0, -4.0]]), torch.tensor([[True, False], [True, True]])), -4.5),
    ],
    random=_random_values,
    mistakes=[_token_mean, _padded_mean, _mask_ignored],
)


def _random_logits(rng: np.random.Generator) -> list[Arguments]:
    return [(torch.tensor(rng.normal(size=(2, 3, 5)) * 3), torch.tensor(rng.integers(0, 5, (2, 3))), 0.7)]


def _temperature_ignored(logits: Tensor, ids: Tensor, temperature: float) -> Tensor:
    """Still the bug: tokens were sampled at `temperature`, and the log-probs are those of temperature 1."""
    return token_log_probs(logits, ids, 1.0)


def _scaled_after(logits: Tensor, ids: Tensor, temperature: float) -> Tensor:
    """You divide the log-probs; divide the *logits*, before log_softmax, or they no longer sum to 1."""
    return token_log_probs(logits, ids, 1.0) / temperature


def _multiplied(logits: Tensor, ids: Tensor, temperature: float) -> Tensor:
    """Multiplied instead of divided: a low temperature sharpens the distribution."""
    return token_log_probs(logits, ids, 1 / temperature)


_BUG_TEMPERATURE = FunctionCheck(
    reference=token_log_probs,
    typed=[
        (
            (torch.tensor([[[0.0, 0.0], [0.0, 1.0986123]]]), torch.tensor([[0, 1]]), 0.5),
            torch.tensor([[-0.6931472, -0.1053605]]),
        )
    ],
    random=_random_logits,
    mistakes=[_temperature_ignored, _scaled_after, _multiplied],
)


_PAD_IS_EOS = torch.tensor([[5, 7, 0, 0], [5, 0, 0, 0], [5, 7, 6, 8]])


_BUG_MASK = FunctionCheck(
    reference=completion_mask,
    typed=[
        ((_PAD_IS_EOS, 0), torch.tensor([[True, True, True, False], [True, True, False, False], [True] * 4]))
    ],
    random=_random_ids,
    mistakes=[_anything_but_eos, _no_eos, _up_to_the_last_eos, _everything],
)
_REWARDS = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
_AS_IN_EQ_4 = FunctionCheck(
    reference=group_advantages,
    tolerance=1e-3,  # an epsilon of up to 1e-4 beside the std, as many trainers have it, is as good
    typed=[((_REWARDS,), torch.tensor([[1.5, -0.5, -0.5, -0.5], [0.0, 0.0, 0.0, 0.0]]))],
    random=_random_rewards,
    mistakes=[_population_std, _over_the_batch, _only_centered, _nan_where_dead],
)

_LOSS_VALUE = ValueCheck(
    right="learns",
    mistakes={
        "nothing": "The *value* of the loss is 0 because advantages of a group sum to 0. "
        "Its gradient weighs different log-probs with them, and does not cancel.",
        "diverges": "A loss of 0 is not a sign of trouble either.",
    },
    otherwise="Answer with one of the words: 'learns', 'nothing', 'diverges'.",
)

EXERCISES = [
    Exercise("group_advantages", "04", "code", difficulty=1, minutes=5, verify=_AS_IN_EQ_4),
    Exercise("bug_ddof", "04", "bug", difficulty=1, minutes=5, verify=_AS_IN_EQ_4),
    Exercise("bug_mask", "04", "bug", difficulty=2, minutes=10, verify=_BUG_MASK),
    Exercise("bug_temperature", "04", "bug", difficulty=2, minutes=8, verify=_BUG_TEMPERATURE),
    Exercise("loss_value", "04", "prediction", difficulty=1, minutes=2, verify=_LOSS_VALUE),
    Exercise("k3_kl", "04", "code", difficulty=1, minutes=5, verify=_K3_KL),
    Exercise("clipped_surrogate", "04", "code", difficulty=2, minutes=10, verify=_CLIPPED_SURROGATE),
    Exercise("sequence_mean", "04", "code", difficulty=2, minutes=8, verify=_SEQUENCE_MEAN),
]
