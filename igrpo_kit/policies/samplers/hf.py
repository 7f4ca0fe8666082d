"""Sampling from any Hugging Face causal language model, with log-probs and entropies recorded for training.

Each prompt is encoded once and its key-value cache expanded to its samples; completed rows leave the batch.
Log-probs and entropies come from the logits of generation, so on-policy training needs no second pass over
the completions.
"""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache

from igrpo_kit.core.prompts import Messages
from igrpo_kit.core.tokens import completion_mask
from igrpo_kit.policies.policy import Policy
from igrpo_kit.policies.samplers.encoding import (
    SeededSampler,
    collect_samples,
    encode_prompts,
    evaluating,
    left_pad,
    stop_ids,
)
from igrpo_kit.policies.samplers.llama import SmallLlamaDecoder, is_small_llama
from igrpo_kit.policies.samplers.sampler import Samples, SamplingSettings, check_request

_CHUNK_ELEMENTS = 1 << 22  # logits converted to float64 cumulative probabilities at a time: 32 MB
_COMPACT_BELOW = 0.75  # fraction of live rows below which it is faster to copy their cache


@runtime_checkable
class Decoder(Protocol):
    """A model with a cache: first the prompts, then one token per row and call; returns next-token logits."""

    def prefill(
        self, ids: Int[Tensor, "P T"], attention: Bool[Tensor, "P T"], num_samples: int
    ) -> Float[Tensor, "R V"]:
        """Encode P left-padded prompts, and expand each to `num_samples` rows."""
        ...

    def step(self, tokens: Int[Tensor, " R"]) -> Float[Tensor, "R V"]:
        """Append one token to every row."""
        ...

    def keep(self, rows: Int[Tensor, " kept"]) -> None:
        """Drop all other rows."""
        ...


class CachedDecoder:
    """`Decoder` for any transformers causal LM."""

    def __init__(self, model: Any) -> None:
        self.model, self.cache = model, DynamicCache(config=model.config)

    def prefill(
        self, ids: Int[Tensor, "P T"], attention: Bool[Tensor, "P T"], num_samples: int
    ) -> Float[Tensor, "R V"]:
        # Positions start at the first real token; those of padding are not used.
        positions = (attention.long().cumsum(dim=1) - 1).clamp(min=0)
        logits = self._logits(ids, attention, positions)
        self.cache.batch_repeat_interleave(num_samples)
        self.attention = attention.repeat_interleave(num_samples, dim=0)
        self.positions = positions[:, -1:].repeat_interleave(num_samples, dim=0)
        return logits.repeat_interleave(num_samples, dim=0)

    def step(self, tokens: Int[Tensor, " R"]) -> Float[Tensor, "R V"]:
        self.attention = pad(self.attention, (0, 1), value=True)
        self.positions = self.positions + 1
        return self._logits(tokens[:, None], self.attention, self.positions)

    def keep(self, rows: Int[Tensor, " kept"]) -> None:
        self.cache.batch_select_indices(rows)
        self.attention, self.positions = self.attention[rows], self.positions[rows]

    def _logits(self, ids: Tensor, attention: Tensor, positions: Tensor) -> Tensor:
        return self.model(
            input_ids=ids,
            attention_mask=attention,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]


