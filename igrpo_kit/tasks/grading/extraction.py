r"""What a completion answers.

**What the answer is** (`extract_answer`): the content of the last `\boxed{...}` or `\fbox{...}`, else of the
last `<answer>...</answer>`.

- The text after the last `</think>` goes first; all of the text counts only if nothing is answered there. A
  box among the thoughts, such as a quoted draft's, does not hide the `<answer>18</answer>` after them.
- Apart from that a box wins over a tag, whether it stands in the tag, before it or after it.
- The last box is the one begun last; of a box in a box that is the inner one. Braces are matched as TeX does
  it, so `\{` is none. `\boxed` without a brace is a mention, not a box.
- An answer begun last and never finished, as in a completion cut at its length, is no answer. It does not
  fall back to an earlier one, nor from a box to a tag. Neither does an empty one.
- All of the content is judged, except white space, `$`, `\(...\)`, `\[...\]` or `**...**` around it, and a
  final full stop. So "18 dollars" is not 18.
"""

import re

_BOX = re.compile(r"\\(?:boxed|fbox)\s*+\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)


def last_box(text: str) -> tuple[bool, str]:
    """Whether a box is begun in the text, and the content of the last one, empty if it has no end."""
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
    """The same of `<answer>`."""
    _, begun, rest = text.rpartition("<answer>")
    content, closed, _ = rest.partition("</answer>")
    return bool(begun), content if closed else ""


def last_answer(text: str) -> tuple[bool, str]:
    """Whether an answer is begun in the text, and the last one."""
    _, thought, conclusion = text.rpartition("</think>")
    for part in (conclusion, text) if thought else (text,):
        for last in (last_box, _last_tag):
            begun, answer = last(part)
            if begun:
                return True, answer.strip()
    return False, ""


def extract_answer(text: str) -> str | None:
    r"""The content of the last `\boxed{}`, else of the last `<answer>`; None if there is none or it is cut.

    The rules: see the module. Takes time linear in the length of the text.
    """
    return last_answer(text)[1] or None
