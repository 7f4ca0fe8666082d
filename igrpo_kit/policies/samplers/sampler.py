"""The sampler interface: prompts in, `Samples` out, for any engine.

Equations: https://arxiv.org/abs/2602.09000. A sampler turns P prompts into P * n completions and records the
log-prob of every token when it is sampled. These are the old log-probs of the importance ratio (Eq. 12), so
the loss must score the same distribution that was sampled from. Temperature is therefore supported, top-k is
not, and top-p only for evaluation: it cuts off the tail, and the old log-probs would be those of a
distribution that was not sampled from.
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
    """Sampling parameters.

    Args:
        max_new_tokens: length limit of a completion in tokens.
        temperature: 0 is greedy, for evaluation.
        top_p: below 1, sample from the smallest set of tokens with this total probability (nucleus sampling,
            https://arxiv.org/abs/1904.09751). For evaluation only; `train` refuses it.

    Raises:
        ValueError: max_new_tokens < 1, temperature < 0, or top_p is outside (0, 1].
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

    Greedy samples have log-prob 0 and entropy 0: their distribution has one outcome.

    Args:
        prompt_ids: token ids of the P prompts.
        completion_ids: sampled token ids, padded on the right.
        mask: True up to and including the first end-of-sequence token; False on padding.
        log_probs: in nats, at the sampler's temperature; 0 outside the mask.
        entropies: in nats, of the full vocabulary at that temperature; 0 outside the mask. None if the engine
            does not provide them.
        texts: the tokens before the end-of-sequence token, decoded with special tokens, so that a verifier
            sees everything the policy wrote.
        finish_reasons: why each row ended.
    """

    prompt_ids: list[list[int]]
    completion_ids: Int[Tensor, "B T"]
    mask: Bool[Tensor, "B T"]
    log_probs: Float[Tensor, "B T"]
    entropies: Float[Tensor, "B T"] | None
    texts: list[str]
    finish_reasons: list[str]
    """per row "stop" (an end-of-sequence token was sampled) or "length" (cut at max_new_tokens)"""

    @property
    def num_samples(self) -> int:
        """Completions per prompt, n."""
        return len(self.texts) // len(self.prompt_ids)


@runtime_checkable
class Sampler(Protocol):
    """Generates `num_samples` completions for each of P prompts."""

    @property
    def policy(self) -> Policy:
        """The policy that is sampled from, with its prompt format."""
        ...

    @property
    def settings(self) -> SamplingSettings:
        """Sampling parameters; the loss uses the same temperature."""
        ...

    def sample(self, prompts: Sequence[Messages], num_samples: int) -> Samples:
        """P prompts -> P * num_samples completions, row-major by prompt."""
        ...

    def sync(self) -> None:
        """Use the policy's current weights; to be called after every change of the weights."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """The state that determines the next samples, except the weights; stored in checkpoints."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a `state_dict`."""
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
