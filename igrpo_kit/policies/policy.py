"""A policy: a causal language model, its tokenizer, and its prompt format.

Equations: https://arxiv.org/abs/2602.09000.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from igrpo_kit.core.prompts import Messages, PromptFormat, VerdictFormat


@dataclass(frozen=True)
class ShiftedFormat(PromptFormat):
    """A control: q' shows the question with its digits shifted, so that q and q' share no piece of it.

    What is learned about a digit on q' then says nothing about that digit on q.
    """

    shift: int
    """added to each digit of the question, modulo 10, in q' alone"""

    def refinement_messages(self, question: str, draft: str, **options: Any) -> Messages:
        """See the class and `PromptFormat.refinement_messages`."""
        shifted = "".join(str((int(c) + self.shift) % 10) if c.isdecimal() else c for c in question)
        return super().refinement_messages(shifted, draft, **options)


DRAFT_BEFORE = PromptFormat(system=None, refinement="<d>{draft}</d>{question}")
"""Ours: the answer is as far from the question as without a draft, which helps transfer from q' to q."""
DRAFT_AFTER = PromptFormat(system=None, refinement="{question}<d>{draft}</d>")
"""The paper's order, Concat(q, draft) (Eq. 3), without its wording."""

SHIFTED = ShiftedFormat(system=None, refinement="<d>{draft}</d>|{question}", shift=5)

TINY_VERDICTS = VerdictFormat(PromptFormat(system=None, refinement="{question}={draft}"), "1", "0")
"""Is 3*7+5 an answer to 3,7,5:26? Only `tiny-verdicts` is trained on this; no Countdown text has a `=`."""

FORMAT_FILE = "prompt_format.json"


@dataclass(frozen=True)
class Policy:
    """The model that is trained, and what is needed to prompt it."""

    name: str
    model: Any
    """a transformers causal language model"""
    tokenizer: Any
    """its fast tokenizer, with a chat template"""
    prompt_format: PromptFormat

    def save(self, folder: str | Path) -> None:
        """Write model (safetensors), tokenizer, and prompt format, to be read by `load_policy`."""
        self.model.save_pretrained(folder, safe_serialization=True)
        self.tokenizer.save_pretrained(folder)
        (Path(folder) / FORMAT_FILE).write_text(json.dumps(asdict(self.prompt_format), indent=1) + "\n")
