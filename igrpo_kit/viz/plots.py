"""Data -> plotly figure: pure functions. Nothing here samples, reads a file or opens a window.

`plot_lines` is what other figures, and new ones, start from; the others draw the closed forms of `core.toy`.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float

from igrpo_kit.core.toy import Numbers, ToyResult, best_of_n_probability, dead_group_probability
from igrpo_kit.viz.style import apply_style, describe, ends_in_words, marker_style

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
    lines = {name: np.asarray(y, dtype=float) for name, y in series.items()}
    figure = apply_style(go.Figure(), title, subtitle)
    for name, y in lines.items():
        if y.shape != x.shape:
            raise ValueError(f"series[{name!r}]: one value per x is needed, {x.shape}, got {y.shape}")
        figure.add_scatter(x=x, y=y, name=name, mode=mode)
    figure.update_xaxes(title_text=x_title).update_yaxes(title_text=y_title)
    return describe(
        figure, f"Line chart: {title}. {subtitle}. {y_title}, against {x_title}: {ends_in_words(lines)}."
    )


def plot_best_of_n(
    p: Float[np.ndarray, " K"], n: Sequence[int], simulated: Float[np.ndarray, "M K"], trials: int
) -> go.Figure:
    """1 - (1 - p)^N as lines, and simulated shares as points, for each N (Proposition 3.1).

    `simulated` holds one row per n and one column per p, each the share of `trials` in which the best draft
    was correct. Bars are four standard errors either way, sqrt(x (1 - x) / trials) with x the closed form:
    one point in 16,000 falls outside by chance, more where x (1 - x) trials is so small that hits are rare.

    Raises ValueError where the shape of `simulated` is not (len(n), len(p)).
    """
    if simulated.shape != (len(n), len(p)):
        raise ValueError(f"simulated: shape {(len(n), len(p))} is needed, got {simulated.shape}")
    grid = np.linspace(0, 1, 201)
    figure = plot_lines(
        grid,
        {f"N = {size}": best_of_n_probability(grid, size) for size in n},
        title="The best of N drafts is correct more often than one draft",
        subtitle="lines: 1 − (1 − p)<sup>N</sup>; "
        f"points: {trials:,} simulated prompts each, bars ± 4 standard errors",
        x_title="p: probability that one draft is correct",
        y_title="probability that the best draft is correct",
    )
    for i, (size, share) in enumerate(zip(n, simulated, strict=True)):
        x = best_of_n_probability(p, size)
        bars = {"type": "data", "array": 4 * np.sqrt(x * (1 - x) / trials), "thickness": 1.5, "width": 4}
        figure.add_scatter(
            x=p, y=share, name=f"N = {size}, simulated", showlegend=False,
            mode="markers", marker={**marker_style(i), "size": 8}, error_y=bars,
        )  # fmt: skip
    return figure.update_xaxes(range=_UNIT).update_yaxes(range=_UNIT)


def plot_dead_groups(group_sizes: Sequence[int]) -> go.Figure:
    """p^G + (1 - p)^G: how often all rewards of a group agree, so that its advantages are all 0 (Eq. 4)."""
    grid = np.linspace(0, 1, 201)
    figure = plot_lines(
        grid,
        {f"G = {size}": dead_group_probability(grid, size) for size in group_sizes},
        title="A group whose rewards all agree contributes no gradient",
        subtitle="p<sup>G</sup> + (1 − p)<sup>G</sup>: all correct, or all incorrect",
        x_title="p: probability that one completion is correct",
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
    """Share of groups that hold a correct and an incorrect completion, at matched rollouts R = N + G.

    `results` holds one `simulate_igrpo` per p, run with these `num_drafts` (N) and `num_refinements` (G).
    `assumption`, the subtitle, says what that simulation assumes about refinements.
    Raises ValueError where there is not one result per p.
    """
    figure = plot_lines(
        p,
        {
            f"GRPO, groups of {num_drafts + num_refinements}": [r.mixed_grpo_full for r in results],
            f"GRPO, groups of {num_refinements}": [r.mixed_grpo_small for r in results],
            f"iGRPO, {num_drafts} drafts + {num_refinements}": [r.mixed_igrpo for r in results],
        },
        title="Only a mixed group, some correct and some not, contributes a gradient",
        subtitle=assumption,
        x_title="p: probability that one completion is correct, given the question alone",
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
        title="The mean p overestimates",
        subtitle=f"prompt sets that differ in spread only: mean p = {mean:.2f} in all of them",
        x_title="N: drafts per prompt",
        y_title="share of prompts whose best draft is correct",
        mode="lines+markers",
    )
    return figure.update_xaxes(type="log", tickvals=list(n)).update_yaxes(range=_UNIT)


def plot_moving_probabilities(
    probabilities: Float[np.ndarray, "S K"],
    names: Sequence[str],
    *,
    title: str,
    subtitle: str = "",
    frames: int = 40,
) -> go.Figure:
    """A policy's probabilities as bars that move under its updates, with a play button and a slider.

    Args:
        probabilities: one row per update, the first before any.
        names: of the K actions.
        title, subtitle: of the figure.
        frames: how many of the updates are shown, evenly spaced, the first and the last among them.

    Raises ValueError where there is not one name per column.
    """
    if probabilities.shape[1] != len(names):
        raise ValueError(f"names: {probabilities.shape[1]} are needed, got {len(names)}")
    shown = np.unique(np.linspace(0, len(probabilities) - 1, frames).round().astype(int))
    figure = apply_style(go.Figure(), title, subtitle)
    figure.add_bar(x=list(names), y=probabilities[0], showlegend=False)
    figure.frames = [go.Frame(name=str(s), data=[go.Bar(y=probabilities[s])]) for s in shown]
    at_once = {"mode": "immediate", "frame": {"duration": 60}, "transition": {"duration": 0}}
    steps = [{"label": str(s), "method": "animate", "args": [[str(s)], at_once]} for s in shown]
    slider = {"steps": steps, "active": 0, "currentvalue": {"prefix": "update "}, "pad": {"t": 36}}
    play = {"label": "play", "method": "animate", "args": [None, {**at_once, "fromcurrent": True}]}
    place = {"x": 1, "xanchor": "right", "y": 1, "yanchor": "bottom", "pad": {"b": 6}}
    ink = {"font": {"color": "#1A1A1A"}, "bgcolor": "#F4F4F4"}  # plotly's button is white on dark paper, too
    buttons = {"type": "buttons", "buttons": [play], **place, **ink}
    figure.update_layout(sliders=[slider], updatemenus=[buttons], margin_b=120)
    figure.update_yaxes(range=[0, 1], title_text="probability")
    ends = {name: probabilities[:, k] for k, name in enumerate(names)}
    return describe(figure, f"Animated bar chart: {title}. {subtitle}. Probability {ends_in_words(ends)}.")
