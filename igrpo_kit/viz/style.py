"""The style of all figures, on white and on dark paper, and the description of each in words.

A trace differs from its neighbors in color, in dash and in marker. Colors are Okabe and Ito's, without those
whose contrast on white is below 3:1, and two of ours; dark paper has brighter ones in the same order. The
template cycles through all three, so a plain `go.Scatter` gets them too.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import cycle, islice
from math import lcm
from typing import Any

import numpy as np
import plotly.graph_objects as go

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#7A5195", "#8A6A00")
DARK_COLORS = ("#56B4E9", "#E69F00", "#2FC79A", "#EBA9CE", "#FFFFFF", "#BBA0E3", "#F0E442")
DASHES = ("solid", "dash", "dot", "dashdot", "12px,3px", "longdashdot")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star")
PATTERNS = ("", "/", "-", ".", "|", "x", "+")
"""for filled areas, what dashes are for lines"""
GRAY, DARK_GRAY = "#767676", "#9AA3AD"
"""for what is not a method: the policy before training, a remainder, a guide line"""
PAPER, DARK_PAPER = "#FFFFFF", "#0D1117"
"""the dark one is GitHub's, where the README is read"""

WIDTH = 760
"""of a committed picture, in pixels; scaled to a column of 600, its 15 pixel type still measures 12"""


_AXIS = {"showgrid": True, "showline": True, "ticks": "outside", "zeroline": False}
_LAYOUT = {
    "font": {"family": "Open Sans, Liberation Sans, Arial, sans-serif", "size": 15},
    "title": {"x": 0, "xref": "container", "y": 1, "yref": "paper", "yanchor": "bottom", "font_size": 20},
    "title_pad": {"b": 40, "l": 12},
    "title_subtitle_font_size": 14,
    "margin": {"l": 72, "r": 24, "t": 88, "b": 64},
    "height": 500,
    "hovermode": "x unified",
    "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": -0.17, "yanchor": "top"},
}


def _template(colors: Sequence[str], *, paper: str, ink: str, faint: str, grid: str) -> go.layout.Template:
    axis = {**_AXIS, "gridcolor": grid, "linecolor": faint, "tickcolor": faint}
    axis["title"] = {"standoff": 12, "font_size": 15}
    layout = go.Layout(
        _LAYOUT, colorway=colors, paper_bgcolor=paper, plot_bgcolor=paper, xaxis=axis, yaxis=axis
    )
    layout.update(font_color=ink, title_subtitle_font_color=faint)
    layout.hoverlabel = {"bgcolor": paper, "font_color": ink}
    styles = zip(cycle(colors), cycle(DASHES), cycle(SYMBOLS), strict=False)
    lines = [
        # Simplified curves would show their corners.
        go.Scatter(line={"color": c, "dash": dash, "simplify": False}, marker={"color": c, "symbol": symbol})
        for c, dash, symbol in islice(styles, lcm(len(colors), len(DASHES)))
    ]
    header, cells = ({"fill_color": fill, "font_color": ink} for fill in (grid, paper))
    return go.layout.Template(
        layout=layout, data={"scatter": lines, "table": [go.Table(header=header, cells=cells)]}
    )


TEMPLATE = _template(COLORS, paper=PAPER, ink="#1A1A1A", faint="#595959", grid="#E6E6E6")
"""`go.Figure(layout_template=TEMPLATE)` gives a figure of your own the same style"""
DARK = _template(DARK_COLORS, paper=DARK_PAPER, ink="#E6EDF3", faint="#9AA3AD", grid="#30363D")

_BRIGHTER = dict(zip((*COLORS, GRAY, PAPER), (*DARK_COLORS, DARK_GRAY, DARK_PAPER), strict=True))


def _recolored(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _recolored(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_recolored(v) for v in value]
    return _BRIGHTER.get(value, value) if isinstance(value, str) else value


def in_dark(figure: go.Figure) -> go.Figure:
    """The same figure on dark paper: another template, and the brighter color for each of `COLORS`."""
    # Part by part: to_plotly_json of the whole figure would pack arrays of numbers into base64.
    layout = {k: v for k, v in figure.layout.to_plotly_json().items() if k != "template"}
    data = [trace.to_plotly_json() for trace in figure.data]
    return go.Figure(_recolored(data), _recolored(layout)).update_layout(template=DARK)


def line_style(i: int) -> dict[str, str]:
    """Color and dash of the i-th of several lines."""
    return {"color": COLORS[i % len(COLORS)], "dash": DASHES[i % len(DASHES)]}


def marker_style(i: int) -> dict[str, str]:
    """Color and symbol of the i-th of several sets of points."""
    return {"color": COLORS[i % len(COLORS)], "symbol": SYMBOLS[i % len(SYMBOLS)]}


def apply_style(figure: go.Figure, title: str, subtitle: str = "", **layout: Any) -> go.Figure:
    """Give the figure the common style, a title, and `layout`; returns the figure."""
    layout = {"height": _LAYOUT["height"], **layout}  # JupyterLab does not read that of a template
    return figure.update_layout(
        template=TEMPLATE, title={"text": title, "subtitle": {"text": subtitle}}, **layout
    )


def describe(figure: go.Figure, text: str) -> go.Figure:
    """Give the figure a description for readers who cannot see it (`alt_text`); returns the figure."""
    plain = re.sub(r"<[^>]+>", "", text.replace("<sup>", "^"))
    return figure.update_layout(meta={"alt": " ".join(plain.split())})


def alt_text(figure: go.Figure) -> str:
    """The figure's description in words. Raises ValueError where it has none."""
    if not (figure.layout.meta and figure.layout.meta.get("alt")):
        raise ValueError(f"no words for the figure {figure.layout.title.text!r}: see viz.style.describe")
    return figure.layout.meta["alt"]


def ends_in_words(lines: Mapping[str, Sequence[float] | np.ndarray]) -> str:
    """`GRPO-8 from 0.35 to 0.55; ...`: the start and end of each line, for a description."""
    return "; ".join(f"{name} from {y[0]:.2f} to {y[-1]:.2f}" for name, y in lines.items())
