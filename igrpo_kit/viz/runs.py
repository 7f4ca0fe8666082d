"""Run records -> plotly figures. A thick line is the mean over seeds, the thin ones are the seeds.

Nothing is smoothed away unseen: training metrics are running means over `SMOOTH` steps, and the axis says so.
"""

from collections.abc import Callable, Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from igrpo_kit.analysis.compare import Record, mean_reward, pass_at, score_curve
from igrpo_kit.runlog import Row
from igrpo_kit.viz.plots import COLORS, DASHES, TEMPLATE

SMOOTH = 10
_COLORS = (*COLORS, "#7A5195")
"""one more than the template has: an experiment has up to six methods"""

Curve = tuple[Sequence[float], Sequence[float]]


def _running_mean(values: Sequence[float | None]) -> list[float]:
    known = np.array([np.nan if v is None else v for v in values], dtype=float)
    windows = [known[max(0, i + 1 - SMOOTH) : i + 1] for i in range(len(known))]
    return [float(np.nanmean(w)) if np.isfinite(w).any() else np.nan for w in windows]


def metric_curve(record: Record, name: str) -> Curve:
    """A training metric against the step, as a running mean."""
    values = _running_mean([row.get(name) for row in record.metrics])
    return [row["step"] for row in record.metrics], values


def entropy_against_score(record: Record, base: Row) -> Curve:
    """Entropy on q against held-out score: "delayed collapse" at equal accuracy instead of equal steps."""
    rows = [base, *record.single_shot()]
    return [mean_reward(row) for row in rows], [row["entropy"] for row in rows]


def pass_curve(record: Record) -> Curve:
    """Unbiased pass@k of the trained policy, k in powers of two."""
    row = record.final("q")
    ks = [2**i for i in range(row["num_samples"].bit_length())]
    return ks, [pass_at(row, k) for k in ks]


def _add(figure: go.Figure, records: Sequence[Record], curve: Callable[[Record], Curve], where: dict) -> None:
    """One panel: every seed thin, each method's mean thick where all its seeds share their x."""
    for i, method in enumerate(dict.fromkeys(r.method for r in records)):
        style = {"color": _COLORS[i % len(_COLORS)], "dash": DASHES[i % len(DASHES)]}
        curves = [curve(r) for r in records if r.method == method]
        if not any(np.isfinite(y).any() for _, y in curves):
            continue
        for x, y in curves:
            thin = go.Scatter(
                x=x,
                y=y,
                mode="lines",
                line={"color": style["color"], "width": 1},
                opacity=0.18,
                showlegend=False,
                hoverinfo="skip",
            )
            figure.add_trace(thin, **where)
        x, y = (np.mean([c[axis] for c in curves], axis=0) for axis in (0, 1))
        figure.add_trace(
            go.Scatter(
                x=x, y=y, name=method, legendgroup=method, mode="lines", line={**style, "width": 3},
                showlegend=where == {"row": 1, "col": 1},
            ),
            **where,
        )  # fmt: skip


def plot_comparison(records: Sequence[Record], base: Row, *, title: str) -> go.Figure:
    """Six panels from the records of one experiment: score at three budgets, entropy, dead groups, pass@k."""
    panels: list[tuple[str, str, Callable[[Record], Curve]]] = [
        ("held-out score", "steps", lambda r: score_curve(r, base, "step")),
        ("held-out score", "gradient tokens", lambda r: score_curve(r, base, "tokens_trained")),
        ("held-out score", "processor seconds", lambda r: score_curve(r, base, "seconds/cpu_total")),
        ("entropy on q, nats", "held-out score", lambda r: entropy_against_score(r, base)),
        ("dead groups", f"steps (mean of {SMOOTH})", lambda r: metric_curve(r, "dead_groups")),
        ("pass@k", "k", pass_curve),
    ]
    figure = make_subplots(rows=2, cols=3, horizontal_spacing=0.1, vertical_spacing=0.18)
    for i, (y_title, x_title, curve) in enumerate(panels):
        where = {"row": i // 3 + 1, "col": i % 3 + 1}
        _add(figure, records, curve, where)
        figure.update_xaxes(title=x_title, **where)
        figure.update_yaxes(title={"text": y_title, "standoff": 6}, **where)
    ks = [2**i for i in range(base["num_samples"].bit_length())]
    before = go.Scatter(
        x=ks,
        y=[pass_at(base, k) for k in ks],
        name="before training",
        mode="lines+markers",
        line={"color": "#767676", "dash": "dot"},
        marker={"color": "#767676", "symbol": "circle"},
    )
    figure.add_trace(before, row=2, col=3).update_xaxes(type="log", tickvals=ks, row=2, col=3)
    return figure.update_layout(
        template=TEMPLATE,
        title={"text": title, "subtitle": {"text": "thick: mean over seeds; thin: each seed"}},
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": -0.13, "yanchor": "top"},
        width=1250,
        height=800,
    )
