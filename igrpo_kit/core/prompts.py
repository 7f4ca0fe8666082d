"""Chat messages for a question, and for a question with a draft.

The paper (https://arxiv.org/abs/2602.09000) prints its system prompt (appendix C) and says that the best
draft is appended "immediately after the original prompt" (Eqs. 3, 10) by "a fixed prompt template", which it
does not print. Our template puts the draft in the *user* turn, after the question, between `<draft>` tags:
the draft is part of the input, not a turn of the assistant, so no mask or parser can mistake it for an
answer.

A draft is untrusted text. It must not be able to end its slot or start a turn, so special tokens and the
slot's own tags are broken up before it is inserted (`neutralize`).
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

Messages = list[dict[str, str]]

SYSTEM_PROMPT = (
    "You are a helpful AI Assistant that provides well-reasoned and detailed responses. First think "
    "through your reasoning as an internal monologue, then give the answer: "
    "<think>...</think><answer>...</answer>. If the prompt contains feedback or a prior draft, treat it as "
    "guidance, not as ground truth. Use it to produce a strictly improved final answer: fix mistakes, fill "
    "gaps, strengthen justification, and improve clarity. Do not repeat the draft verbatim. If the feedback "
    "is wrong or incomplete, correct it and proceed."
)
"""The paper's training prompt, verbatim (appendix C; CC BY-SA 4.0, https://arxiv.org/abs/2602.09000)."""

# Special tokens of the chat formats in use: <|im_end|>, <｜end▁of▁sentence｜>, </s>, [INST],
# <start_of_turn>, and the tags of our own slot. The tokenizer's own list is added if it is known.
_MARKERS = re.compile(
    r"<[|｜][^<>|｜]*[|｜]>"
    r"|</?(?:s|bos|eos|pad|unk|mask|d|a|draft|start_of_turn|end_of_turn)\b[^<>]*>"
    r"|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\]"
    r"|<</?SYS>>",
    re.IGNORECASE,
)


def neutralize(text: str, special_tokens: Iterable[str] = ()) -> str:
    """The same text with a space after the first character of every special token and slot tag.

    `<|im_end|>` becomes `< |im_end|>`: still readable, no longer a token. Nothing is deleted, so breaking one
    marker cannot join the pieces of another.

    Args:
        text: any text.
        special_tokens: those of the tokenizer in use, in addition to the common formats known here.
    """
    alternatives = [re.escape(t) for t in sorted(special_tokens, key=len, reverse=True) if t.strip()]
    pattern = re.compile("|".join([_MARKERS.pattern, *alternatives]), re.IGNORECASE)
    # The lookahead also finds overlapping markers: each is broken where it starts.
    return re.sub(f"(?=(?:{pattern.pattern}))(.)", r"\1 ", text, flags=re.IGNORECASE | re.DOTALL)


def keep_last_tokens(text: str, max_tokens: int, tokenizer: Any) -> str:
    """The end of `text` that fits into `max_tokens` tokens; the answer of a draft is at its end.

    The text is cut at a character boundary that the tokenizer reports, so no character is split.

    Args:
        text: any text.
        max_tokens: length limit in tokens.
        tokenizer: a fast Hugging Face tokenizer.

    Raises:
        ValueError: max_tokens < 0.
    """
    if max_tokens < 0:
        raise ValueError(f"max_tokens must be >= 0, got {max_tokens}")
    while True:
        offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        excess = len(offsets) - max_tokens
        if excess <= 0:
            return text
        # The cut can change how the first characters are tokenized, so the result is counted again. A
        # byte-level token may share its character with the previous token: the cut then moves past it.
        start = offsets[excess][0] if excess < len(offsets) else len(text)
        text = text[max(start, 1) :]


@dataclass(frozen=True)
class PromptFormat:
    """How a policy is prompted: the system prompt, and the place of question and draft in the user turn.

    Args:
        system: system prompt, or None.
        refinement: user turn with the placeholders {question} and {draft}. The question is inserted in full.

    Raises:
        ValueError: a placeholder is missing or repeated.
    """

    system: str | None
    refinement: str

    def __post_init__(self) -> None:
        for name in ("{question}", "{draft}"):
            if self.refinement.count(name) != 1:
                raise ValueError(f"refinement: needs {name} exactly once, got {self.refinement!r}")

    def problem_messages(self, question: str) -> Messages:
        """Chat messages for q. Raises ValueError if the question is empty."""
        if not question.strip():
            raise ValueError("question: empty")
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*system, {"role": "user", "content": question}]

    def refinement_messages(
        self, question: str, draft: str, *, max_draft_tokens: int | None = None, tokenizer: Any = None
    ) -> Messages:
        """Chat messages for q' = Concat(q, draft) (Eq. 3).

        The draft is neutralized and then cut at its start to `max_draft_tokens`; the question is never cut.

        Args:
            question: q.
            draft: the draft's text.
            max_draft_tokens: length limit of the draft in tokens, or None.
            tokenizer: its special tokens are neutralized too; required with `max_draft_tokens`.

        Raises:
            ValueError: the question is empty, or `max_draft_tokens` is given without a tokenizer.
        """
        draft = neutralize(draft, () if tokenizer is None else special_tokens(tokenizer))
        if max_draft_tokens is not None:
            if tokenizer is None:
                raise ValueError("max_draft_tokens: counting tokens needs a tokenizer")
            draft = keep_last_tokens(draft, max_draft_tokens, tokenizer)
        before, after = self.refinement.split("{draft}")
        messages = self.problem_messages(question)
        messages[-1]["content"] = (
            before.replace("{question}", question) + draft + after.replace("{question}", question)
        )
        return messages


@dataclass(frozen=True)
class VerdictFormat:
    """How a policy is asked whether an answer is correct, and the two words it may reply with."""

    prompt: PromptFormat
    """its {draft} is the answer to be checked"""
    correct: str
    incorrect: str


def special_tokens(tokenizer: Any) -> list[str]:
    """All strings that a Hugging Face tokenizer turns into special tokens, including those added later."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    return sorted({*tokenizer.all_special_tokens, *(t.content for t in added if t.special)})


PAPER_FORMAT = PromptFormat(
    system=SYSTEM_PROMPT, refinement="{question}\n\nA prior draft:\n<draft>\n{draft}\n</draft>"
)
"""The paper's system prompt and order (q, then the draft); the wording around the draft is ours."""

problem_messages = PAPER_FORMAT.problem_messages
refinement_messages = PAPER_FORMAT.refinement_messages
"""Chat messages for q and for q' in the paper's format."""
