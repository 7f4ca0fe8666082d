"""Panels of lines over runs: the mean over seeds and its 95 % interval (Student), one style per method.

Where the x of the seeds differ by nature (a score, not a clock) there is no band; thin lines are the seeds.
Runs of any length are drawn: from `POINTS` points on a curve is thinned, its extremes kept.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float
from plotly.subplots import make_subplots

from igrpo_kit.analysis.compare import Record
from igrpo_kit.analysis.intervals import student_interval
from igrpo_kit.viz.style import COLORS, DASHES, TEMPLATE, WIDTH, describe, ends_in_words

POINTS = 1000

Values = Float[np.ndarray, " n"]
Curve = tuple[Values, Values]


class Panel(NamedTuple):
    """One panel: what is drawn of each record, and how its seeds are put together."""

    y_title: str
    x_title: str
    curve: Callable[[Record], Curve]
    seeds: str = "band"
    """ "band": mean and interval at equal x; "paths": mean of x and of y, and every seed as a thin line"""


def thin_extremes(x: Values, y: Values, most: int = POINTS) -> Curve:
    """At most `most` points that look like all of them: first, last, least and greatest of each stretch.

    Where a stretch holds NaNs only, one is kept: a gap stays a gap. Raises ValueError for `most` < 4.
    """
    if most < 4:
        raise ValueError(f"most: at least 4 points, got {most}")
    if len(x) <= most:
        return x, y
    keep = {0, len(x) - 1}
    for stretch in np.array_split(np.arange(len(x)), most // 2 - 1):
        known = stretch[~np.isnan(y[stretch])]
        keep |= {known[y[known].argmin()], known[y[known].argmax()]} if len(known) else {stretch[0]}
    kept = np.array(sorted(keep))
    return x[kept], y[kept]


def band(curves: Sequence[Curve]) -> tuple[Values, Values, Values, Values]:
    """x, and over seeds the mean and the ends of its 95 % interval (Student; of one seed, the mean itself).

    Where the seeds' x differ (tokens, seconds) each is interpolated at the mean x, up to where all have been.
    Raises ValueError where their lengths differ: runs of different length are no seeds of one another.
    """
    if len({len(x) for x, _ in curves}) > 1:
        raise ValueError(f"curves: seeds of one method, of equal length; got {[len(x) for x, _ in curves]}")
    x = np.minimum(np.mean([x for x, _ in curves], axis=0), min(x[-1] for x, _ in curves))
    ys = np.array([np.interp(x, own, y) for own, y in curves])
    mean = ys.mean(axis=0)
    if len(curves) == 1:
        return x, mean, mean, mean
    half = np.array([_half_width(column) for column in ys.T])
    return x, mean, mean - half, mean + half


def _half_width(values: Values) -> float:
    """Half the width of Student's interval; NaN where a value is missing."""
    if np.isnan(values).any():
        return float("nan")
    found = student_interval(values)
    return found.high - found.estimate


def _style(i: int) -> dict[str, str]:
    """Colour and dash of the i-th method."""
    return {"color": COLORS[i % len(COLORS)], "dash": DASHES[i % len(DASHES)]}


def add_band(
    figure: go.Figure, x: Values, ends: tuple[Values, Values], color: str, **where: int
) -> None:
    """A shaded band between `ends`, low and high, without a legend entry; left out where it has no width."""
    low, high = ends
    known = np.isfinite(low) & np.isfinite(high)
    if not (known.any() and (high > low)[known].any()):
        return
    edges = np.concatenate([high[known], low[known][::-1]])
    along = np.concatenate([x[known], x[known][::-1]])
    fill = go.Scatter(
        x=along, y=edges, fill="toself", fillcolor=color, opacity=0.18, line={"width": 0}, mode="lines",
        showlegend=False, hoverinfo="skip",
    )  # fmt: skip
    figure.add_trace(fill, **where)


def _add_method(
    figure: go.Figure, name: str, i: int, curves: Sequence[Curve], seeds: str, legend: bool, **where: int
) -> Values | None:
    """One method in one panel; returns what its line holds, None where the method has no such number."""
    if not any(np.isfinite(y).any() for _, y in curves):
        return None
    style = _style(i)
    if seeds == "paths":
        x, mean = (np.mean([c[axis] for c in curves], axis=0) for axis in (0, 1))
        for own_x, own_y in curves:
            faint = go.Scatter(x=own_x, y=own_y, mode="lines", line={"color": style["color"], "width": 1})
            figure.add_trace(faint.update(opacity=0.2, showlegend=False, hoverinfo="skip"), **where)
    else:
        x, mean, low, high = band(curves)
        add_band(figure, x, (low, high), style["color"], **where)
    line = go.Scatter(x=x, y=mean, name=name, legendgroup=name, mode="lines", line={**style, "width": 3})
    figure.add_trace(line.update(showlegend=legend), **where)
    return mean


def plot_panels(
    records: Sequence[Record], panels: Sequence[Panel], *, title: str, subtitle: str = "", says: int = 0
) -> go.Figure:
    """A grid of panels, two in a row, one line per method in each; the same colour everywhere.

    `says` is the panel whose first and last values the figure's description gives.
    """
    methods = list(dict.fromkeys(r.method for r in records))
    columns, rows = min(2, len(panels)), -(-len(panels) // 2)
    figure = make_subplots(
        rows, columns, horizontal_spacing=0.15, vertical_spacing=0.19 if rows == 2 else 0.1
    )
    named: set[str] = set()
    spoken: dict[str, Values] = {}
    for number, panel in enumerate(panels):
        where = {"row": number // 2 + 1, "col": number % 2 + 1}
        for i, method in enumerate(methods):
            curves = [panel.curve(r) for r in records if r.method == method]
            line = _add_method(figure, method, i, curves, panel.seeds, method not in named, **where)
            if line is not None:
                named.add(method)
                if number == says:
                    spoken[method] = line[np.isfinite(line)]
        figure.update_xaxes(title_text=panel.x_title, **where)
        figure.update_yaxes(title={"text": panel.y_title, "standoff": 6}, **where)
    figure.update_layout(
        template=TEMPLATE,
        title={
            "text": title,
            "subtitle": {"text": subtitle or "mean over seeds, band: 95 % interval (Student)"},
        },
        legend={"y": -0.3 / rows + 0.02},
        width=WIDTH,
        height=150 + 300 * rows,
    )
    shown = "; ".join(f"{p.y_title} against {p.x_title}" for p in panels)
    return describe(
        figure,
        f"{len(panels)} panels of lines: {title}. {figure.layout.title.subtitle.text}. Shown: {shown}. "
        f"{panels[says].y_title}: {ends_in_words(spoken)}.",
    )
