"""Decoding for small Llama models on CPU, where the overhead of Python modules exceeds the arithmetic.

The computation and weights are those of transformers' `LlamaForCausalLM`, with fewer operations: q, k, and v
in one product (gate and up too), RoPE as one complex multiplication, and a cache that is written in place.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import embedding, linear, pad, rms_norm, scaled_dot_product_attention, silu
from transformers import LlamaForCausalLM

_SMALL = 20_000_000
"""Number of parameters above which the arithmetic dominates and a second copy of the weights is large"""

_FEWEST_SLOTS = 16
"""Minimum number of cache slots to read, even if fewer are written: torch is slow for smaller products"""


def is_small_llama(model: Any) -> bool:
    """True for an unmodified float32 `LlamaForCausalLM` on CPU with few parameters.

    False for subclasses, adapters, biases, hooks, or a RoPE that depends on the length.
    """
    return (
        type(model) is LlamaForCausalLM
        and sum(p.numel() for p in model.parameters()) <= _SMALL
        and all(p.dtype == torch.float32 and p.device.type == "cpu" for p in model.parameters())
        and model.model.rotary_emb.rope_type == "default"
        and model.config.hidden_act == "silu"
        and not (model.config.attention_bias or model.config.mlp_bias)
        and not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
        and all(type(m) is nn.Linear for m in model.modules() if isinstance(m, nn.Linear))
    )


@dataclass(frozen=True)
class _Layer:
    """Weights of one layer; those applied to the same input are concatenated."""

    attention_norm: Tensor
    qkv: Tensor
    output: Tensor
    mlp_norm: Tensor
    gate_up: Tensor
    down: Tensor


def _adjacent_pairs(weight: Float[Tensor, "rows D"], head_dim: int) -> Float[Tensor, "rows D"]:
    """Rows i and i + head_dim/2 of each head side by side: RoPE's pairs as complex numbers.

    q and k are reordered in the same way, so their dot products do not change.
    """
    halves = weight.view(-1, 2, head_dim // 2, weight.shape[1])
    return halves.transpose(1, 2).reshape(weight.shape)


def _joined(layer: Any, head_dim: int) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    q = _adjacent_pairs(attention.q_proj.weight, head_dim)
    k = _adjacent_pairs(attention.k_proj.weight, head_dim)
    return _Layer(
        attention_norm=layer.input_layernorm.weight,
        qkv=torch.cat([q, k, attention.v_proj.weight]),
        output=attention.o_proj.weight,
        mlp_norm=layer.post_attention_layernorm.weight,
        gate_up=torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]),
        down=mlp.down_proj.weight,
    )


def _causal_bias(attention: Bool[Tensor, "P T"]) -> Float[Tensor, "P 1 T T"]:
    """0 where a token may attend, else -inf; padding attends to itself, or its softmax would be NaN."""
    T = attention.shape[1]
    seen = attention[:, None, None] & torch.ones(T, T, dtype=torch.bool).tril()
    seen = seen | torch.eye(T, dtype=torch.bool)
    return torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)


class SmallLlamaDecoder:
    """`hf.Decoder` for the models that `is_small_llama` accepts, with their current weights.

    The positions of a row are its slots in the left-padded batch. RoPE is relative, so this differs only by
    rounding from positions that start at the row's first token.
    """

    def __init__(self, model: Any, max_new_tokens: int) -> None:
        config, self.body, self.head = model.config, model.model, model.lm_head.weight
        self.eps, self.heads = config.rms_norm_eps, config.num_attention_heads
        self.kv_heads, self.head_dim = config.num_key_value_heads, model.model.layers[0].self_attn.head_dim
        self.layers = [_joined(layer, self.head_dim) for layer in self.body.layers]
        self.max_new_tokens, self.length = max_new_tokens, 0
        self.cache: list[Float[Tensor, "2 R kv slots d"]] = []
        self.bias: Float[Tensor, "R kv 1 slots"]  # -inf on padding and on slots not yet written

    def prefill(
        self, ids: Int[Tensor, "P T"], attention: Bool[Tensor, "P T"], num_samples: int
    ) -> Float[Tensor, "R V"]:
        P, T = ids.shape
        slots = T + self.max_new_tokens
        angles = self.body.rotary_emb.inv_freq * torch.arange(slots)[:, None]
        self.rotation = torch.polar(torch.ones_like(angles), angles)
        self.cache = [torch.empty(2, P, self.kv_heads, T, self.head_dim) for _ in self.layers]
        self.bias = torch.full((P, self.kv_heads, 1, slots), -torch.inf)
        self.bias[..., :T].masked_fill_(attention[:, None, None], 0.0)
        logits = self._logits(ids, None if attention.all() else _causal_bias(attention))
        copies = [kv[:, :, None].expand(-1, -1, num_samples, -1, -1, -1) for kv in self.cache]
        self.cache = [pad(kv, (0, 0, 0, self.max_new_tokens)).flatten(1, 2) for kv in copies]
        self.bias = self.bias.repeat_interleave(num_samples, dim=0)
        return logits.repeat_interleave(num_samples, dim=0)

    def step(self, tokens: Int[Tensor, " R"]) -> Float[Tensor, "R V"]:
        self.bias[..., self.length] = 0.0
        return self._logits(tokens[:, None], None)

    def keep(self, rows: Int[Tensor, " kept"]) -> None:
        self.cache = [kv[:, rows] for kv in self.cache]
        self.bias = self.bias[rows]

    def _logits(
        self, ids: Int[Tensor, "R T"], causal_bias: Float[Tensor, "R 1 T T"] | None
    ) -> Float[Tensor, "R V"]:
        """Append T tokens to every row; returns the logits of the next token."""
        R, T = ids.shape
        written, self.length = slice(self.length, self.length + T), self.length + T
        x = embedding(ids, self.body.embed_tokens.weight)
        for layer, cache in zip(self.layers, self.cache, strict=True):
            heads = linear(self._norm(x, layer.attention_norm), layer.qkv).view(R, T, -1, self.head_dim)
            turning = heads[:, :, : self.heads + self.kv_heads].unflatten(-1, (-1, 2))
            torch.view_as_complex(turning).mul_(self.rotation[written, None])
            q, k, v = heads.transpose(1, 2).split([self.heads, self.kv_heads, self.kv_heads], dim=1)
            cache[0][:, :, written], cache[1][:, :, written] = k, v
            if layer is self.layers[-1]:  # the remaining operations need only the last token
                x, q = x[:, -1:], q[:, :, -1:]
            out = self._look_back(q, cache) if q.shape[2] == 1 else self._look_around(q, k, v, causal_bias)
            x = x + linear(out.transpose(1, 2).flatten(2), layer.output)
            gate, up = linear(self._norm(x, layer.mlp_norm), layer.gate_up).chunk(2, dim=-1)
            x = x + linear(silu(gate).mul_(up), layer.down)
        return linear(self._norm(x[:, 0], self.body.norm.weight), self.head)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return rms_norm(x, weight.shape, weight, self.eps)

    def _look_around(
        self, q: Tensor, k: Tensor, v: Tensor, causal_bias: Tensor | None
    ) -> Float[Tensor, "P heads T d"]:
        """Attention within the prompts."""
        grouped, causal = self.heads != self.kv_heads, causal_bias is None
        return scaled_dot_product_attention(
            q, k, v, attn_mask=causal_bias, is_causal=causal, enable_gqa=grouped
        )

    def _look_back(
        self, q: Float[Tensor, "R heads 1 d"], cache: Float[Tensor, "2 R kv slots d"]
    ) -> Float[Tensor, "R heads 1 d"]:
        """Attention of one token to the cache.

        Two batched products, which at this size are twice as fast as the fused kernel.
        """
        slots = min(max(self.length, _FEWEST_SLOTS), cache.shape[3])
        keys, values = cache[:, :, :, :slots].flatten(1, 2)
        queries = q.reshape(len(keys), -1, self.head_dim)
        bias = self.bias[..., :slots].flatten(0, 1)
        scores = torch.baddbmm(bias, queries, keys.transpose(1, 2), alpha=self.head_dim**-0.5)
        return torch.bmm(scores.softmax(dim=-1), values).view(q.shape)
