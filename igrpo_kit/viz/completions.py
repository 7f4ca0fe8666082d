"""Reading what the policy wrote: drafts and refinements side by side, and tokens by their numbers.

Both are widgets without a figure, made of inert text (`viz.text`).
"""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from igrpo_kit.core.advantages import group_advantages
from igrpo_kit.core.rows import Row, read_rows
from igrpo_kit.policies.samplers.sampler import Samples
from igrpo_kit.training.records import RunLog
from igrpo_kit.viz.notebook import widgets
from igrpo_kit.viz.text import colored_tokens, difference_html, text_box, token_pieces, visible

_CHOSEN, _OTHER = "border-left: 4px solid #009E73", "border-left: 4px solid #B0B0B0"
_CENTERS = {"ratio": 1.0, "advantage": 0.0}
"""numbers with a neutral value, colored on both sides of it; others from their lowest value up"""


class CompletionsBrowser(widgets.VBox):
    """Pick a step and a problem; read its drafts, the chosen one, and each refinement against it.

    `rows` as `training.sample_rows` records them: step, id, question, answer, drafts, selected, completions.
    Raises ValueError for no row.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        if not rows:
            raise ValueError("rows: no completion was recorded in full")
        self._rows: dict[int, list[Row]] = {}
        for row in rows:
            self._rows.setdefault(row["step"], []).append(row)
        self.step = widgets.Dropdown(options=list(self._rows), description="step")
        self.problem = widgets.Dropdown(description="problem")
        self.page = widgets.HTML()
        self.step.observe(lambda _change: self._offer(), names="value")
        self.problem.observe(lambda _change: self._show(), names="value")
        super().__init__([widgets.HBox([self.step, self.problem]), self.page])
        self._offer()

    def _offer(self) -> None:
        rows = self._rows[self.step.value]
        # An id is data too: a label cannot hold tags, but it can hold characters that change its direction.
        labels = ["".join(c if c.isprintable() else "\ufffd" for c in str(row["id"])) for row in rows]
        self.problem.options = [(f"{i + 1}: {label}"[:60], i) for i, label in enumerate(labels)]
        self.problem.index = 0
        self._show()  # also where the index did not change

    def _show(self) -> None:
        if self.problem.value is not None:
            self.page.value = rollout_html(self._rows[self.step.value][self.problem.value])


def browse_completions(run: str | Path | Sequence[Row]) -> CompletionsBrowser:
    """The completions a run recorded in full, from its folder or from rows.

    Raises FileNotFoundError where the folder holds none.
    """
    rows = list(read_rows(Path(run) / RunLog.SAMPLES)) if isinstance(run, str | Path) else run
    return CompletionsBrowser(rows)


def rollout_html(row: Row) -> str:
    """One problem's rollout: the question, every draft with its reward, each refinement as a difference."""
    drafts, selected = row.get("drafts") or [], row.get("selected", -1)
    shown = drafts[selected] if drafts and selected >= 0 else None
    rewards = torch.tensor([[_number(c["reward"]) for c in row["completions"]]], dtype=torch.float64)
    scored = len(row["completions"]) > 1 and bool(rewards.isfinite().all())
    notes = ["no advantage: that takes a group with every reward known"] * rewards.shape[1]
    if scored:
        notes = [f"advantage {A:+.3f}" for A in group_advantages(rewards)[0].tolist()]
    parts = [f"<h4>Question</h4>{text_box(row['question'])}<p>gold answer: {visible(str(row['answer']))}</p>"]
    if drafts:
        parts.append("<h4>Drafts (Stage 1)</h4>")
        parts += [_card(d, text_box(d["text"]), chosen=i == selected) for i, d in enumerate(drafts)]
        against = ", against the draft they were shown" if shown is not None else ", of q: no draft was shown"
        parts.append(f"<h4>Refinements (Stage 2){against}</h4>")
    else:
        parts.append("<h4>Completions</h4>")
    for completion, note in zip(row["completions"], notes, strict=True):
        text = completion["text"]
        body = text_box(text) if shown is None else difference_html(shown["text"], text)
        parts.append(_card(completion, body, note=note))
    return "".join(parts)


def _number(reward: Any) -> float:
    return float("nan") if reward is None else float(reward)


def _card(item: Mapping[str, Any], body: str, *, chosen: bool = False, note: str = "") -> str:
    facts = [f"reward {_number(item['reward']):g}", visible(str(item["status"])), note]
    facts.append("<b>chosen: shown to Stage 2</b>" if chosen else "")
    head = " · ".join(filter(None, facts))
    return (
        f'<div style="{_CHOSEN if chosen else _OTHER}; padding: 2px 10px; margin: 6px 0">{head}{body}</div>'
    )


class TokenView(widgets.VBox):
    """A completion's tokens, colored by one of several numbers; each token's tooltip has its value.

    `pieces` [T] are the tokens' texts, `numbers` has T values per name: "entropy", "log-prob", "ratio",
    "advantage". Raises ValueError where a length differs or there is no number.
    """

    def __init__(self, pieces: Sequence[str], numbers: Mapping[str, Sequence[float]]) -> None:
        if not numbers:
            raise ValueError("numbers: at least one is needed")
        self._pieces, self._numbers = pieces, numbers
        pages = [self._page(name) for name in numbers]
        self.number = widgets.Dropdown(options=list(zip(numbers, pages, strict=True)), description="color")
        self.page = widgets.HTML(pages[0])
        self.number.observe(lambda change: setattr(self.page, "value", change["new"]), names="value")
        super().__init__([self.number, self.page])

    def _page(self, name: str) -> str:
        values = self._numbers[name]
        tokens = colored_tokens(self._pieces, values, center=_CENTERS.get(name))
        mean = sum(values) / max(len(values), 1)
        words = f"{len(values)} tokens, mean {html.escape(name)} {mean:.4g}"
        if len(values):
            top = max(range(len(values)), key=lambda t: values[t])
            words += f", highest {values[top]:.4g} at token {top + 1}, “{visible(self._pieces[top])}”"
        return f'<div role="status">{words}</div>{tokens}'


def view_tokens(
    samples: Samples, row: int, tokenizer: Any, *, more: Mapping[str, Sequence[float]] | None = None
) -> TokenView:
    """Row `row` of `samples` by log-prob, by entropy if it was recorded, and by `more` per-token numbers.

    Raises IndexError for a row that is not there.
    """
    if not 0 <= row < len(samples.texts):
        raise IndexError(f"row: {row} of {len(samples.texts)}")
    kept = samples.mask[row]
    numbers: dict[str, Sequence[float]] = {}
    if samples.entropies is not None:
        numbers["entropy"] = samples.entropies[row][kept].tolist()
    numbers["log-prob"] = samples.log_probs[row][kept].tolist()
    pieces = token_pieces(tokenizer, samples.completion_ids[row][kept].tolist())
    return TokenView(pieces, {**numbers, **(more or {})})
