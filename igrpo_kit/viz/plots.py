"""Data -> plotly figure: pure functions with one look. Nothing here samples, reads a file or opens a window.

A trace can be told from its neighbours three times over: by colour (Okabe and Ito's, without those that fall
under a contrast of 3:1 on white), by dash and by marker. The template cycles through these, so a plain
`go.Scatter` in a lesson gets them too. `plot_lines` is what the other figures, and new ones, start from.
"""

from collections.abc import Mapping, Sequence
from itertools import cycle, islice
from math import lcm
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import plotly.io as pio
from jaxtyping import Float

from igrpo_kit.toy import Numbers, ToyResult, best_of_n_probability, dead_group_probability

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000")
DASHES = ("solid", "dash", "dot", "dashdot", "12px,3px", "longdashdot")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star")

_STYLES = [
    go.Scatter(
        line={"color": color, "dash": dash, "simplify": False},  # simplified curves show their corners
        marker={"color": color, "symbol": symbol},
    )
    for color, dash, symbol in islice(
        zip(cycle(COLORS), cycle(DASHES), cycle(SYMBOLS), strict=False), lcm(len(COLORS), len(DASHES))
    )
]
_AXIS = {
    "showgrid": True,
    "gridcolor": "#E6E6E6",
    "showline": True,
    "linecolor": "#595959",
    "ticks": "outside",
    "tickcolor": "#595959",
    "zeroline": False,
    "title": {"standoff": 12, "font": {"size": 15}},
}
TEMPLATE = go.layout.Template(
    data={"scatter": _STYLES},
    layout={
        "colorway": COLORS,
        "font": {"family": "Open Sans, Liberation Sans, Arial, sans-serif", "size": 15, "color": "#1A1A1A"},
        "title": {
            "x": 0,
            "xref": "paper",
            "y": 1,
            "yref": "paper",
            "yanchor": "bottom",
            "pad": {"b": 40},
            "font": {"size": 21},
            "subtitle": {"font": {"size": 14, "color": "#595959"}},
        },
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "margin": {"l": 72, "r": 24, "t": 88, "b": 64},
        "height": 500,
        "hovermode": "x unified",
        "legend": {"x": 1.02, "y": 1, "xanchor": "left", "yanchor": "top", "tracegroupgap": 0},
        "xaxis": _AXIS,
        "yaxis": _AXIS,
    },
)
"""The one look of all figures; `go.Figure(layout_template=TEMPLATE)` gives it to your own."""

_UNIT = [-0.02, 1.02]  # the axis of a probability, with room for a marker at either end


def plot_lines(
    x: Numbers,
    series: Mapping[str, Numbers],
    *,
    title: str,
    subtitle: str = "",
    x_title: str,
    y_title: str,
    mode: str = "lines",
) -> go.Figure:
    """One line per entry of `series` over a common x; `mode` is plotly's ("lines+markers" and so on).

    Raises ValueError naming a series whose length is not that of x.
    """
    x = np.asarray(x)
    figure = go.Figure(layout_template=TEMPLATE)
    for name, y in series.items():
        y = np.asarray(y)
        if y.shape != x.shape:
            raise ValueError(f"series[{name!r}]: one value per x is needed, {x.shape}, got {y.shape}")
        figure.add_scatter(x=x, y=y, name=name, mode=mode)
    figure.update_layout(title={"text": title, "subtitle": {"text": subtitle}})
    return figure.update_xaxes(title_text=x_title).update_yaxes(title_text=y_title)


def plot_best_of_n(
    p: Float[np.ndarray, " K"], n: Sequence[int], simulated: Float[np.ndarray, "M K"], trials: int
) -> go.Figure:
    """1 - (1 - p)^N as lines, and simulated shares as points, for each N (Proposition 3.1).

    `simulated` holds one row per n and one column per p, each the share of `trials` in which the best draft
    was right. The bars are four standard errors either way, sqrt(x (1 - x) / trials) with x the closed form:
    one point in 16,000 falls outside by chance, more where x (1 - x) trials is so small that hits are rare.

    Raises ValueError where the shape of `simulated` is not (len(n), len(p)).
    """
    if simulated.shape != (len(n), len(p)):
        raise ValueError(f"simulated: shape {(len(n), len(p))} is needed, got {simulated.shape}")
    grid = np.linspace(0, 1, 201)
    figure = plot_lines(
        grid,
        {f"N = {size}": best_of_n_probability(grid, size) for size in n},
        title="The best of N drafts is right more often than one draft",
        subtitle="lines: 1 − (1 − p)<sup>N</sup>; "
        f"points: {trials:,} simulated prompts each, bars ± 4 standard errors",
        x_title="p: probability that one draft is right",
        y_title="probability that the best draft is right",
    )
    for style, size, share in zip(cycle(_STYLES), n, simulated, strict=False):
        x = best_of_n_probability(p, size)
        bars = {"type": "data", "array": 4 * np.sqrt(x * (1 - x) / trials), "thickness": 1.5, "width": 4}
        points = {**style.marker.to_plotly_json(), "size": 8}
        figure.add_scatter(x=p, y=share, mode="markers", marker=points, error_y=bars)
        figure.data[-1].update(name=f"N = {size}, simulated", showlegend=False)
    return figure.update_xaxes(range=_UNIT).update_yaxes(range=_UNIT)