def sample_tokens(
    logits: Float[Tensor, "R V"], temperature: float, generator: torch.Generator
) -> tuple[Int[Tensor, " R"], Float[Tensor, " R"], Float[Tensor, " R"]]:
    """Sample one token per row from softmax(logits / temperature).

    One uniform number per row is inverted through the cumulative probabilities. These are summed in float64:
    in float32, a sum of 150,000 terms would lose the rare tokens.

    Args:
        logits: next-token logits.
        temperature: 0 takes the argmax.
        generator: source of the random numbers.

    Returns:
        Token ids, their log-probs, and the entropies of the distributions (in nats), each of shape [R].
    """
    if temperature == 0:
        tokens = logits.argmax(dim=-1)
        chosen = logits.gather(1, tokens[:, None]).squeeze(1).float()
        certain = chosen - chosen  # 0, or NaN where a logit is not finite
        return tokens, certain, certain
    chunks = logits.split(max(1, _CHUNK_ELEMENTS // logits.shape[1]))
    parts = [_sample_chunk(chunk.float() / temperature, generator) for chunk in chunks]
    if len(parts) == 1:
        return parts[0]
    tokens, log_probs, entropies = (torch.cat(column) for column in zip(*parts, strict=True))
    return tokens, log_probs, entropies


def _sample_chunk(logits: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    log_probs = logits.log_softmax(dim=-1)
    probs = log_probs.exp()
    cumulative = probs.cumsum(dim=-1, dtype=torch.float64)
    uniform = torch.rand(len(logits), 1, dtype=torch.float64, device=logits.device, generator=generator)
    # right=True: the first entry above the uniform number, never a token of probability 0.
    tokens = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)
    tokens = tokens.clamp(max=logits.shape[1] - 1)  # the product may round up to the total
    # Clamped, a log-prob of -inf times its probability of 0 is 0; five times as fast as torch's entr.
    entropy = -(probs * log_probs.clamp(min=-200.0)).sum(dim=-1)
    return tokens.squeeze(1), log_probs.gather(1, tokens).squeeze(1), entropy


def keep_nucleus(logits: Float[Tensor, "R V"], temperature: float, top_p: float) -> Float[Tensor, "R V"]:
    """The logits with -inf outside the nucleus: the most probable tokens, up to the one that reaches top_p.

    Nucleus sampling: https://arxiv.org/abs/1904.09751.

    Args:
        logits: next-token logits.
        temperature: at which the probabilities are taken; 0 changes nothing.
        top_p: probability of the nucleus; 1 changes nothing.
    """
    if temperature == 0 or top_p == 1:
        return logits
    probs, order = (logits.float() / temperature).softmax(dim=-1).sort(dim=-1, descending=True)
    before = probs.cumsum(dim=-1, dtype=torch.float64) - probs  # probability of the more probable tokens
    outside = torch.zeros_like(order, dtype=torch.bool).scatter(1, order, before >= top_p)
    return logits.masked_fill(outside, -torch.inf)


class HFSampler(SeededSampler):
    """Samples from a policy with its current weights: training updates the same model object.

    Args:
        policy: the policy to sample from.
        settings: sampling parameters.
        seed: of `generator` (on the model's device), the only source of randomness.
        max_rows: maximum number of completions in the cache at once.

    Raises:
        ValueError: in `sample`, the tokenizer cannot encode a prompt.
        FloatingPointError: in `sample`, the model's logits are not finite.
    """

    def __init__(
        self, policy: Policy, settings: SamplingSettings, *, seed: int = 0, max_rows: int = 1024
    ) -> None:
        self.policy, self.settings, self.max_rows = policy, settings, max_rows
        self.model, self.tokenizer = policy.model, policy.tokenizer
        self.generator = torch.Generator(device=self.model.device).manual_seed(seed)
        self._stop_ids = stop_ids(self.model, self.tokenizer)

    # Not inference_mode: the loss uses the old log-probs, and autograd rejects inference tensors.
    @torch.no_grad()
    def sample(self, prompts: Sequence[Messages], num_samples: int) -> Samples:
        """P prompts -> P * num_samples completions, row-major by prompt."""
        check_request(prompts, num_samples)
        prompt_ids = encode_prompts(self.tokenizer, prompts)
        per_chunk = max(1, self.max_rows // num_samples)
        with evaluating(self.model):
            chunks = [
                self._sample(prompt_ids[i : i + per_chunk], num_samples)
                for i in range(0, len(prompt_ids), per_chunk)
            ]
        ids, log_probs, entropies = map(torch.cat, zip(*chunks, strict=True))
        return collect_samples(
            self.tokenizer,
            prompt_ids,
            ids,
            mask=completion_mask(ids, self._stop_ids),
            ended=torch.isin(ids, torch.tensor(self._stop_ids, device=ids.device)).any(dim=1).tolist(),
            log_probs=log_probs,
            entropies=entropies,
        )

    def sync(self) -> None:
        """Does nothing: the sampler uses the model that is trained."""

    def _sample(self, prompt_ids: list[list[int]], num_samples: int) -> tuple[Tensor, Tensor, Tensor]:
        """Ids, log-probs, and entropies [R, max_new_tokens]; values after a row's end are arbitrary."""
        decoder = self._decoder()
        logits = decoder.prefill(*left_pad(prompt_ids, self.model.device), num_samples)
        shape, device = (len(logits), self.settings.max_new_tokens), logits.device
        ids = torch.full(shape, self._stop_ids[0], device=device)
        log_probs, entropies = torch.zeros(shape, device=device), torch.zeros(shape, device=device)
        stop = torch.tensor(self._stop_ids, device=device)
        rows = torch.arange(len(ids), device=device)
        live = torch.ones_like(rows, dtype=torch.bool)
        for t in range(self.settings.max_new_tokens):
            logits = keep_nucleus(logits, self.settings.temperature, self.settings.top_p)
            tokens, log_probs[rows, t], entropies[rows, t] = sample_tokens(
                logits, self.settings.temperature, self.generator
            )
            ids[rows, t] = tokens
            live &= ~torch.isin(tokens, stop)
            num_live = int(live.sum())
            if num_live == 0 or t + 1 == self.settings.max_new_tokens:
                break
            if num_live < _COMPACT_BELOW * len(rows):
                kept = live.nonzero().squeeze(1)
                decoder.keep(kept)
                rows, tokens, live = rows[kept], tokens[kept], live[kept]
            logits = decoder.step(tokens)
        return ids, log_probs, entropies

    def _decoder(self) -> Decoder:
        if is_small_llama(self.model):
            return SmallLlamaDecoder(self.model, self.settings.max_new_tokens)
        return CachedDecoder(self.model)
