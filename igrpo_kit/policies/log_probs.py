"""Log-probs of completions that are already written, with gradient: what the loss is made of.

Only the positions that predict a trained token reach the vocabulary head. And because the G completions
of a group share their prompt (for iGRPO q' = q + draft, the longer part), the prompt is encoded once per
group: the group is one sequence [q' | o_1 | ... | o_G] without padding between, in which positions restart
after q' and no completion sees another. Against one row per completion this computes the same numbers in
about half the time for the tiny policy, and the more so the longer the prompts.
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

_LOGITS_AT_ONCE = 1 << 26  # elements: 256 MB in float32; beyond it the head is recomputed in the backward
_RESCALED_LOGITS = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")


@dataclass(frozen=True)
class _Layout:
    """Sequences for the model, and which of their hidden states predicts which trained token."""

    ids: Int[Tensor, "rows L"]
    positions: Int[Tensor, "rows L"] | None
    bias: Float[Tensor, "rows 1 L L"] | None
    first: Int[Tensor, " B"]
    """Index into the flattened [rows * L] of each completion's first token."""
    before: Int[Tensor, " B"]
    """Index of the prompt's last token, which predicts the completion's first."""


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

    `prompt_ids` holds P prompts and rows i*G ... i*G + G-1 of the completions belong to prompt i, as in
    `Samples`; any subset of whole groups may be given. Differentiable in the model's parameters. `model`
    is a transformers causal LM in eval mode or without dropout, else the ratio to the sampler's log-probs
    is not 1. `shared_prefix=False` gives every completion a row of its own.

    Raises ValueError where rows and prompts do not match, or for `shared_prefix` on a model that cannot
    take a block mask (flash attention, sliding windows); NotImplementedError for a head that is more than
    one linear layer.
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
    scores = _head_log_probs(head, hidden.flatten(0, 1)[predicts], completion_ids[mask], temperature)
    return scores.new_zeros(mask.shape).masked_scatter(mask, scores)


def _padded_layout(
    prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], device: torch.device
) -> _Layout:
    """One row per completion, padded on the right: causal attention alone keeps padding out."""
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
    """One row per group: the prompt, then its completions end to end."""
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
    """Added to the attention scores: 0 on the prompt (block 0) and one's own block, as far as they lie
    behind; elsewhere the lowest number. Additive, because eager attention would *add* a Boolean mask."""
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
    """Log-probs of `ids`. Where the [M, V] logits are large: by chunks, made anew in the backward."""

    def score(hidden: Tensor, ids: Tensor) -> Tensor:
        return token_log_probs(head(hidden)[None], ids[None], temperature)[0]

    chunk = max(1, _LOGITS_AT_ONCE // head.weight.shape[0])
    if len(ids) <= chunk:
        return score(hidden, ids)
    pieces = zip(hidden.split(chunk), ids.split(chunk), strict=True)
    return torch.cat([checkpoint(score, *piece, use_reentrant=False) for piece in pieces])


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
