"""A sampler that reads from a script: for lessons and tests, where every number must be known."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from igrpo_kit.core.prompts import PAPER_FORMAT, Messages, PromptFormat
from igrpo_kit.policies.policy import Policy
from igrpo_kit.policies.samplers.sampler import Samples, SamplingSettings, check_request

_CHARACTER_EOS = 0  # no text holds the NUL character


class ScriptedSampler:
    """Answers with the given `texts`, in the order the rows are asked for.

    The script of one iGRPO step is thus: prompt 0's N drafts, prompt 1's N drafts, ..., then prompt
    0's G refinements, and so on. Texts become token ids by `tokenizer`, without one by characters
    (id = code point, 0 ends a sequence). `log_probs` gives each text's token log-probs,
    end-of-sequence token included; without it they are 0, as a script has no chance in it.

    Raises ValueError where texts and log-probs disagree in length, RuntimeError when the script has
    fewer lines left than are asked for.
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
        return self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)

    def state_dict(self) -> dict[str, Any]:
        """How far the script has been read."""
        return {"next": self._next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self._next = state["next"]

    def sync(self) -> None:
        """Nothing to do: a script follows no policy."""

    def sample(self, prompts: Sequence[Messages], num_samples: int) -> Samples:
        """The next len(prompts) * num_samples lines of the script."""
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
