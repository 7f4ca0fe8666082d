"""A policy: a causal language model, its tokenizer, and how it is asked."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from igrpo_kit.core.prompts import PromptFormat, VerdictFormat

DRAFT_BEFORE = PromptFormat(system=None, refinement="<d>{draft}</d>{question}")
"""Ours: the answer stands as far from the question as without a draft, which helps q' -> q transfer."""
DRAFT_AFTER = PromptFormat(system=None, refinement="{question}<d>{draft}</d>")
"""The paper's order, Concat(q, draft) (Eq. 3), without its words."""

TINY_VERDICTS = VerdictFormat(PromptFormat(system=None, refinement="{question}={draft}"), "1", "0")
"""Is 3*7+5 an answer to 3,7,5:26? Only `tiny-verdicts` knows; no Countdown question or answer has a `=`."""

FORMAT_FILE = "prompt_format.json"


@dataclass(frozen=True)
class Policy:
    """What is trained and what is needed to ask it."""

    name: str
    model: Any
    """a transformers causal language model"""
    tokenizer: Any
    """its fast tokenizer, with a chat template"""
    prompt_format: PromptFormat

    def save(self, folder: str | Path) -> None:
        """Write model (safetensors), tokenizer and prompt format, to be read by `load_policy`."""
        self.model.save_pretrained(folder, safe_serialization=True)
        self.tokenizer.save_pretrained(folder)
        (Path(folder) / FORMAT_FILE).write_text(json.dumps(asdict(self.prompt_format), indent=1) + "\n")
