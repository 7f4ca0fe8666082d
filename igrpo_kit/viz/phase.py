"""The phase diagram of two methods as a map, with points on it."""

from collections.abc import Mapping

import numpy as np
import plotly.graph_objects as go

from igrpo_kit.analysis.exact.phase import AXES, PhaseDiagram
from igrpo_kit.analysis.stats.intervals import Interval
from igrpo_kit.viz.style import COLORS, GRAY, PAPER, WIDTH, apply_style, describe, marker_style

METHOD_NAMES = {
    "grpo": "GRPO",
    "igrpo": "iGRPO",
    "both": "both stages",
    "drafts_then_grpo": "drafts, then GRPO",
    "random": "random draft",
    "none": "no draft",
}
AXIS_TITLES = {
    "p0": "p: probability of a right answer to q, before training",
    "repair": "repair: a refinement of an own wrong draft is right",
    "ratio": "repair / p: how much more often a wrong draft is repaired",
    "keep": "keep: a refinement of a right draft is right",
    "sharing": "sharing: part of a gradient that q and q' have in common",
}
_SECOND, _FIRST = COLORS[0], COLORS[1]


def plot_phase(
    diagram: PhaseDiagram, step: int, *, margin: float = 0.02, title: str = "", subtitle: str = ""
) -> go.Figure:
    """The difference in p after `step` steps as a heat map, with its boundaries.

    There are two boundaries: where the second method leads by `margin`, and where the first one does. Between
    them the methods are level, most of all where neither has started. Cells that no policy has are blank.

    Raises:
        ValueError: the diagram does not go to `step`, or margin is not positive.
    """
    if not 0 < margin < 1:
        raise ValueError(f"margin must lie strictly between 0 and 1, got {margin}")
    first, second = (METHOD_NAMES[method] for method in diagram.methods)
    difference = diagram.difference(step)
    title = title or f"{second} or {first}: who has the higher p after {step} steps"
    subtitle = subtitle or f"p of {second} minus p of {first}; blank: no policy has these numbers"
    figure = apply_style(go.Figure(), title, subtitle, hovermode="closest", width=WIDTH, height=560)
    figure.add_heatmap(
        x=diagram.x, y=diagram.y, z=difference, name="difference",
        zmin=-1, zmax=1, colorscale=[[0.0, _FIRST], [0.5, PAPER], [1.0, _SECOND]],
        colorbar={"title": {"text": f"<b>+</b> {second} leads<br><b>−</b> {first} leads<br>"}, "len": 0.9},
        hovertemplate=f"{diagram.x_name} %{{x:.3g}}, {diagram.y_name} %{{y:.3g}}: %{{z:+.3f}}<extra></extra>",
    )  # fmt: skip
    for name, level, dash in ((second, margin, "solid"), (first, -margin, "dot")):
        ends = diagram.boundary(step, level)
        gaps = np.concatenate([ends, np.full((len(ends), 1, 2), np.nan)], axis=1).reshape(-1, 2)
        figure.add_scatter(
            x=gaps[:, 0], y=gaps[:, 1], name=f"{name} leads by {margin:g}", mode="lines", hoverinfo="skip",
            line={"color": COLORS[4] if level > 0 else GRAY, "width": 3 if level > 0 else 2, "dash": dash},
        )  # fmt: skip
    for axis, name, values in (("xaxis", diagram.x_name, diagram.x), ("yaxis", diagram.y_name, diagram.y)):
        is_log = AXES[name] == "log"
        ends = np.log10(values[[0, -1]]) if is_log else values[[0, -1]]
        figure.layout[axis].update(
            title_text=AXIS_TITLES[name], type="log" if is_log else "linear", range=list(ends),
            exponentformat="power", dtick=1 if is_log else None,
        )  # fmt: skip
    known = difference[~np.isnan(difference)]
    return describe(
        figure,
        f"Heat map: {title}. {subtitle}. {AXIS_TITLES[diagram.x_name]}, from {diagram.x[0]:.3g} to "
        f"{diagram.x[-1]:.3g}, against {AXIS_TITLES[diagram.y_name]}, from {diagram.y[0]:.3g} to "
        f"{diagram.y[-1]:.3g}. {second} leads by {margin:g} in {np.mean(known > margin):.0%} of the cells, "
        f"{first} in {np.mean(known < -margin):.0%}; the differences go from {known.min():+.2f} to "
        f"{known.max():+.2f}.",
    )


def add_points(figure: go.Figure, points: Mapping[str, tuple[Interval, Interval]]) -> go.Figure:
    """Lay points with intervals on a map of `plot_phase`: name -> (on x, on y); returns the figure.

    An interval that reaches 0 ends at the edge of a log axis.

    Raises:
        ValueError: a point has an estimate that a log axis cannot show, or an interval without its estimate.
    """
    said = []
    for i, (name, place) in enumerate(points.items()):
        bars = [
            _bar(name, interval, axis)
            for interval, axis in zip(place, (figure.layout.xaxis, figure.layout.yaxis), strict=True)
        ]
        marker = marker_style(i + 2)  # the first two colors are the methods'
        figure.add_scatter(
            x=[place[0].estimate], y=[place[1].estimate], error_x=bars[0], error_y=bars[1], name=name,
            text=[name], textposition="top right", mode="markers+text", showlegend=False,
            marker={**marker, "size": 11, "line": {"color": PAPER, "width": 1.5}},
            hovertemplate=f"{name}: %{{x:.3g}}, %{{y:.3g}}<extra></extra>",
        )  # fmt: skip
        said.append(f"{name} at {place[0].estimate:.3g}, {place[1].estimate:.3g}")
    before = (figure.layout.meta or {}).get("alt", "")
    return describe(figure, f"{before} Points: {'; '.join(said)}." if said else before)


def _bar(name: str, interval: Interval, axis: go.layout.XAxis | go.layout.YAxis) -> dict[str, object]:
    """Plotly's error bar from an interval."""
    low, estimate, high = interval.low, interval.estimate, interval.high
    if not low <= estimate <= high:
        raise ValueError(f"points[{name!r}]: {estimate} is not within its interval, {low} to {high}")
    if axis.type == "log":
        if estimate <= 0:
            raise ValueError(f"points[{name!r}]: a log axis has no place for {estimate}")
        low = max(low, min(estimate, 10 ** axis.range[0]))
    bar = {"array": [high - estimate], "arrayminus": [estimate - low], "color": COLORS[4], "thickness": 2}
    return {"type": "data", "symmetric": False, **bar}
