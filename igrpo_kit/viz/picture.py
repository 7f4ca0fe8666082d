"""One step of the method as a picture that builds itself up: drafts, the best one, refinements, the update.

It is inline SVG with CSS animation: no script, no network, in the colors of the page around it. Where motion
is not wanted (`prefers-reduced-motion`) all of it is there from the beginning.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from igrpo_kit.core.advantages import group_advantages
from igrpo_kit.core.selection import select_best_draft

_SECONDS = 3
"""each step is on its own for so long"""
_RIGHT, _WRONG = "#009E73", "#D55E00"
_STEPS = (
    "A question q comes from the training set.",
    "Stage 1: the policy samples {N} drafts. A program rewards each: 1 or 0.",
    "The draft with the highest reward is kept: the first of a tie. No gradient goes back here.",
    "The best draft joins the question: this is the refinement prompt q'.",
    "Stage 2: the policy samples {G} refinements of q', and the program rewards them.",
    "Each is compared with its group: above the mean, a positive advantage; below it, a negative one.",
    "The update makes the tokens of refinements more or less likely, given q'. The policy is used on q.",
)


@dataclass(frozen=True)
class Picture:
    """Inline SVG with a description in words."""

    svg: str
    words: str

    def __repr__(self) -> str:
        return self.words

    def _repr_html_(self) -> str:
        return f'<div style="overflow-x: auto">{self.svg}</div>'


def two_stages_picture(
    draft_rewards: Sequence[float] = (0, 1, 0, 1), rewards: Sequence[float] = (1, 1, 0, 1)
) -> Picture:
    """One step of iGRPO (Algorithm 1), in seven pictures one after the other.

    Args:
        draft_rewards: 0 or 1 for each of up to five drafts.
        rewards: 0 or 1 for each of up to five refinements.

    Raises:
        ValueError: not one to five of each.
    """
    if not 1 <= len(draft_rewards) <= 5 or not 1 <= len(rewards) <= 5:
        raise ValueError("draft_rewards, rewards: one to five of each fit into the picture")
    best = int(select_best_draft(torch.tensor([list(map(float, draft_rewards))]))[0])
    advantages = group_advantages(torch.tensor([list(map(float, rewards))]))[0].tolist()
    words = [step.format(N=len(draft_rewards), G=len(rewards)) for step in _STEPS]
    parts = [_at(0, _box(8, 150, 92, "question q"))]
    for i, reward in enumerate(draft_rewards):
        y = _row(i, len(draft_rewards))
        parts.append(_at(1, _arrow(100, 150, 150, y) + _box(150, y, 96, f"draft {i + 1}", reward)))
    y = _row(best, len(draft_rewards))
    ring = f'<rect x="145" y="{y - 20:g}" width="106" height="40" rx="9" class="ring"/>'
    parts.append(_at(2, ring))
    parts.append(_at(3, _arrow(251, y, 290, 150) + _box(290, 150, 130, "q' = q + best")))
    for i, (reward, advantage) in enumerate(zip(rewards, advantages, strict=True)):
        y = _row(i, len(rewards))
        parts.append(_at(4, _arrow(420, 150, 460, y) + _box(460, y, 118, f"refinement {i + 1}", reward)))
        parts.append(_at(5, f'<text x="592" y="{y + 5:g}">{advantage:+.1f}</text>'))
        grow = "more likely" if advantage > 0 else "less likely" if advantage < 0 else "no gradient"
        parts.append(_at(6, f'<text x="640" y="{y + 5:g}">{grow}</text>'))
    parts += [_caption(i, text) for i, text in enumerate(words)]
    title = f"One step of iGRPO. {' '.join(words)}"
    svg = (
        f'<svg class="igrpo-steps" viewBox="0 0 760 340" role="img" aria-label="{title}" '
        f'style="width: 100%; min-width: 640px; max-width: 900px">{_style()}{"".join(parts)}</svg>'
    )
    return Picture(svg, title)


def _row(i: int, count: int) -> float:
    """Height of the i-th of several boxes, which stand around the middle."""
    return 150 + 54 * (i - (count - 1) / 2)


def _box(x: float, y: float, width: float, text: str, reward: float | None = None) -> str:
    color = "currentColor" if reward is None else _RIGHT if reward else _WRONG
    mark = "" if reward is None else (" ✓" if reward else " ✗")
    return (
        f'<rect x="{x:g}" y="{y - 15:g}" width="{width:g}" height="30" rx="6" fill="none" stroke="{color}"/>'
        f'<text x="{x + width / 2:g}" y="{y + 5:g}" text-anchor="middle">{text}{mark}</text>'
    )


def _arrow(x: float, y: float, to_x: float, to_y: float) -> str:
    return f'<path d="M{x:g} {y:g} L{to_x - 4:g} {to_y:g}" class="arrow"/>'


def _at(step: int, content: str) -> str:
    """Content that is faint until its step."""
    return f'<g class="from{step}">{content}</g>'


def _caption(step: int, text: str) -> str:
    y = 318
    return f'<text x="8" y="{y}" class="only{step}">{step + 1}. {text}</text>'


def _style() -> str:
    total = _SECONDS * (len(_STEPS) + 1)  # the whole picture stands for one more step
    rules = [
        ".igrpo-steps text { fill: currentColor; font: 14px sans-serif }",
        ".igrpo-steps .arrow { stroke: currentColor; opacity: .5; fill: none }",
        ".igrpo-steps rect { stroke-width: 1.5 }",
        ".igrpo-steps .ring { fill: none; stroke: currentColor; stroke-width: 3 }",
        f".igrpo-steps [class^=only]:not(.only{len(_STEPS) - 1}) {{ opacity: 0 }}",
    ]
    moving = []
    for step in range(len(_STEPS)):
        start, stop = (100 * _SECONDS * s / total for s in (step, step + 1))
        last = step == len(_STEPS) - 1
        rules.append(
            f"@keyframes igrpo-from{step} {{ 0%, {max(start - 0.1, 0):.1f}% {{ opacity: .12 }} "
            f"{start + 1.5:.1f}%, 100% {{ opacity: 1 }} }}"
        )
        hidden = "" if last else f"{stop:.1f}%, 100% {{ opacity: 0 }}"
        shown = "100%" if last else f"{stop - 0.1:.1f}%"
        before = "" if step == 0 else f"0%, {start - 0.1:.1f}% {{ opacity: 0 }}"
        rules.append(
            f"@keyframes igrpo-only{step} {{ {before} {start:.1f}%, {shown} {{ opacity: 1 }} {hidden} }}"
        )
        moving += [
            f".igrpo-steps .{kind}{step} {{ animation: igrpo-{kind}{step} {total}s infinite }}"
            for kind in ("from", "only")
        ]
    motion = f"@media (prefers-reduced-motion: no-preference) {{ {' '.join(moving)} }}"
    return f"<style>{' '.join(rules)} {motion}</style>"