def plot_dead_groups(group_sizes: Sequence[int]) -> go.Figure:
    """p^G + (1 - p)^G: how often all rewards of a group agree, so that its advantages are all 0 (Eq. 4)."""
    grid = np.linspace(0, 1, 201)
    figure = plot_lines(
        grid,
        {f"G = {size}": dead_group_probability(grid, size) for size in group_sizes},
        title="A group whose rewards all agree teaches nothing",
        subtitle="p<sup>G</sup> + (1 − p)<sup>G</sup>: all right, or all wrong",
        x_title="p: probability that one completion is right",
        y_title="probability that the group is dead",
    )
    return figure.update_xaxes(range=_UNIT).update_yaxes(range=_UNIT)


def plot_mixed_groups(
    p: Float[np.ndarray, " K"],
    results: Sequence[ToyResult],
    *,
    num_drafts: int,
    num_refinements: int,
    assumption: str,
) -> go.Figure:
    """Share of groups that hold a right and a wrong completion, at matched rollouts R = N + G.

    `results` holds one `simulate_igrpo` per p, run with these `num_drafts` (N) and `num_refinements` (G).
    `assumption` says, under the title, what that simulation took a refinement to be worth.
    Raises ValueError where there is not one result per p.
    """
    figure = plot_lines(
        p,
        {
            f"GRPO, groups of {num_drafts + num_refinements}": [r.mixed_grpo_full for r in results],
            f"GRPO, groups of {num_refinements}": [r.mixed_grpo_small for r in results],
            f"iGRPO, {num_drafts} drafts + {num_refinements}": [r.mixed_igrpo for r in results],
        },
        title="Only a mixed group, some right and some wrong, has something to teach",
        subtitle=assumption,
        x_title="p: probability that one completion is right, given the question alone",
        y_title="share of mixed groups",
        mode="lines+markers",
    )
    return figure.update_xaxes(range=_UNIT).update_yaxes(range=_UNIT)


def plot_jensen(populations: Mapping[str, Float[np.ndarray, " P"]], n: Sequence[int]) -> go.Figure:
    """Best-of-N success of whole prompt sets, against 1 - (1 - p)^N with their *mean* p put in for p.

    `populations` holds the p of each prompt, under a name. The formula sees the mean alone, so they must
    share it: raises ValueError where the means differ by more than 0.01, or for no population.
    """
    means = [float(p.mean()) for p in populations.values()]
    if not means or max(means) - min(means) > 0.01:
        raise ValueError(f"populations: at least one, all with the same mean p, got means {means}")
    mean = float(np.mean(means))
    truth = {name: [best_of_n_probability(p, size).mean() for size in n] for name, p in populations.items()}
    figure = plot_lines(
        np.asarray(n),
        {f"1 − (1 − {mean:.2f})<sup>N</sup>": best_of_n_probability(mean, np.asarray(n)), **truth},
        title="The mean p promises too much",
        subtitle=f"prompt sets that differ in spread only: mean p = {mean:.2f} in all of them",
        x_title="N: drafts per prompt",
        y_title="share of prompts whose best draft is right",
        mode="lines+markers",
    )
    return figure.update_xaxes(type="log", tickvals=list(n)).update_yaxes(range=_UNIT)


def write_html(figure: go.Figure, path: Path) -> Path:
    """Write the figure as one page that needs no network: plotly.js (5 MB) is inside. Makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.write_html(path, include_plotlyjs=True)
    return path


def write_pngs(figures: Mapping[Path, go.Figure]) -> list[Path]:
    """Write each figure as a PNG at twice its size, all in one start of the browser. Makes the folders.

    Raises FileNotFoundError where there is no Chrome or Chromium to draw them.
    """
    for path in figures:
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        pio.write_images(list(figures.values()), list(figures), width=900, height=500, scale=2)
    except RuntimeError as error:
        if "Chrome" not in str(error):
            raise
        raise FileNotFoundError(
            "no browser to draw a PNG with: install Chromium (Debian: apt-get install chromium) or Chrome"
        ) from error
    return list(figures)
