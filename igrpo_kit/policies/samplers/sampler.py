"""Who generates: prompts in, `Samples` out, whatever the engine behind it.

A sampler turns P prompts into P * n completions and keeps the log-prob of every token at the moment
it was drawn. These are the old log-probs of the importance ratio (Eq. 12), so the distribution
sampled from must be the one scored: temperature is offered, top-k is not, and top-p for evaluation only.
It cuts the tail off, and the ratio would then compare the policy with a distribution nobody sampled from.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int
from torch import Tensor

from igrpo_kit.core.prompts import Messages
from igrpo_kit.policies.policy import Policy


@dataclass(frozen=True)
class SamplingSettings:
    """How to draw: at most `max_new_tokens` tokens at `temperature`; 0 is greedy, for evaluation.

    `top_p` < 1 draws from the smallest set of tokens that holds so much probability; for evaluation too, and
    `train` refuses it.

    Raises ValueError for max_new_tokens < 1, a negative temperature, or a top_p outside (0, 1].
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be >= 1, got {self.max_new_tokens}")
        if not self.temperature >= 0:
            raise ValueError(f"temperature must be >= 0, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], got {self.top_p}")


@dataclass(frozen=True)
class Samples:
    """P * n completions, row-major by prompt: rows i*n ... i*n + n-1 belong to prompt i.

    `mask` is True up to and including the first end-of-sequence token; padding never enters it.
    `log_probs` (nats) are at the sampler's temperature, `entropies` (nats) of the full vocabulary
    at that temperature, None where the engine does not give them; both are 0 outside the mask.
    Greedy samples have log-prob 0 and entropy 0:
    the distribution they come from has one outcome. `texts` are the tokens before the
    end-of-sequence token, special ones included: nothing the policy wrote hides from a verifier.
    """

    prompt_ids: list[list[int]]
    completion_ids: Int[Tensor, "B T"]
    mask: Bool[Tensor, "B T"]
    log_probs: Float[Tensor, "B T"]
    entropies: Float[Tensor, "B T"] | None
    texts: list[str]
    finish_reasons: list[str]
    """Per row "stop" (an end-of-sequence token was drawn) or "length" (cut at max_new_tokens)."""

    @property
    def num_samples(self) -> int:
        """Completions per prompt, n."""
        return len(self.texts) // len(self.prompt_ids)


@runtime_checkable
class Sampler(Protocol):
    """Anything that answers each of P prompts with `num_samples` completions."""

    @property
    def policy(self) -> Policy:
        """Who answers, and how it is asked."""
        ...

    @property
    def settings(self) -> SamplingSettings:
        """How it samples; the loss scores at its temperature."""
        ...

    def sample(self, prompts: Sequence[Messages], num_samples: int) -> Samples:
        """P prompts -> P * num_samples completions, row-major by prompt."""
        ...

    def sync(self) -> None:
        """Sample from the policy as it is now; whoever changes its weights calls this afterwards."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What decides the next samples, the weights apart: a checkpoint holds it."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        ...


def check_request(prompts: Sequence[Messages], num_samples: int) -> None:
    """Raise ValueError unless there is at least one prompt, no empty one, and num_samples >= 1."""
    if not prompts:
        raise ValueError("prompts: at least one is needed")
    if num_samples < 1:
        raise ValueError(f"num_samples must be >= 1, got {num_samples}")
    for i, messages in enumerate(prompts):
        if not messages:
            raise ValueError(f"prompts[{i}] holds no message")
