"""Run records -> plotly figures: the kinds of the paper's Fig. 3 and Fig. S.2, and what those leave out.

Nothing is smoothed away unseen: training metrics are running means over `SMOOTH` steps, and the axis says so.
"""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from igrpo_kit.analysis.compare import Record, mean_reward, pass_at, score_curve
from igrpo_kit.analysis.intervals import Interval, student_interval
from igrpo_kit.runlog import Row
from igrpo_kit.viz.panels import Curve, Panel, Values, plot_panels
from igrpo_kit.viz.style import COLORS, GREY, PATTERNS, TEMPLATE, WIDTH, describe, ends_in_words

SMOOTH = 10
STEPS = f"steps (mean of {SMOOTH})"


def _running_mean(values: Values) -> Values:
    """Mean of the last SMOOTH values that are known; NaN where none is."""
    padded = np.concatenate([np.full(SMOOTH - 1, np.nan), values])
    windows = np.lib.stride_tricks.sliding_window_view(padded, SMOOTH)
    known = ~np.isnan(windows)
    count = known.sum(axis=1)
    total = np.where(known, windows, 0.0).sum(axis=1)
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0)


def _curve(x: Sequence[float | None], y: Sequence[float | None]) -> Curve:
    return np.array(x, dtype=float), np.array(y, dtype=float)  # None, a number that is missing, becomes NaN


def metric_curve(record: Record, name: str) -> Curve:
    """A training metric against the step, as a running mean."""
    x, y = _curve([row["step"] for row in record.metrics], [row.get(name) for row in record.metrics])
    return x, _running_mean(y)


def metric_on_q(record: Record, name: str) -> Curve:
    """The same of the completions of q alone: of iGRPO's drafts, of GRPO's completions."""
    drafts = f"stage1/{name}"
    return metric_curve(record, drafts if record.metrics and drafts in record.metrics[0] else name)


def entropy_curve(record: Record, base: Row, clock: str) -> Curve:
    """Entropy on q of the held-out evaluations, in nats, against a metric that grows (steps, tokens)."""
    clock_at = {row["step"]: row[clock] for row in record.metrics}
    rows = record.single_shot()
    return _curve([0, *(clock_at[row["step"]] for row in rows)], [row["entropy"] for row in (base, *rows)])


def entropy_against_score(record: Record, base: Row) -> Curve:
    """Entropy on q against held-out score: "delayed collapse" at equal accuracy instead of equal steps."""
    rows = [base, *record.single_shot()]
    return _curve([mean_reward(row) for row in rows], [row["entropy"] for row in rows])


def pass_curve(record: Record) -> Curve:
    """Unbiased pass@k of the trained policy, k in powers of two."""
    row = record.final("q")
    ks = [2**i for i in range(row["num_samples"].bit_length())]
    return _curve(ks, [pass_at(row, k) for k in ks])


def plot_comparison(records: Sequence[Record], base: Row, *, title: str) -> go.Figure:
    """Six panels from the records of one experiment: score at three budgets, entropy, dead groups, pass@k."""
    panels = [
        Panel("held-out score", "steps", lambda r: _curve(*score_curve(r, base, "step"))),
        Panel("held-out score", "gradient tokens", lambda r: _curve(*score_curve(r, base, "tokens_trained"))),
        Panel(
            "held-out score",
            "processor seconds",
            lambda r: _curve(*score_curve(r, base, "seconds/cpu_total")),
        ),
        Panel("entropy on q, nats", "held-out score", lambda r: entropy_against_score(r, base), "paths"),
        Panel("dead groups", STEPS, lambda r: metric_curve(r, "dead_groups")),
        Panel("pass@k", "k", pass_curve),
    ]
    figure = plot_panels(records, panels, title=title)
    ks = [2**i for i in range(base["num_samples"].bit_length())]
    before = go.Scatter(x=ks, y=[pass_at(base, k) for k in ks], name="before training", mode="lines+markers")
    before.update(line={"color": GREY, "dash": "dot"}, marker={"color": GREY, "symbol": "circle"})
    return figure.add_trace(before, row=3, col=2).update_xaxes(type="log", tickvals=ks, row=3, col=2)


def plot_rewards(records: Sequence[Record], base: Row, *, title: str) -> go.Figure:
    """The kind of Fig. S.2a, and what it leaves out: reward of the trained group, of q, best draft, held out.

    iGRPO's trained group is given the best draft, GRPO's is given q alone: only panels 2 and 4 compare like
    with like.
    """
    panels = [
        Panel("reward of the trained group", STEPS, lambda r: metric_curve(r, "reward")),
        Panel("reward of answers to q", STEPS, lambda r: metric_on_q(r, "reward")),
        Panel("best draft's reward", STEPS, _best_draft),
        Panel("held-out, single shot from q", "steps", lambda r: _curve(*score_curve(r, base, "step"))),
    ]
    return plot_panels(records, panels, title=title, says=3)


def _best_draft(record: Record) -> Curve:
    """Of runs that draw drafts; GRPO's "best of its first few" is not used for anything."""
    x, y = metric_curve(record, "best_draft_reward")
    return x, (y if "stage1/reward" in record.metrics[0] else np.full(len(y), np.nan))


