"""Run records -> plotly figures: those of the paper's Fig. 3 and Fig. S.2, and what these leave out.

Training metrics are running means over `SMOOTH` steps, and the axis says so.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import plotly.graph_objects as go

from igrpo_kit.analysis.compare import Record, pass_at
from igrpo_kit.analysis.dynamics import (
    Curve,
    exact_curve,
    held_out_curve,
    training_curve,
    transitions_in_metrics,
)
from igrpo_kit.analysis.stats.intervals import Interval, student_interval
from igrpo_kit.analysis.takeoff import reach_curve
from igrpo_kit.core.rows import Row
from igrpo_kit.viz.panels import Panel, add_band, plot_panels
from igrpo_kit.viz.style import (
    COLORS,
    GRAY,
    PATTERNS,
    WIDTH,
    apply_style,
    describe,
    ends_in_words,
    line_style,
)

SMOOTH = 10
STEPS = f"steps (mean of {SMOOTH})"


def metric_curve(record: Record, name: str, *, on_q: bool = False) -> Curve:
    """A training metric against the step, as a running mean; with `on_q` that of iGRPO's drafts."""
    return training_curve(record, name, on_q=on_q, smooth=SMOOTH)


def entropy_against_reward(record: Record, base: Row) -> Curve:
    """Entropy on q against held-out reward: "delayed collapse" at equal accuracy instead of equal steps."""
    return held_out_curve(record, base, "entropy", "held_out_reward")


def pass_curve(evaluation: Row) -> Curve:
    """Unbiased pass@k of an evaluation, k in powers of two."""
    ks = [2**i for i in range(evaluation["num_samples"].bit_length())]
    return Curve(np.array(ks, dtype=float), np.array([pass_at(evaluation, k) for k in ks]))


def plot_comparison(records: Sequence[Record], base: Row, *, title: str) -> go.Figure:
    """Six panels of one experiment's records: reward at three budgets, entropy, dead groups, pass@k."""
    budgets = {"steps": "step", "live tokens": "tokens_live", "processor seconds": "seconds/cpu_total"}
    panels = [
        *(
            Panel("held-out reward", label, partial(held_out_curve, base=base, clock=clock))
            for label, clock in budgets.items()
        ),
        Panel("entropy on q, nats", "held-out reward", lambda r: entropy_against_reward(r, base), "paths"),
        Panel("dead groups", STEPS, lambda r: metric_curve(r, "dead_groups")),
        Panel("pass@k", "k", lambda r: pass_curve(r.final("q"))),
    ]
    figure = plot_panels(records, panels, title=title)
    k, before = pass_curve(base)
    figure.add_scatter(
        x=k, y=before, name="before training", mode="lines+markers", line={"color": GRAY, "dash": "dot"},
        marker={"color": GRAY, "symbol": "circle"}, row=3, col=2,
    )  # fmt: skip
    return figure.update_xaxes(type="log", tickvals=k, row=3, col=2)


def plot_rewards(records: Sequence[Record], base: Row, *, title: str) -> go.Figure:
    """Like Fig. S.2a, in four panels: trained group, answers to q, best draft, held-out problems.

    iGRPO's trained group is given the best draft, GRPO's is given q alone: the methods are comparable in
    panels 2 and 4 only.
    """
    panels = [
        Panel("reward of the trained group", STEPS, lambda r: metric_curve(r, "reward")),
        Panel("reward of answers to q", STEPS, lambda r: metric_curve(r, "reward", on_q=True)),
        Panel("best draft's reward", STEPS, _best_draft),
        Panel("held-out, single shot from q", "steps", lambda r: held_out_curve(r, base)),
    ]
    return plot_panels(records, panels, title=title, says=3)


def _best_draft(record: Record) -> Curve:
    if "stage1/reward" not in record.metrics[0]:
        raise LookupError(
            f"{record.method} samples no drafts; the best of its first few is not shown to anyone"
        )
    return metric_curve(record, "best_draft_reward")


def plot_entropy(records: Sequence[Record], base: Row, *, title: str) -> go.Figure:
    """Like Fig. 3 (top left: entropy of the trained group, which for iGRPO is given q'), and entropy on q at
    equal steps, equal live tokens (of a nonzero advantage) and equal held-out reward."""
    panels = [
        Panel("of the trained group, nats", STEPS, lambda r: metric_curve(r, "entropy")),
        Panel("on q, nats", "steps", lambda r: held_out_curve(r, base, "entropy")),
        Panel("on q, nats", "live tokens", lambda r: held_out_curve(r, base, "entropy", "tokens_live")),
        Panel("on q, nats", "held-out reward", lambda r: entropy_against_reward(r, base), "paths"),
    ]
    figure = plot_panels(records, panels, title=title, says=1)
    return figure.update_yaxes(rangemode="tozero")


