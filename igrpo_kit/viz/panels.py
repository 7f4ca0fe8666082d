"""Panels of lines over runs: the mean over seeds and its 95% interval (Student), one style per method.

Where the x of the seeds differ by nature (a reward, not a clock) there is no band; thin lines are the seeds.
Runs of any length are drawn: long curves are thinned, their extremes kept (`dynamics.thin`).
"""

from collections.abc import Callable, Mapping, Sequence, Set
from typing import Literal, NamedTuple

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float
from plotly.subplots import make_subplots

from igrpo_kit.analysis.compare import Record
from igrpo_kit.analysis.dynamics import Curve, band, thin
from igrpo_kit.viz.style import WIDTH, apply_style, describe, ends_in_words, line_style

Values = Float[np.ndarray, " n"]


class Panel(NamedTuple):
    """One panel: the curve of each record, and how the seeds of a method are combined."""

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
    figure.add_scatter(
        x=np.concatenate([x[known], x[known][::-1]]),
        y=np.concatenate([high[known], low[known][::-1]]),
        fill="toself", fillcolor=color, opacity=0.18, line={"width": 0}, mode="lines",
        showlegend=False, hoverinfo="skip", **where,
    )  # fmt: skip


def _add_method(
    figure: go.Figure, curves: Sequence[Curve], seeds: str, style: dict[str, str], **where: int
) -> Curve:
    """Draw the seeds of one method in one panel; returns the line that represents all of them."""
    if seeds == "paths":
        for own in curves:
            figure.add_scatter(
                x=own.x, y=own.y, mode="lines", line={"color": style["color"], "width": 1}, opacity=0.2,
                showlegend=False, hoverinfo="skip", **where,
            )  # fmt: skip
        return Curve(*(np.mean([c[axis] for c in curves], axis=0) for axis in (0, 1)))
    together = band(curves)
    line = thin(Curve(together.x, together.mean))
    shown = np.isin(together.x, line.x)
    add_band(figure, together.x[shown], (together.low[shown], together.high[shown]), style["color"], **where)
    return line


def _curves(panel: Panel, records: Sequence[Record]) -> list[Curve]:
    found = []
    for record in records:
        try:
            found.append(panel.curve(record))
        except LookupError:
            continue
    return found


def _add_panel(
    figure: go.Figure,
    panel: Panel,
    records: Sequence[Record],
    styles: Mapping[str, dict[str, str]],
    named: Set[str],
    **where: int,
) -> dict[str, Curve]:
    """Draw one panel; returns its lines by method. Methods in `named` have a legend entry already."""
    lines: dict[str, Curve] = {}
    for method, style in styles.items():
        if curves := _curves(panel, [r for r in records if r.method == method]):
            lines[method] = x, y = _add_method(figure, curves, panel.seeds, style, **where)
            figure.add_scatter(
                x=x, y=y, mode="lines", line={**style, "width": 3}, name=method, legendgroup=method,
                showlegend=method not in named, **where,
            )  # fmt: skip
    if not lines:
        raise LookupError(f"no record has what is to be shown: {panel.y_title}")
    figure.update_xaxes(title_text=panel.x_title, **where)
    figure.update_yaxes(title={"text": panel.y_title, "standoff": 6}, **where)
    return lines


def plot_panels(
    records: Sequence[Record], panels: Sequence[Panel], *, title: str, subtitle: str = "", says: int = 0
) -> go.Figure:
    """A grid of panels, two in a row, with one line per method; a method has the same color in all of them.

    `says` is the panel whose first and last values the figure's description gives.
    Raises LookupError where no record has what a panel shows.
    """
    styles = {method: line_style(i) for i, method in enumerate(dict.fromkeys(r.method for r in records))}
    rows = -(-len(panels) // 2)
    gaps = {"horizontal_spacing": 0.15, "vertical_spacing": 0.0 if rows == 1 else 0.27 / rows}
    figure = make_subplots(rows, min(2, len(panels)), **gaps)
    drawn: list[dict[str, Curve]] = []
    for i, panel in enumerate(panels):
        named = {method for lines in drawn for method in lines}
        drawn.append(_add_panel(figure, panel, records, styles, named, row=i // 2 + 1, col=i % 2 + 1))
    subtitle = subtitle or "mean over seeds; bands: 95% intervals over them (Student)"
    apply_style(figure, title, subtitle, legend={"y": -0.25 / rows}, width=WIDTH, height=170 + 290 * rows)
    shown = "; ".join(f"{p.y_title} against {p.x_title}" for p in panels)
    ends = ends_in_words({method: line.y for method, line in drawn[says].items()})
    return describe(
        figure, f"Panels of lines: {title}. {subtitle}. Shown: {shown}. {panels[says].y_title}: {ends}."
    )
