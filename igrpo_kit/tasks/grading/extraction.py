r"""Extraction of the answer from a completion.

**The answer** (`extract_answer`) is the content of the last `\boxed{...}` or `\fbox{...}`, else of the last
`<answer>...</answer>`.

- The text after the last `</think>` is searched first; the whole text is searched only if no answer begins
  there. A box in the reasoning, such as that of a quoted draft, does not hide a later `<answer>18</answer>`.
- Otherwise a box takes precedence over a tag, whether it is inside the tag, before it, or after it.
- The last box is the one that begins last; of nested boxes, this is the inner one. Braces are matched as in
  TeX, so `\{` does not count. `\boxed` without a brace is not a box.
- If the answer that begins last is not finished, as in a truncated completion, there is no answer: there is
  no fallback to an earlier answer, nor from a box to a tag. The same holds if it is empty.
- The full content is graded, except for surrounding white space, `$`, `\(...\)`, `\[...\]` or `**...**`, and
  a final period. So "18 dollars" is not 18.
"""

import re

_BOX = re.compile(r"\\(?:boxed|fbox)\s*+\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)


def last_box(text: str) -> tuple[bool, str]:
    """Whether a box begins in the text, and the content of the last one; empty if it is not closed."""
    box = None
    for box in _BOX.finditer(text):  # noqa: B007
        pass
    if box is None:
        return False, ""
    depth = 1
    for brace in _BRACE.finditer(text, box.end()):
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)
        if depth == 0:
            return True, text[box.end() : brace.start()]
    return True, ""


def _last_tag(text: str) -> tuple[bool, str]:
    """The same for `<answer>`."""
    _, begun, rest = text.rpartition("<answer>")
    content, closed, _ = rest.partition("</answer>")
    return bool(begun), content if closed else ""


def last_answer(text: str) -> tuple[bool, str]:
    """Whether an answer begins in the text, and the last one."""
    _, thought, conclusion = text.rpartition("</think>")
    for part in (conclusion, text) if thought else (text,):
        for last in (last_box, _last_tag):
            begun, answer = last(part)
            if begun:
                return True, answer.strip()
    return False, ""


def extract_answer(text: str) -> str | None:
    r"""The content of the last `\boxed{}`, else of the last `<answer>`; None if missing, empty, or truncated.

    The module docstring gives the rules. Takes time linear in the length of the text.
    """
    return last_answer(text)[1] or None