def plot_flight(record: Record, *, title: str) -> go.Figure:
    """Eight panels by which one run is read: what it earns, writes and trains, and two checks of its code.

    The checks: the log-prob gap of sampler and trainer is 0 up to rounding if both score one distribution
    with the same weights, and as many tokens are trained as were sampled if the update uses their mask.
    Raises LookupError for a record that counts no trained tokens.
    """
    counted = _with_token_shares(record)
    panels = [
        Panel("reward", STEPS, partial(metric_curve, name="reward")),
        Panel("length, tokens", STEPS, partial(metric_curve, name="length")),
        Panel("entropy, nats", STEPS, partial(metric_curve, name="entropy")),
        Panel("gradient norm", STEPS, partial(metric_curve, name="grad_norm")),
        Panel("dead groups", STEPS, partial(metric_curve, name="dead_groups")),
        Panel("copies of the draft", STEPS, partial(metric_curve, name="copy_rate")),
        Panel("log-prob gap, nats", "steps", partial(training_curve, name="sampler_gap")),
        Panel("trained / sampled tokens", "steps", partial(training_curve, name="trained_share")),
    ]
    subtitle = "trained group; each step in the bottom row"
    figure = plot_panels([counted], panels, title=title, subtitle=subtitle)
    beside = {"correct": ("share correct", 1), "without_gradient": ("trained tokens with advantage 0", 3)}
    for i, (name, (label, row)) in enumerate(beside.items(), start=1):
        x, y = metric_curve(counted, name)
        figure.add_scatter(x=x, y=y, mode="lines", name=label, line=line_style(i), row=row, col=1)
    figure.update_yaxes(rangemode="tozero")
    for row, col in ((3, 1), (3, 2)):
        figure.update_yaxes(range=[0, 1], row=row, col=col)
    decades = {"type": "log", "range": [-7.5, 1.5], "dtick": 2, "exponentformat": "power"}
    return figure.update_yaxes(decades, row=4, col=1)


def _with_token_shares(record: Record) -> Record:
    """The record with what its counts of tokens say per step."""
    if "tokens_trained" not in record.metrics[0]:
        raise LookupError(f"{record.method}: no count of trained tokens")
    trained = np.diff([0, *(row["tokens_trained"] for row in record.metrics)]).tolist()
    rows = [
        row | {"trained_share": n / row["tokens"], "without_gradient": 1 - row["live_tokens"] / n}
        for row, n in zip(record.metrics, trained, strict=True)
    ]
    return replace(record, metrics=rows)


def plot_takeoff(records: Sequence[Record], *, title: str) -> go.Figure:
    """Why runs take off and stall, from exact rates: p, its logarithm, repair, and groups with a gradient."""
    panels = [
        Panel("p on q, each run and mean", "steps", lambda r: exact_curve(r), "paths"),
        Panel("log p on q, mean over questions", "steps", lambda r: exact_curve(r, "log_prob")),
        Panel("own wrong drafts repaired", "steps", _repaired, "paths"),
        Panel("dead groups, trained stage", STEPS, lambda r: metric_curve(r, "dead_groups")),
    ]
    subtitle = "held-out questions, exact; the right panels: mean and 95% interval over seeds (Student)"
    return plot_panels(records, panels, title=title, subtitle=subtitle)


def _repaired(record: Record) -> Curve:
    """The repair rate; NaN where under a tenth of the drafts are wrong, because a few drafts give noise."""
    curve, wrong = exact_curve(record, "repair"), exact_curve(record, "drafts_wrong").y
    return Curve(curve.x, np.where(wrong >= 0.1, curve.y, np.nan))


def plot_reach(records: Sequence[Record], *, title: str, level: float = 0.5) -> go.Figure:
    """Share of runs whose p has reached a level, by step (Kaplan-Meier), with 95% bands."""
    figure = apply_style(go.Figure(), title, f"share of runs with p >= {level:g}; 95% bands", width=WIDTH)
    shares = {}
    methods = dict.fromkeys(r.method for r in records)
    for i, method in enumerate(methods):
        runs = seeds_of(records, method)
        curve, style = reach_curve(runs, level), line_style(i)
        last = max(r.exact[-1]["step"] for r in runs)
        x = np.array([0, *curve.steps, last], dtype=float)
        share, low, high = (
            np.array([0.0, *values, values[-1] if values else 0.0])
            for values in (curve.share, curve.low, curve.high)
        )
        # Each value holds until the next step, so a band is drawn with its corners.
        corners = np.repeat(x, 2)[1:]
        add_band(figure, corners, (np.repeat(low, 2)[:-1], np.repeat(high, 2)[:-1]), style["color"])
        figure.add_scatter(x=x, y=share, name=method, mode="lines", line={**style, "shape": "hv", "width": 3})
        shares[method] = share
    figure.update_xaxes(title_text="steps").update_yaxes(title_text="share of runs", range=[0, 1.02])
    return describe(figure, f"Step curves: {title}. Share of runs: {ends_in_words(shares)}.")


