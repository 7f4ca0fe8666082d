"""The figures in `figures/`, drawn from data or from a seeded simulation by `igrpo figures`."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
import plotly.graph_objects as go

from igrpo_kit.analysis.cost import SCHEDULES, Job, calibrated, job_cost
from igrpo_kit.analysis.paper import load_table, load_text, row_means
from igrpo_kit.analysis.stats.passk import pass_at_k_curve
from igrpo_kit.core.toy import simulate_best_of_n, simulate_igrpo
from igrpo_kit.experiments.presets import committed
from igrpo_kit.experiments.report import comparison_figure
from igrpo_kit.viz.files import write_html, write_pngs
from igrpo_kit.viz.plots import plot_best_of_n, plot_mixed_groups
from igrpo_kit.viz.results import (
    as_intervals,
    plot_forest,
    plot_marked_table,
    plot_pass_at_n,
    plot_stacked_bars,
)
from igrpo_kit.viz.runs import (
    pass_intervals,
    plot_dead_group_kinds,
    plot_entropy,
    plot_lengths,
    plot_rewards,
    plot_transitions,
    seeds_of,
)
from igrpo_kit.viz.style import in_dark


def best_of_n() -> go.Figure:
    """Proposition 3.1, and a simulation with few enough prompts per point (1,000) to show its noise."""
    p, n, trials = np.arange(0.05, 1, 0.1), [1, 2, 4, 8, 16], 1000
    rng = np.random.default_rng(0)
    simulated = np.array([[simulate_best_of_n(x, size, trials, rng) for x in p.tolist()] for size in n])
    return plot_best_of_n(p, n, simulated, trials)


def mixed_groups() -> go.Figure:
    """Which groups contribute a gradient in GRPO and iGRPO, at eight rollouts per prompt."""
    p, rng = np.arange(0.05, 1, 0.05), np.random.default_rng(0)
    results = [
        simulate_igrpo(
            p_mean=x,
            p_concentration=1e9,  # equal prompts
            p_fix=None,
            p_keep=0.63,
            num_drafts=4,
            num_refinements=4,
            prompts=200_000,
            rng=rng,
        )
        for x in p.tolist()
    ]
    assumption = "a model: 63% of correct drafts are kept, as recorded; an incorrect one changes nothing"
    return plot_mixed_groups(p, results, num_drafts=4, num_refinements=4, assumption=assumption)


def comparison(preset: str) -> go.Figure:
    """A committed experiment, from its records."""
    return comparison_figure(*committed(preset))


def entropy() -> go.Figure:
    """Countdown: entropy in four panels; GRPO-4 trains on as many completions as iGRPO, without a draft."""
    _, records, base = committed("countdown-cpu")
    shown = seeds_of(records, "GRPO-8", "iGRPO 4+4", "GRPO-4")
    return plot_entropy(shown, base, title="Countdown: is entropy kept, or is learning slower?")


def pass_at_n() -> go.Figure:
    """Countdown: Pass@N before and after training."""
    _, records, base = committed("countdown-cpu")
    n = range(1, base["num_samples"] + 1)
    untrained = pass_at_k_curve(base["num_samples"], base["correct"], n, rng=np.random.default_rng(0))
    return plot_pass_at_n(
        {method: pass_intervals(seeds_of(records, method), n) for method in ("GRPO-8", "iGRPO 4+4")},
        before=as_intervals(untrained),
        title="Countdown: training raises Pass@1 and lowers Pass@32",
        subtitle="unbiased; 95% bands over seeds, before training over problems",
    )


def rewards() -> go.Figure:
    """Addition, where rewards in training and single-shot rewards differ most."""
    _, records, base = committed("addition-cpu")
    return plot_rewards(records, base, title="Addition: four rewards of the same runs")


def lengths() -> go.Figure:
    """Addition, the only one of the three tasks with free length."""
    _, records, _ = committed("addition-cpu")
    return plot_lengths(records, title="Addition: tokens per completion")


def dead_groups() -> go.Figure:
    """Countdown: why groups contribute no gradient."""
    _, records, _ = committed("countdown-cpu")
    shown = seeds_of(records, "GRPO-8", "iGRPO 4+4", "GRPO-4")
    return plot_dead_group_kinds(shown, title="Countdown: groups without a gradient")


def transitions() -> go.Figure:
    """Countdown: copied, repaired and regressed refinements of iGRPO."""
    _, records, _ = committed("countdown-cpu")
    return plot_transitions(seeds_of(records, "iGRPO 4+4"), title="Countdown: refinements become copies")


def differences(presets: Sequence[str], *, title: str) -> go.Figure:
    """Recorded experiments: held-out reward of each method minus that of the method it is compared with."""
    groups = {}
    for preset in presets:
        experiment, records, base = committed(preset)
        summaries = experiment.summarize(records, base)
        groups[preset.removesuffix("-cpu").removeprefix("ablation-")] = {
            s.method: s.differences[experiment.metric].paired for s in summaries if s.differences
        }
    return plot_forest(
        groups,
        title=title,
        subtitle="held-out problems; paired by seed, 95% intervals (Student)",
        x_title="difference of the mean reward",
    )


def cost_of_a_step() -> go.Figure:
    """The paper's 7B run under four schedules, by the cost model, calibrated on the GRPO row of Table S.3."""
    hours = load_table("table_s3")["GRPO"]["Total GPU Hours"]
    cap = int(load_text()["maximum completion length while measuring"])
    grpo = calibrated(Job(num_drafts=0, num_refinements=8, cap=cap), float(hours))
    jobs = {"GRPO": job_cost(grpo)}
    for schedule in SCHEDULES:
        jobs[f"iGRPO, {schedule}"] = job_cost(replace(grpo, num_drafts=4, num_refinements=4), schedule)
    return plot_stacked_bars(
        {
            name: {"decode": c.decode_seconds, "prefill": c.prefill_seconds, "update": c.update_seconds}
            for name, c in jobs.items()
        },
        title="One step of the paper's 7B run: a model, not a measurement",
        subtitle=f"assumed lengths, at most {cap:,}; calibrated on GRPO's {hours} GPU-hours (Table S.3)",
        x_title="seconds",
    )