def plot_entropy(records: Sequence[Record], base: Row, *, title: str) -> go.Figure:
    """The kind of Fig. 3 (top left: of what is trained, which for iGRPO is given q'), and entropy on q at
    equal steps, equal gradient tokens and equal held-out score."""
    panels = [
        Panel("of the trained group, nats", STEPS, lambda r: metric_curve(r, "entropy")),
        Panel("on q, nats", "steps", lambda r: entropy_curve(r, base, "step")),
        Panel("on q, nats", "gradient tokens", lambda r: entropy_curve(r, base, "tokens_trained")),
        Panel("on q, nats", "held-out score", lambda r: entropy_against_score(r, base), "paths"),
    ]
    figure = plot_panels(records, panels, title=title, says=1)
    return figure.update_yaxes(rangemode="tozero")


def plot_lengths(records: Sequence[Record], *, title: str) -> go.Figure:
    """The kind of Fig. S.2b: tokens per completion, of what is trained and of answers to q."""
    panels = [
        Panel("trained group, tokens", STEPS, lambda r: metric_curve(r, "length")),
        Panel("answers to q, tokens", STEPS, lambda r: metric_on_q(r, "length")),
    ]
    return plot_panels(records, panels, title=title, says=1).update_yaxes(rangemode="tozero")


def plot_dead_group_kinds(records: Sequence[Record], *, title: str) -> go.Figure:
    """Groups of advantage 0, apart: all right (nothing left to learn) and alike otherwise (out of reach)."""

    def not_all_right(record: Record) -> Curve:
        x, dead = metric_curve(record, "dead_groups")
        return x, dead - metric_curve(record, "all_right_groups")[1]

    panels = [
        Panel("groups that are all right", STEPS, lambda r: metric_curve(r, "all_right_groups")),
        Panel("other dead groups", STEPS, not_all_right),
    ]
    return plot_panels(records, panels, title=title)


FLOWS = ("copied, right", "rewritten, right", "spoilt", "repaired", "still wrong")
"""what becomes of a best draft: the first three of a right one, the last two of a wrong one"""


def flows(row: Row) -> list[float]:
    """Shares of all refinements, in the order of `FLOWS`, from one step's metrics; they add up to 1.

    Binary rewards are assumed: the best draft's mean reward is then the share of prompts with a right one.
    Raises ValueError naming the step of a row without drafts, or whose reward is graded.
    """
    if row.get("copy_rate") is None or row["reward"] != row["right"]:
        raise ValueError(f"step {row['step']}: flows need drafts and a right-or-wrong reward")
    right = row["best_draft_reward"]
    copied, spoilt = (row.get(k) or 0.0 for k in ("copy_rate_of_right", "right_to_wrong"))
    repaired = row.get("wrong_to_right") or 0.0  # None where every best draft was right
    shares = (copied, 1 - copied - spoilt, spoilt)
    return [*(right * s for s in shares), (1 - right) * repaired, (1 - right) * (1 - repaired)]


def plot_transitions(records: Sequence[Record], *, title: str) -> go.Figure:
    """What becomes of the best draft: copied, rewritten, spoilt, repaired or still wrong, over the steps.

    `records` are the seeds of one method that shows the *best* draft (of a random one `best_draft_reward`
    says nothing), with a binary reward. Raises ValueError as `flows` does, and for several methods.
    """
    if len({r.method for r in records}) != 1:
        raise ValueError(f"records: of one method, got {sorted({r.method for r in records})}")
    shares = np.mean([[flows(row) for row in r.metrics] for r in records], axis=0)  # [steps, flows]
    steps = np.array([row["step"] for row in records[0].metrics], dtype=float)
    smooth = [_running_mean(column) for column in shares.T]
    figure = go.Figure(layout_template=TEMPLATE)
    for i, (name, y) in enumerate(zip(FLOWS, smooth, strict=True)):
        figure.add_scatter(
            x=steps, y=y, name=name, stackgroup="all", mode="lines", line={"color": COLORS[i], "width": 1},
            fillcolor=COLORS[i], fillpattern={"shape": PATTERNS[i], "size": 6, "fillmode": "overlay"},
        )  # fmt: skip
    figure.update_layout(
        title={
            "text": title,
            "subtitle": {"text": f"{records[0].method}: shares of refinements, mean over seeds"},
        },
        legend_traceorder="normal",
        width=WIDTH,
    )
    figure.update_xaxes(title_text=STEPS).update_yaxes(title_text="share of refinements", range=[0, 1])
    ends = {name: [y[SMOOTH - 1], y[-1]] for name, y in zip(FLOWS, smooth, strict=True)}
    return describe(figure, f"Stacked areas over the steps: {title}. {ends_in_words(ends)}.")


def pass_intervals(records: Sequence[Record], n: Sequence[int]) -> dict[int, Interval]:
    """Unbiased Pass@N of the trained policy for each N: mean over the seeds, 95 % interval over them."""
    rows = [record.final("q") for record in records]
    return {size: student_interval([pass_at(row, size) for row in rows]) for size in n}


def seeds_of(records: Sequence[Record], *methods: str) -> list[Record]:
    """The records of these methods, in the order named. Raises LookupError naming one that has none."""
    for method in methods:
        if not any(r.method == method for r in records):
            raise LookupError(f"methods: {method!r} is not among {sorted({r.method for r in records})}")
    return [r for method in methods for r in records if r.method == method]
