"""Per-token quantities from logits and token ids: masks, log-probs, entropy.

Equations: https://arxiv.org/abs/2602.09000. With a vocabulary of 150,000, a [B, T, V] tensor is the first to
exceed the memory. `token_log_probs` and `token_entropy` therefore process the B*T positions in chunks and
allocate no other tensor of that size, apart from the gradient of the logits.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_CHUNK_ELEMENTS = 1 << 22  # logits converted to float32 at a time: 16 MB


def completion_mask(completion_ids: Int[Tensor, "B T"], eos_id: int | Sequence[int]) -> Bool[Tensor, "B T"]:
    """True up to and including the first end-of-sequence token of each row.

    A row without one was cut at the length limit and is True throughout. The pad id is not used: many
    tokenizers pad with EOS, and a mask built from pad ids would then drop the EOS that ends the completion.

    Args:
        completion_ids: sampled token ids.
        eos_id: one or several ids (chat models end turns in more than one way).

    Raises:
        ValueError: no id is given.
    """
    eos_ids = [eos_id] if isinstance(eos_id, int) else list(eos_id)
    if not eos_ids:
        raise ValueError("eos_id: at least one end-of-sequence id is needed")
    is_eos = torch.isin(completion_ids, torch.tensor(eos_ids, device=completion_ids.device))
    ended_before = is_eos.cumsum(dim=1) - is_eos.long() > 0
    return ~ended_before


def _positions_per_chunk(vocabulary: int) -> int:
    return max(1, _CHUNK_ELEMENTS // vocabulary)


class _ChunkedLogProbs(torch.autograd.Function):
    """Gather from a log-softmax; forward and backward hold one chunk, not [positions, V], in float32."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, ids: Tensor, temperature: float) -> Tensor:
        log_normalizer = torch.empty(ids.shape, dtype=_at_least_float32(logits), device=ids.device)
        chosen = torch.empty_like(log_normalizer)
        step = _positions_per_chunk(logits.shape[1])
        for i in range(0, len(ids), step):
            scaled = logits[i : i + step].to(chosen.dtype) / temperature
            log_normalizer[i : i + step] = scaled.logsumexp(dim=-1)
            chosen[i : i + step] = scaled.gather(1, ids[i : i + step, None]).squeeze(1)
        ctx.save_for_backward(logits, ids, log_normalizer)
        ctx.temperature = temperature
        return chosen - log_normalizer

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        logits, ids, log_normalizer = ctx.saved_tensors
        out = torch.empty_like(logits)
        step = _positions_per_chunk(logits.shape[1])
        for i in range(0, len(ids), step):
            rows = slice(i, i + step)
            scaled = logits[rows].to(grad.dtype) / ctx.temperature
            weight = grad[rows, None] / ctx.temperature
            chunk = (scaled - log_normalizer[rows, None]).exp_().mul_(-weight)
            out[rows] = chunk.scatter_add_(1, ids[rows, None], weight)
        return out, None, None


def _at_least_float32(logits: Tensor) -> torch.dtype:
    return torch.promote_types(logits.dtype, torch.float32)


def _check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")


def token_log_probs(
    logits: Float[Tensor, "B T V"], ids: Int[Tensor, "B T"], temperature: float = 1.0
) -> Float[Tensor, "B T"]:
    """log softmax(logits / temperature) at the given ids, in nats (the log of the factors in Eq. 12).

    Differentiable in the logits. Half-precision logits are converted to float32.

    Args:
        logits: `logits[:, t]` must predict `ids[:, t]`; the caller shifts them.
        ids: token ids.
        temperature: that of the sampler; with another one the importance ratio is not 1 on-policy.

    Raises:
        ValueError: temperature <= 0.
    """
    _check_temperature(temperature)
    B, T, V = logits.shape
    flat: Callable[..., Tensor] = _ChunkedLogProbs.apply
    return flat(logits.reshape(B * T, V), ids.reshape(B * T), temperature).view(B, T)


def token_entropy(logits: Float[Tensor, "B T V"], temperature: float = 1.0) -> Float[Tensor, "B T"]:
    """Shannon entropy of softmax(logits / temperature) over the full vocabulary, in nats (Eq. 7).

    It is exact, not estimated from the sampled token. A token with logit -inf contributes 0. Computed without
    gradient, as a diagnostic.

    Raises:
        ValueError: temperature <= 0.
    """
    _check_temperature(temperature)
    B, T, V = logits.shape
    flat = logits.detach().reshape(B * T, V)
    out = torch.empty(B * T, dtype=_at_least_float32(logits), device=logits.device)
    step = _positions_per_chunk(V)
    for i in range(0, B * T, step):
        probabilities = (flat[i : i + step].to(out.dtype) / temperature).softmax(dim=-1)
        out[i : i + step] = torch.special.entr(probabilities).sum(dim=-1)  # entr(0) is 0, not NaN
    return out.view(B, T)


def masked_mean(x: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, ""]:
    """Mean of x over the True positions of the mask; other values are ignored, including NaN.

    Raises:
        ValueError: the mask is False everywhere.
    """
    if not mask.any():
        raise ValueError("mask: not a single True position to average over")
    return x.masked_fill(~mask, 0.0).sum() / mask.sum()
