"""Panels of lines over runs: the mean over seeds and its 95 % interval (Student), one style per method.

Where the x of the seeds differ by nature (a score, not a clock) there is no band; thin lines are the seeds.
Runs of any length are drawn: long curves are thinned, their extremes kept (`dynamics.thin`).
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float
from plotly.subplots import make_subplots

from igrpo_kit.analysis.compare import Record
from igrpo_kit.analysis.dynamics import Curve, band, thin
from igrpo_kit.viz.style import COLORS, DASHES, TEMPLATE, WIDTH, describe, ends_in_words

Values = Float[np.ndarray, " n"]


class Panel(NamedTuple):
    """One panel: what is drawn of each record, and how the seeds of a method are put together."""

    y_title: str
    x_title: str
    curve: Callable[[Record], Curve]
    """raises LookupError for a record that has no such number: its method is left out of the panel"""
    seeds: Literal["band", "paths"] = "band"
    """mean and interval at equal x; or mean of x and of y, and every seed as a thin line"""


def add_band(figure: go.Figure, x: Values, ends: tuple[Values, Values], color: str, **where: int) -> None:
    """A shaded band between `ends`, low and high, without a legend entry; left out where it has no width."""
    low, high = ends
    known = np.isfinite(low) & np.isfinite(high)
    if not (known.any() and (high > low)[known].any()):
        return
    fill = go.Scatter(
        x=np.concatenate([x[known], x[known][::-1]]),
        y=np.concatenate([high[known], low[known][::-1]]),
        fill="toself", fillcolor=color, opacity=0.18, line={"width": 0}, mode="lines",
        showlegend=False, hoverinfo="skip",
    )  # fmt: skip
    figure.add_trace(fill, **where)


def _add_method(
    figure: go.Figure, curves: Sequence[Curve], seeds: str, style: dict[str, str], **where: int
) -> Curve:
    """The seeds of one method in one panel; returns the line that stands for all of them."""
    if seeds == "paths":
        for own in curves:
            faint = go.Scatter(x=own.x, y=own.y, mode="lines", line={"color": style["color"], "width": 1})
            figure.add_trace(faint.update(opacity=0.2, showlegend=False, hoverinfo="skip"), **where)
        return Curve(*(np.mean([c[axis] for c in curves], axis=0) for axis in (0, 1)))
    together = band(curves)
    line = thin(Curve(together.x, together.mean))
    shown = np.isin(together.x, line.x)
    add_band(
        figure,
        together.x[shown],
        (together.low[shown], together.high[shown]),
        style["color"],
        **where,
    )
    return line


def _curves(panel: Panel, records: Sequence[Record]) -> list[Curve]:
    found = []
    for record in records:
        try:
            found.append(panel.curve(record))
        except LookupError:
            continue
    return found


def plot_panels(
    records: Sequence[Record], panels: Sequence[Panel], *, title: str, subtitle: str = "", says: int = 0
) -> go.Figure:
    """A grid of panels, two in a row, one line per method in each, a method in the same color everywhere.

    `says` is the panel whose first and last values the figure's description gives.
    Raises LookupError where no record has what a panel shows.
    """
    methods = list(dict.fromkeys(r.method for r in records))
    rows = -(-len(panels) // 2)
    gaps = {"horizontal_spacing": 0.15, "vertical_spacing": 0.0 if rows == 1 else 0.27 / rows}
    figure = make_subplots(rows, min(2, len(panels)), **gaps)
    named: set[str] = set()
    spoken: dict[str, Values] = {}
    for number, panel in enumerate(panels):
        where = {"row": number // 2 + 1, "col": number % 2 + 1}
        drawn = False
        for i, method in enumerate(methods):
            curves = _curves(panel, [r for r in records if r.method == method])
            if not curves:
                continue
            style = {"color": COLORS[i % len(COLORS)], "dash": DASHES[i % len(DASHES)]}
            x, y = _add_method(figure, curves, panel.seeds, style, **where)
            line = go.Scatter(x=x, y=y, name=method, legendgroup=method, mode="lines")
            figure.add_trace(line.update(line={**style, "width": 3}, showlegend=method not in named), **where)
            named.add(method)
            drawn = True
            if number == says:
                spoken[method] = y
        if not drawn:
            raise LookupError(f"no record has what is to be shown: {panel.y_title}")
        figure.update_xaxes(title_text=panel.x_title, **where)
        figure.update_yaxes(title={"text": panel.y_title, "standoff": 6}, **where)
    subtitle = subtitle or "mean over seeds; bands: 95 % intervals over them (Student)"
    figure.update_layout(
        template=TEMPLATE,
        title={"text": title, "subtitle": {"text": subtitle}},
        legend={"y": -0.25 / rows},
        width=WIDTH,
        height=170 + 290 * rows,
    )
    shown = "; ".join(f"{p.y_title} against {p.x_title}" for p in panels)
    ends = ends_in_words(spoken)
    return describe(
        figure, f"Panels of lines: {title}. {subtitle}. Shown: {shown}. {panels[says].y_title}: {ends}."
    )
