"""Shared by the samplers: from chats to token ids, and from sampled ids to `Samples`."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from igrpo_kit.core.prompts import Messages
from igrpo_kit.policies.samplers.sampler import Samples


def stop_ids(model: Any, tokenizer: Any) -> list[int]:
    """All ids that end a completion; chat models have different tokens for the end of a turn and of a text.

    Raises:
        ValueError: neither the model's generation config nor the tokenizer has one.
    """
    configured = getattr(model.generation_config, "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    found = sorted({i for i in [*ids, tokenizer.eos_token_id] if i is not None})
    if not found:
        raise ValueError("eos_token_id: neither generation config nor tokenizer has one")
    return found


def encode_prompts(tokenizer: Any, prompts: Sequence[Messages]) -> list[list[int]]:
    """Token ids of each chat, up to the beginning of the assistant's turn.

    If the last message is the assistant's, it is the beginning of the completion, which is to be continued.

    Raises:
        ValueError: the tokenizer cannot encode a prompt (the message names it).
    """
    try:
        return _encode(tokenizer, list(prompts))
    except Exception as cause:
        for i, messages in enumerate(prompts):
            try:
                _encode(tokenizer, [messages])
            except Exception as error:
                raise ValueError(f"prompts[{i}] cannot be encoded ({error}): {messages}") from error
        raise cause


def _encode(tokenizer: Any, prompts: list[Messages]) -> list[list[int]]:
    asked = [chat[:-1] if chat[-1]["role"] == "assistant" else chat for chat in prompts]
    rows = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    for row, chat in zip(rows, prompts, strict=True):
        if chat[-1]["role"] == "assistant":
            row += tokenizer(chat[-1]["content"], add_special_tokens=False).input_ids
    return rows


def encode_answers(
    tokenizer: Any, answers: Sequence[str], device: torch.device
) -> tuple[Int[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """Ids [B, T] of given answers, each with an end-of-sequence token, and the mask of these tokens."""
    rows = tokenizer([a + tokenizer.eos_token for a in answers], add_special_tokens=False).input_ids
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    return ids, torch.arange(width, device=device) < lengths[:, None]


def left_pad(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ragged rows -> ids [P, T], and attention [P, T], True on tokens. The padding id is arbitrary."""
    width = max(map(len, rows))
    ids = [[0] * (width - len(row)) + list(row) for row in rows]
    attention = [[False] * (width - len(row)) + [True] * len(row) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(attention, device=device)


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Switch dropout off within the block: it would change the distribution that is sampled and recorded."""
    was_training = model.training
    if was_training:  # eval() visits every module, which takes about 1 ms
        model.eval()
    try:
        yield
    finally:
        if was_training:
            model.train()


def collect_samples(
    tokenizer: Any,
    prompt_ids: list[list[int]],
    ids: Int[Tensor, "B T"],
    *,
    mask: Bool[Tensor, "B T"],
    ended: Sequence[bool],
    log_probs: Float[Tensor, "B T"],
    entropies: Float[Tensor, "B T"] | None,
) -> Samples:
    """`Samples` from sampled token ids.

    Args:
        tokenizer: decodes the completions.
        prompt_ids: token ids of the prompts.
        ids: sampled token ids; those outside the mask are arbitrary.
        mask: True up to the end of each completion, including a stop id.
        ended: whether the last token in each row's mask is a stop id.
        log_probs: in nats.
        entropies: in nats, or None.

    Raises:
        FloatingPointError: a log-prob inside the mask is not finite.
    """
    if not log_probs[mask].isfinite().all():
        raise FloatingPointError("the policy's logits are NaN or infinite")
    lengths = mask.sum(dim=1).tolist()
    width = max(lengths)
    before_end = [
        row[: length - 1] if stopped else row[:length]
        for row, length, stopped in zip(ids.tolist(), lengths, ended, strict=True)
    ]
    return Samples(
        prompt_ids=prompt_ids,
        completion_ids=ids[:, :width].clone(),
        mask=mask[:, :width].clone(),
        log_probs=log_probs.masked_fill(~mask, 0.0)[:, :width],
        entropies=None if entropies is None else entropies.masked_fill(~mask, 0.0)[:, :width],
        texts=tokenizer.batch_decode(before_end, clean_up_tokenization_spaces=False),
        finish_reasons=["stop" if stopped else "length" for stopped in ended],
    )


class SeededSampler:
    """A sampler whose only source of randomness is its `generator`."""

    generator: torch.Generator

    def state_dict(self) -> dict[str, Any]:
        """The generator's state; the same state and weights give the same next samples."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a `state_dict`."""
        self.generator.set_state(state["generator"])
