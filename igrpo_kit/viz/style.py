"""The one look of all figures, on white and on dark, and the words beside each picture.

A trace can be told from its neighbors three times over: by color, by dash and by marker. Colors are Okabe
and Ito's, less those that fall under a contrast of 3:1 on white, and two of ours; dark paper has brighter
ones in the same order. The template cycles through all three, so a plain `go.Scatter` gets them too.
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
"""what a dash is to a line, to a filled area"""
GRAY, DARK_GRAY = "#767676", "#9AA3AD"
"""what is no method: the policy before training, a rest, a guide"""
PAPER, DARK_PAPER = "#FFFFFF", "#0D1117"
"""the dark paper is GitHub's, where the README is read"""

WIDTH = 760
"""of a committed picture; at the 600 pixels of a phone or a narrow column its 15 pixel type is still 12"""


def _template(colors: Sequence[str], *, paper: str, ink: str, faint: str, grid: str) -> go.layout.Template:
    styles = islice(
        zip(cycle(colors), cycle(DASHES), cycle(SYMBOLS), strict=False), lcm(len(colors), len(DASHES))
    )
    axis = {
        "showgrid": True,
        "gridcolor": grid,
        "showline": True,
        "linecolor": faint,
        "ticks": "outside",
        "tickcolor": faint,
        "zeroline": False,
        "title": {"standoff": 12, "font": {"size": 15}},
    }
    return go.layout.Template(
        data={
            "scatter": [
                go.Scatter(
                    line={
                        "color": color,
                        "dash": dash,
                        "simplify": False,
                    },  # simplified curves show their corners
                    marker={"color": color, "symbol": symbol},
                )
                for color, dash, symbol in styles
            ],
            "table": [
                go.Table(
                    header={"fill": {"color": grid}, "font": {"color": ink}},
                    cells={"fill": {"color": paper}, "font": {"color": ink}},
                )
            ],
        },
        layout={
            "colorway": colors,
            "font": {"family": "Open Sans, Liberation Sans, Arial, sans-serif", "size": 15, "color": ink},
            "title": {
                "x": 0,
                "xref": "container",
                "y": 1,
                "yref": "paper",
                "yanchor": "bottom",
                "pad": {"b": 40, "l": 12},
                "font": {"size": 20},
                "subtitle": {"font": {"size": 14, "color": faint}},
            },
            "paper_bgcolor": paper,
            "plot_bgcolor": paper,
            "margin": {"l": 72, "r": 24, "t": 88, "b": 64},
            "height": 500,
            "hovermode": "x unified",
            "hoverlabel": {"bgcolor": paper, "font": {"color": ink}},
            "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": -0.17, "yanchor": "top"},
            "xaxis": axis,
            "yaxis": axis,
        },
    )


TEMPLATE = _template(COLORS, paper=PAPER, ink="#1A1A1A", faint="#595959", grid="#E6E6E6")
"""`go.Figure(layout_template=TEMPLATE)` gives the look to a figure of your own."""
DARK = _template(DARK_COLORS, paper=DARK_PAPER, ink="#E6EDF3", faint="#9AA3AD", grid="#30363D")

_BRIGHTER = dict(zip((*COLORS, GRAY, PAPER), (*DARK_COLORS, DARK_GRAY, DARK_PAPER), strict=True))


def _recoloured(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _recoloured(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_recoloured(v) for v in value]
    return _BRIGHTER.get(value, value) if isinstance(value, str) else value


def in_dark(figure: go.Figure) -> go.Figure:
    """The same figure on dark paper: another template, and every color of `COLORS` its brighter twin."""
    # Part by part: the whole figure's to_plotly_json would pack arrays into base64, and lose them as numbers.
    layout = {k: v for k, v in figure.layout.to_plotly_json().items() if k != "template"}
    data = [trace.to_plotly_json() for trace in figure.data]
    return go.Figure(_recoloured(data), _recoloured(layout)).update_layout(template=DARK)


def describe(figure: go.Figure, text: str) -> go.Figure:
    """Give the figure its words, for whoever cannot see it (`alt_text`); returns the figure."""
    plain = re.sub(r"<[^>]+>", "", text.replace("<sup>", "^"))
    return figure.update_layout(meta={"alt": " ".join(plain.split())})


def alt_text(figure: go.Figure) -> str:
    """What the figure shows, in words. Raises ValueError where nobody has said it."""
    if not (figure.layout.meta and figure.layout.meta.get("alt")):
        raise ValueError(f"no words for the figure {figure.layout.title.text!r}: see viz.style.describe")
    return figure.layout.meta["alt"]


def ends_in_words(lines: Mapping[str, Sequence[float] | np.ndarray]) -> str:
    """`GRPO-8 from 0.35 to 0.55; ...`: where each line starts and ends, for a description."""
    return "; ".join(f"{name} from {y[0]:.2f} to {y[-1]:.2f}" for name, y in lines.items())
