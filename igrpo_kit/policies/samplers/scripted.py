"""A sampler with given completions, for lessons and tests in which every number must be known."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from igrpo_kit.core.prompts import PAPER_FORMAT, Messages, PromptFormat
from igrpo_kit.policies.policy import Policy
from igrpo_kit.policies.samplers.encoding import encode_prompts
from igrpo_kit.policies.samplers.sampler import Samples, SamplingSettings, check_request

_CHARACTER_EOS = 0  # no text contains the NUL character


class ScriptedSampler:
    """Returns the given `texts`, in the order in which rows are requested.

    The texts of one iGRPO step are prompt 0's N drafts, prompt 1's N drafts, ..., then prompt 0's G
    refinements, and so on.

    Args:
        texts: the completions.
        tokenizer: turns texts into token ids; without one, each character is a token (id = code point, 0 ends
            a sequence).
        log_probs: token log-probs of each text in nats, including the end-of-sequence token; by default 0, as
            the texts are certain.
        prompt_format: that of `policy`.

    Raises:
        ValueError: a text and its log-probs differ in length.
        RuntimeError: in `sample`, fewer texts are left than requested.
    """

    def __init__(
        self,
        texts: Sequence[str],
        tokenizer: Any = None,
        log_probs: Sequence[Sequence[float]] | None = None,
        *,
        prompt_format: PromptFormat = PAPER_FORMAT,
    ) -> None:
        self.policy = Policy("script", None, tokenizer, prompt_format)
        self.tokenizer = tokenizer
        self._texts = list(texts)
        self._ids = [self._encode(text) for text in texts]
        self._log_probs = log_probs or [[0.0] * len(ids) for ids in self._ids]
        for i, (ids, row) in enumerate(zip(self._ids, self._log_probs, strict=True)):
            if len(ids) != len(row):
                raise ValueError(f"log_probs[{i}] has {len(row)} entries for {len(ids)} tokens")
        self.settings = SamplingSettings(max_new_tokens=max(map(len, self._ids), default=1))
        self._next = 0

    def _encode(self, text: str) -> list[int]:
        if self.tokenizer is None:
            return [*map(ord, text), _CHARACTER_EOS]
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return [*ids, self.tokenizer.eos_token_id]

    def _encode_prompt(self, messages: Messages) -> list[int]:
        if self.tokenizer is None:
            return [ord(c) for message in messages for c in message["content"]]
        return encode_prompts(self.tokenizer, [messages])[0]

    def state_dict(self) -> dict[str, Any]:
        """Number of texts returned so far."""
        return {"next": self._next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a `state_dict`."""
        self._next = state["next"]

    def sync(self) -> None:
        """Does nothing: the texts do not depend on a model."""

    def sample(self, prompts: Sequence[Messages], num_samples: int) -> Samples:
        """The next len(prompts) * num_samples texts."""
        check_request(prompts, num_samples)
        start, stop = self._next, self._next + len(prompts) * num_samples
        if stop > len(self._texts):
            left = len(self._texts) - start
            raise RuntimeError(f"the script has {left} texts left, {stop - start} were asked for")
        self._next = stop
        ids = self._ids[start:stop]
        return Samples(
            prompt_ids=[self._encode_prompt(messages) for messages in prompts],
            completion_ids=_padded(ids, fill=ids[0][-1]),
            mask=_padded([[True] * len(row) for row in ids], fill=False),
            log_probs=_padded(self._log_probs[start:stop], fill=0.0),
            entropies=None,
            texts=self._texts[start:stop],
            finish_reasons=["stop"] * (stop - start),
        )


def _padded(rows: Sequence[Sequence[int | float]], fill: int | float) -> Tensor:
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=fill)