def paper_table() -> go.Figure:
    """Table 1 as printed, with findings of the audit (`analysis.paper`) on some of its cells."""
    table = load_table("table_1")
    names, columns = list(table), list(table["DeepSeek-R1-Distill-Qwen-7B"])
    marks = {
        (names.index(f.where.removeprefix("Table 1, ")), len(columns)): f"{f.computed} (printed {f.printed})"
        for f in row_means(table, "Table 1")
        if not f.agrees
    }
    for one, other in combinations(names, 2):
        alike = [c for c in columns if table[one][c] == table[other][c]]
        if len(alike) >= 5:
            note = f"the same in {one} and {other}: {len(alike)} of 6 columns"
            marks |= {(names.index(n), 1 + columns.index(c)): note for n in (one, other) for c in alike}
    rows = [[name.removeprefix("DeepSeek-"), *map(str, cells.values())] for name, cells in table.items()]
    return plot_marked_table(
        ["", *columns],
        rows,
        marks,
        title="Table 1 of the paper, as printed",
        subtitle="Pass@1, percent; R1-Distill is DeepSeek's",
    )


FIGURES: dict[str, Callable[[], go.Figure]] = {
    "best_of_n": best_of_n,
    "mixed_groups": mixed_groups,
    "countdown-cpu": partial(comparison, "countdown-cpu"),
    "addition-cpu": partial(comparison, "addition-cpu"),
    "graded-cpu": partial(comparison, "graded-cpu"),
    "rewards": rewards,
    "lengths": lengths,
    "entropy": entropy,
    "pass_at_n": pass_at_n,
    "dead_groups": dead_groups,
    "transitions": transitions,
    "smollm2-cpu": partial(comparison, "smollm2-cpu"),
    "differences": partial(
        differences,
        ("countdown-cpu", "addition-cpu", "graded-cpu"),
        title="Single-shot reward minus GRPO-8's",
    ),
    "ablations": partial(
        differences,
        ("ablation-objective", "ablation-beta", "ablation-completions"),
        title="Ablations of the paper, at tiny scale",
    ),
    "cost": cost_of_a_step,
    "paper_table": paper_table,
}
"""Name of the file -> the function that draws it."""

SHOWN = ("differences", "entropy", "pass_at_n")
"""The figures of the README, which are also drawn on a dark background as `<name>-dark.png`."""


def draw_pages(folder: str | Path) -> list[Path]:
    """Write every figure as `folder/html/<name>.html`; the pages work offline and share one script."""
    pages = Path(folder) / "html"
    return [write_html(draw(), pages / f"{name}.html", shared_script=True) for name, draw in FIGURES.items()]


def draw_pictures(folder: str | Path) -> list[Path]:
    """Write every figure as `folder/<name>.png`. Raises FileNotFoundError if no browser is found."""
    folder = Path(folder)
    figures = {folder / f"{name}.png": draw() for name, draw in FIGURES.items()}
    dark = {folder / f"{name}-dark.png": in_dark(figures[folder / f"{name}.png"]) for name in SHOWN}
    return write_pngs(figures | dark)
