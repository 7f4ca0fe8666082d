"""What a model wrote, as inert HTML.

Completions are untrusted: they may hold tags, terminal codes, and characters that change the direction of a
line or have no width. Everything is escaped, and invisible characters are shown as their code point.
"""

import difflib
import html
import re
import unicodedata
from collections.abc import Sequence

import numpy as np

_WORDS = re.compile(r"\s+|\w+|[^\w\s]")
# Controls and ANSI's escape, bidi overrides and zero widths, other line ends, code points without a glyph.
_UNSEEN = ("Cc", "Cf", "Zl", "Zp", "Co", "Cs", "Cn")
# Letters and marks that are drawn as nothing: fillers, joiners, the braille blank, variation selectors.
_BLANK = {*"\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0", *map(chr, range(0xFE00, 0xFE10))}
# Clipped, since stacked accents reach beyond their line.
_BOX = (
    "overflow: hidden; white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate;"
    " font-family: monospace"
)
_HIDDEN = "background: #D55E00; color: #FFFFFF; border-radius: 3px; padding: 0 2px"


def visible(text: str) -> str:
    """`text` as HTML: escaped; control, format and direction characters as their code point in a box."""
    return "".join(_shown(c) for c in text)


def _shown(character: str) -> str:
    unseen = unicodedata.category(character) in _UNSEEN or character in _BLANK
    if character in "\n\t" or not unseen:
        return html.escape(character)
    return f'<span style="{_HIDDEN}" title="{_name(character)}">U+{ord(character):04X}</span>'


def _name(character: str) -> str:
    return html.escape(unicodedata.name(character, "a control character").lower())


def text_box(text: str) -> str:
    """A block of untrusted text, its line breaks kept, its direction isolated from its surroundings."""
    return f'<div dir="ltr" style="{_BOX}">{visible(text) or "<i>empty</i>"}</div>'


def difference_html(draft: str, refinement: str) -> str:
    """The refinement against the draft: removed text is struck through, new text is underlined."""
    old, new = _WORDS.findall(draft), _WORDS.findall(refinement)
    parts = []
    for kind, a, b, c, d in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind == "equal":
            parts.append(visible("".join(new[c:d])))
            continue
        if b > a:
            parts.append(f'<del style="color: #B04A00">{visible("".join(old[a:b]))}</del>')
        if d > c:
            parts.append(f'<ins style="color: #00704F; font-weight: bold">{visible("".join(new[c:d]))}</ins>')
    return f'<div dir="ltr" style="{_BOX}">{"".join(parts) or "<i>both empty</i>"}</div>'


def token_pieces(tokenizer: object, ids: Sequence[int]) -> list[str]:
    """The text of each token; for a token that is part of a character, the tokenizer's own name for it."""
    pieces = [tokenizer.decode([i], clean_up_tokenization_spaces=False) for i in ids]  # type: ignore[attr-defined]
    return [
        tokenizer.convert_ids_to_tokens(i) if "\ufffd" in piece else piece  # type: ignore[attr-defined]
        for i, piece in zip(ids, pieces, strict=True)
    ]


def colored_tokens(pieces: Sequence[str], values: Sequence[float], *, center: float | None = None) -> str:
    """Tokens on a background by value, each with its value as a tooltip.

    Without `center` a scale from the lowest (white) to the highest value (orange); with it, blue below and
    orange above. Raises ValueError where the two differ in length.
    """
    numbers = np.asarray(values, dtype=float)
    if len(pieces) != len(numbers):
        raise ValueError(f"values: {len(numbers)} for {len(pieces)} tokens")
    start = center if center is not None else np.nanmin(numbers, initial=np.inf)
    reach = np.nanmax(np.abs(numbers - start), initial=0.0) or 1.0
    spans = []
    for piece, value in zip(pieces, numbers.tolist(), strict=True):
        share = 0.0 if np.isnan(value) else min(1.0, abs(value - start) / reach)
        # Dark type on at most a medium tint: readable on both themes, since the paper is set as well.
        tint = "213, 94, 0" if value >= start else "0, 114, 178"
        style = f"background: linear-gradient(rgba({tint}, {0.55 * share:.3f}) 0 0), #FFFFFF; color: #000000"
        spans.append(f'<span style="{style}" title="{value:.4g}">{visible(piece) or "∅"}</span>')
    return f'<div dir="ltr" style="{_BOX}; line-height: 1.9">{"".join(spans)}</div>'