def plot_lengths(records: Sequence[Record], *, title: str) -> go.Figure:
    """Like Fig. S.2b: tokens per completion, of the trained group and of answers to q."""
    panels = [
        Panel("trained group, tokens", STEPS, lambda r: metric_curve(r, "length")),
        Panel("answers to q, tokens", STEPS, lambda r: metric_curve(r, "length", on_q=True)),
    ]
    return plot_panels(records, panels, title=title, says=1).update_yaxes(rangemode="tozero")


def plot_dead_group_kinds(records: Sequence[Record], *, title: str) -> go.Figure:
    """Groups of advantage 0, by kind: all correct (nothing left to learn), and equal rewards otherwise."""

    def not_all_correct(record: Record) -> Curve:
        x, dead = metric_curve(record, "dead_groups")
        return Curve(x, dead - metric_curve(record, "all_correct_groups").y)

    panels = [
        Panel("groups that are all correct", STEPS, lambda r: metric_curve(r, "all_correct_groups")),
        Panel("other dead groups", STEPS, not_all_correct),
    ]
    return plot_panels(records, panels, title=title)


FLOWS = ("correct, copied", "correct, rewritten", "regressed", "repaired", "still incorrect")
"""what becomes of a draft: the first three of a correct one, the last two of an incorrect one"""


def flows(row: Row) -> list[float]:
    """Shares of all refinements, in the order of `FLOWS`, from one step's metrics; their sum is 1.

    NaN where the metrics do not determine them. *Correct* means the full reward.
    Raises ValueError naming the step of a row without drafts.
    """
    if row.get("copy_rate") is None:
        raise ValueError(f"step {row['step']}: no draft was shown")
    counts = transitions_in_metrics([row]).counts
    if len(counts) == 0:
        return [float("nan")] * len(FLOWS)
    kept, regressed, repaired, still_incorrect = (counts[0] / counts[0].sum()).tolist()
    copied = (kept + regressed) * (row["copy_rate_of_correct"] or 0.0)  # a copy of a correct draft is correct
    return [copied, kept - copied, regressed, repaired, still_incorrect]


def plot_transitions(records: Sequence[Record], *, title: str) -> go.Figure:
    """What becomes of the draft that is shown: copied, rewritten, regressed, repaired or still incorrect.

    `records` are the seeds of one method. Raises ValueError as `flows` does, and for several methods.
    """
    if len({r.method for r in records}) != 1:
        raise ValueError(f"records: of one method, got {sorted({r.method for r in records})}")
    every_step = np.array([[flows(row) for row in r.metrics] for r in records])  # [seeds, steps, flows]
    shares = np.nanmean(np.lib.stride_tricks.sliding_window_view(every_step, SMOOTH, axis=1), axis=(0, 3))
    steps = [row["step"] for row in records[0].metrics][SMOOTH - 1 :]
    subtitle = f"{records[0].method}: what becomes of the draft that is shown, mean over seeds"
    figure = apply_style(go.Figure(), title, subtitle, legend_traceorder="normal", width=WIDTH)
    for i, name in enumerate(FLOWS):
        figure.add_scatter(
            x=steps, y=shares[:, i], name=name, stackgroup="all", mode="lines",
            line={"color": COLORS[i], "width": 1, "dash": "solid"}, fillcolor=COLORS[i],
            fillpattern={"shape": PATTERNS[i], "size": 7, "solidity": 0.25},
        )  # fmt: skip
    figure.update_xaxes(title_text=STEPS).update_yaxes(title_text="share of refinements", range=[0, 1])
    ends = ends_in_words(dict(zip(FLOWS, shares.T, strict=True)))
    return describe(figure, f"Stacked areas over the steps: {title}. {subtitle}. Shares: {ends}.")


def pass_intervals(records: Sequence[Record], n: Sequence[int]) -> dict[int, Interval]:
    """Unbiased Pass@N of the trained policy for each N: mean over the seeds, 95% interval over them."""
    rows = [record.final("q") for record in records]
    return {size: student_interval([pass_at(row, size) for row in rows]) for size in n}


def seeds_of(records: Sequence[Record], *methods: str) -> list[Record]:
    """The records of these methods, in the order named. Raises LookupError naming one that has none."""
    for method in methods:
        if not any(r.method == method for r in records):
            raise LookupError(f"methods: {method!r} is not among {sorted({r.method for r in records})}")
    return [r for method in methods for r in records if r.method == method]
