"""Log-probs of given completions, with gradient, as the loss needs them.

Equations: https://arxiv.org/abs/2602.09000. Only the positions that predict a trained token pass through the
vocabulary head. The G completions of a group share their prompt (for iGRPO q' = q + draft, the longer part),
so the prompt is encoded once per group: the group is one sequence [q' | o_1 | ... | o_G] without padding
between its parts, in which positions restart after q' and no completion attends to another. The results are
the same as with one row per completion. The tiny policy needs about half the time, and longer prompts save
more.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from igrpo_kit.core.tokens import token_log_probs

_LOGITS_AT_ONCE = 1 << 26  # 256 MB in float32; above it, the backward pass recomputes the head
_RESCALED_LOGITS = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")


@dataclass(frozen=True)
class _Layout:
    """Input sequences, and the hidden states that predict the trained tokens."""

    ids: Int[Tensor, "rows L"]
    positions: Int[Tensor, "rows L"] | None
    bias: Float[Tensor, "rows 1 L L"] | None
    first: Int[Tensor, " B"]
    """index of each completion's first token in the flattened [rows * L]"""
    before: Int[Tensor, " B"]
    """index of the prompt's last token, which predicts the completion's first"""


def completion_log_probs(
    model: Any,
    prompt_ids: Sequence[Sequence[int]],
    completion_ids: Int[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    temperature: float = 1.0,
    *,
    shared_prefix: bool = True,
) -> Float[Tensor, "B T"]:
    """log pi(o_t | prompt, o_<t) at the sampler's temperature (Eq. 20's numerator), 0 outside the mask.

    Differentiable in the model's parameters; in nats.

    Args:
        model: a transformers causal LM, in eval mode or without dropout; otherwise the ratio to the sampler's
            log-probs is not 1.
        prompt_ids: P prompts. Rows i*G ... i*G + G-1 of the completions belong to prompt i, as in `Samples`;
            any subset of whole groups may be given.
        completion_ids: the sampled tokens.
        mask: True for trained tokens.
        temperature: that of the sampler.
        shared_prefix: False gives each completion its own row.

    Raises:
        ValueError: rows and prompts do not match, or `shared_prefix` is True for a model that does not accept
            a block mask (flash attention, sliding windows).
        NotImplementedError: the head is more than one linear layer.
    """
    _check(model, prompt_ids, completion_ids, mask)
    group_size = len(completion_ids) // len(prompt_ids)
    lengths = (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).amax(dim=1).tolist()
    completions = [row[:n] for row, n in zip(completion_ids.tolist(), lengths, strict=True)]
    if shared_prefix and group_size > 1:
        _check_takes_block_mask(model.config)
        groups = [completions[i : i + group_size] for i in range(0, len(completions), group_size)]
        layout = _shared_layout(prompt_ids, groups, mask.device, next(model.parameters()).dtype)
    else:
        repeated = [prompt for prompt in prompt_ids for _ in range(group_size)]
        layout = _padded_layout(repeated, completions, mask.device)
    hidden = model.get_decoder()(
        input_ids=layout.ids, attention_mask=layout.bias, position_ids=layout.positions, use_cache=False
    ).last_hidden_state
    row, t = mask.nonzero(as_tuple=True)
    predicts = torch.where(t == 0, layout.before[row], layout.first[row] + t - 1)
    head = model.get_output_embeddings()
    log_probs = _head_log_probs(head, hidden.flatten(0, 1)[predicts], completion_ids[mask], temperature)
    return log_probs.new_zeros(mask.shape).masked_scatter(mask, log_probs)


def _padded_layout(
    prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], device: torch.device
) -> _Layout:
    """One row per completion, padded on the right; causal attention excludes the padding."""
    rows = [[*prompt, *completion] for prompt, completion in zip(prompts, completions, strict=True)]
    ids = _right_pad(rows, 0, device)
    starts = torch.arange(len(rows), device=device) * ids.shape[1]
    first = starts + torch.tensor([len(prompt) for prompt in prompts], device=device)
    return _Layout(ids, None, None, first, first - 1)


