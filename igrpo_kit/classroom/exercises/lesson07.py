"""Exercises of lesson 07, one GPU."""

import numpy as np
import torch
from torch import Tensor

from igrpo_kit.classroom.exercise import Arguments, Exercise, FunctionCheck


def kv_cache_bytes(rows: int, tokens: int, layers: int, kv_heads: int, head_dim: int, width: int) -> int:
    """Keys and values of every layer for every token of every row, `width` bytes a number."""
    return 2 * layers * kv_heads * head_dim * width * tokens * rows


def _keys_only(rows: int, tokens: int, layers: int, kv_heads: int, head_dim: int, width: int) -> int:
    """Half of it: keys *and* values are kept."""
    return layers * kv_heads * head_dim * width * tokens * rows


def _one_layer(rows: int, tokens: int, layers: int, kv_heads: int, head_dim: int, width: int) -> int:
    """That is one layer's; every layer keeps its own."""
    return 2 * kv_heads * head_dim * width * tokens * rows


def _numbers(rows: int, tokens: int, layers: int, kv_heads: int, head_dim: int, width: int) -> int:
    """You count numbers; each takes `width` bytes."""
    return 2 * layers * kv_heads * head_dim * tokens * rows


def _one_row(rows: int, tokens: int, layers: int, kv_heads: int, head_dim: int, width: int) -> int:
    """That is one row's cache; all rows are sampled at once."""
    return 2 * layers * kv_heads * head_dim * width * tokens


def _random_shapes(rng: np.random.Generator) -> list[Arguments]:
    return [tuple(rng.integers(2, 9, 6).tolist()) for _ in range(3)]


_KV_CACHE_BYTES = FunctionCheck(
    reference=kv_cache_bytes,
    # SmolLM2-135M: 30 layers, 3 key-value heads of 64, two bytes a number: 23,040 bytes a token.
    typed=[((1, 1, 30, 3, 64, 2), 23_040), ((8, 100, 30, 3, 64, 2), 18_432_000)],
    random=_random_shapes,
    mistakes=[_keys_only, _one_layer, _numbers, _one_row],
)


def accumulated(values: Tensor, mask: Tensor, size: int) -> Tensor:
    """The token mean of the whole batch, summed up from micro-batches of `size` rows."""
    parts = zip(values.split(size), mask.split(size), strict=True)
    return sum(((v * m).sum() for v, m in parts), torch.tensor(0.0)) / mask.sum()


def _mean_of_means(values: Tensor, mask: Tensor, size: int) -> Tensor:
    """Still the bug: a micro-batch of few tokens weighs as much as one of many. Divide by *all* tokens."""
    parts = list(zip(values.split(size), mask.split(size), strict=True))
    return torch.stack([(v * m).sum() / m.sum() for v, m in parts]).mean()


def _sum_of_means(values: Tensor, mask: Tensor, size: int) -> Tensor:
    """A sum of means grows with the number of micro-batches; the batch has one mean."""
    parts = zip(values.split(size), mask.split(size), strict=True)
    return torch.stack([(v * m).sum() / m.sum() for v, m in parts]).sum()


def _padding_counted(values: Tensor, mask: Tensor, size: int) -> Tensor:
    """You divide by the number of entries, padding included; divide by the number of True in the mask."""
    return (values * mask).sum() / mask.numel()


def _random_batches(rng: np.random.Generator) -> list[Arguments]:
    lengths = torch.tensor(rng.permutation([1, 2, 4, 5]))[:, None]
    return [(torch.tensor(rng.normal(size=(4, 5))), torch.arange(5) < lengths, 2)]


_BUG_MICRO_BATCHES = FunctionCheck(
    reference=accumulated,
    typed=[
        (
            (
                torch.tensor([[4.0, 0.0, 0.0], [1.0, 1.0, 1.0]]),
                torch.tensor([[True, False, False], [True, True, True]]),
                1,
            ),
            1.75,
        ),
        ((torch.tensor([[-3.0, 9.0], [-1.0, -2.0]]), torch.tensor([[True, False], [True, True]]), 1), -2.0),
    ],
    random=_random_batches,
    mistakes=[_mean_of_means, _sum_of_means, _padding_counted],
)

EXERCISES = [
    Exercise("kv_cache_bytes", "07", "code", difficulty=2, minutes=8, verify=_KV_CACHE_BYTES),
    Exercise("bug_micro_batches", "07", "bug", difficulty=3, minutes=12, verify=_BUG_MICRO_BATCHES),
]