def _shared_layout(
    prompts: Sequence[Sequence[int]],
    groups: Sequence[Sequence[Sequence[int]]],
    device: torch.device,
    dtype: torch.dtype,
) -> _Layout:
    """One row per group: the prompt, then its completions one after another."""
    ids, positions, blocks, first = [], [], [], []
    for prompt, group in zip(prompts, groups, strict=True):
        spans = [range(len(prompt), len(prompt) + len(completion)) for completion in group]
        ids.append([*prompt, *(token for completion in group for token in completion)])
        positions.append([*range(len(prompt)), *(position for span in spans for position in span)])
        blocks.append([0] * len(prompt) + [g for g, span in enumerate(spans, start=1) for _ in span])
        first.append(list(accumulate(map(len, group[:-1]), initial=len(prompt))))
    padded = _right_pad(ids, 0, device)
    starts = torch.arange(len(prompts), device=device)[:, None] * padded.shape[1]
    prompt_lengths = torch.tensor([[len(prompt)] for prompt in prompts], device=device)
    return _Layout(
        ids=padded,
        positions=_right_pad(positions, 0, device),
        bias=_block_bias(_right_pad(blocks, -1, device), dtype),
        first=(starts + torch.tensor(first, device=device)).flatten(),
        before=(starts + prompt_lengths - 1).expand(-1, len(groups[0])).flatten(),
    )


def _block_bias(blocks: Int[Tensor, "P L"], dtype: torch.dtype) -> Float[Tensor, "P 1 L L"]:
    """Additive attention bias: 0 for earlier positions of the prompt and of the same block, else the minimum.

    The prompt is block 0. The bias is not Boolean, because eager attention would *add* a Boolean mask.
    """
    L = blocks.shape[1]
    seen = (blocks[:, :, None] == blocks[:, None]) | (blocks[:, None] == 0)
    seen &= torch.ones(L, L, dtype=torch.bool, device=blocks.device).tril()
    bias = torch.zeros(seen.shape, dtype=dtype, device=blocks.device)
    return bias.masked_fill_(~seen, torch.finfo(dtype).min)[:, None]


def _right_pad(rows: Sequence[Sequence[int]], fill: int, device: torch.device) -> Int[Tensor, "rows L"]:
    width = max(map(len, rows))
    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows], device=device)


def _head_log_probs(
    head: Any, hidden: Float[Tensor, "M D"], ids: Int[Tensor, " M"], temperature: float
) -> Float[Tensor, " M"]:
    """Log-probs of `ids`; large [M, V] logits are computed in chunks, and again in the backward pass."""

    def log_probs_of(hidden: Tensor, ids: Tensor) -> Tensor:
        return token_log_probs(head(hidden)[None], ids[None], temperature)[0]

    chunk = max(1, _LOGITS_AT_ONCE // head.weight.shape[0])
    if len(ids) <= chunk:
        return log_probs_of(hidden, ids)
    pieces = zip(hidden.split(chunk), ids.split(chunk), strict=True)
    return torch.cat([checkpoint(log_probs_of, *piece, use_reentrant=False) for piece in pieces])


def _check(model: Any, prompt_ids: Sequence[Sequence[int]], completion_ids: Tensor, mask: Tensor) -> None:
    B, P = len(completion_ids), len(prompt_ids)
    if P == 0 or B == 0 or B % P:
        raise ValueError(f"completion_ids: {B} rows cannot be shared out evenly among {P} prompts")
    if mask.shape != completion_ids.shape:
        raise ValueError(f"mask: shape {tuple(mask.shape)}, completion_ids {tuple(completion_ids.shape)}")
    for i, prompt in enumerate(prompt_ids):
        if not len(prompt):
            raise ValueError(f"prompt_ids[{i}] is empty: nothing predicts the first completion token")
    for name in _RESCALED_LOGITS:
        if getattr(model.config, name, None) not in (None, 1, 1.0):
            raise NotImplementedError(f"{type(model).__name__} rescales its logits ({name})")


def _check_takes_block_mask(config: Any) -> None:
    attention = config._attn_implementation
    if attention not in ("sdpa", "eager"):
        raise ValueError(f"shared_prefix: needs sdpa or eager attention, the model uses {attention}")
    kinds = set(getattr(config, "layer_types", None) or []) - {"full_attention"}
    if kinds or getattr(config, "sliding_window", None):
        raise ValueError(f"shared_prefix: every layer must attend fully, the model has {kinds or 'a window'}")
