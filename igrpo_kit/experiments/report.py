"""Reports from the committed records: the text of a comparison, and the generated blocks of Markdown files.

A block stands between `<!-- generated: NAME -->` and `<!-- end generated -->`; `igrpo report --write` writes
it.
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import plotly.graph_objects as go

from igrpo_kit.analysis import cost, paper
from igrpo_kit.analysis.compare import (
    COLUMNS,
    Record,
    accuracy,
    difference,
    load_records,
    markdown_table,
    one_run_table,
    signed,
    summarize,
    table,
    verdicts,
)
from igrpo_kit.analysis.stats.intervals import welch_interval
from igrpo_kit.core.data import data_path
from igrpo_kit.core.rows import Row
from igrpo_kit.experiments.ablations import best_learning_rates
from igrpo_kit.experiments.experiment import Experiment, record_folders
from igrpo_kit.experiments.presets import committed
from igrpo_kit.experiments.regimes import natural, revision
from igrpo_kit.experiments.regimes.predictions import Outcome, judged, outcome_table
from igrpo_kit.experiments.regimes.tables import (
    MAIN,
    controls_table,
    main_table,
    rarity_table,
    read_out_table,
)
from igrpo_kit.viz.runs import plot_comparison, plot_takeoff

REPORTED = (
    "greedy",
    "pass_at_8",
    "at_equal_live_tokens",
    "at_equal_trained_tokens",
    "at_equal_seconds",
    "own_draft",
    "vote",
    "verified_vote",
    "verdict",
    "entropy",
    "dead_groups_start",
    "copy_rate_end",
    "cpu_seconds",
)
"""the columns of a comparison's table after its metric"""
_SHORT = ("greedy", "at_equal_live_tokens", "at_equal_trained_tokens", "at_equal_seconds", "own_draft")
_BOTH = "iGRPO 4+4, both stages trained (ours)"
_SHARED_RATE = 3e-4  # of the experiments with one learning rate


def comparison_text(experiment: Experiment, folder: str | Path) -> tuple[str, list[Record], Row]:
    """The report of an experiment as text, its records, and the untrained policy's evaluation.

    Raises as `load_records`.
    """
    records, base = load_records(folder, record_folders(experiment))
    seeds = len(experiment.seeds)
    if seeds == 1:
        note = "Held-out problems. 95% intervals over the problems; they exclude run-to-run variance."
        return f"\n{note}\n\n{one_run_table(records, base)}", records, base
    summaries = experiment.summarize(records, base)
    known = [c for c in REPORTED if any(c in summary.numbers for summary in summaries)]
    # Budgets between evaluations are interpolated, which is meaningless with one evaluation at the end.
    once = experiment.evaluate_every >= experiment.steps
    columns = [c for c in known if not (once and c.startswith("at_equal"))]
    note = f"Held-out problems, single shot from q unless stated. Mean [95% interval over {seeds} seeds]."
    said = [
        sentence
        for s in summaries
        for sentence in verdicts(s, s.against or experiment.baseline, [experiment.metric, "greedy"])
    ]
    text = table(summaries, base, [experiment.metric, *columns])
    if experiment.measure_every:
        text += f"\n\nExact p on held-out questions:\n\n{read_out_table(records)}"
    return "\n".join(["", note, "", text, "", *said]), records, base


def comparison_figure(experiment: Experiment, records: Sequence[Record], base: Row) -> go.Figure:
    """The figure of an experiment: its six panels, or where exact rates are measured, the take-off."""
    if experiment.measure_every:
        return plot_takeoff(records, title=experiment.title)
    return plot_comparison(records, base, title=experiment.title)


def _bullets(preset: str, baseline: str = "", only: Sequence[str] = ()) -> str:
    """The verdict on each method, or on the methods in `only`, compared with `baseline` if given."""
    experiment, records, base = committed(preset)
    against = {} if baseline else experiment.against
    baseline = baseline or experiment.baseline
    lines = [
        f"- {sentence}"
        for s in summarize(records, base, baseline=baseline, against=against)
        for sentence in verdicts(s, s.against or baseline, [experiment.metric])
        if not only or s.method in only
    ]
    return "\n".join(lines)


def _long(preset: str) -> str:
    experiment, records, base = committed(preset)
    summaries = experiment.summarize(records, base)
    return table(summaries, base, [experiment.metric, *_SHORT]) + "\n\n" + _bullets(preset)


def _one_run(preset: str) -> str:
    _, records, base = committed(preset)
    return one_run_table(records, base)


def _summary() -> str:
    head = "task, measure, seeds, before training, GRPO-8, iGRPO 4+4 minus GRPO-8"
    rows = [[*head.split(", "), "both stages trained (ours) minus GRPO-8"]]
    for preset in ("countdown-cpu", "addition-cpu", "graded-cpu"):
        experiment, records, base = committed(preset)
        key = experiment.metric
        by_method = {s.method: s for s in experiment.summarize(records, base)}
        start = COLUMNS[key].of_evaluation
        assert start is not None
        differences = [str(by_method[method].differences[key]) for method in ("iGRPO 4+4", _BOTH)]
        measured = [f"{start(base):.3f}", str(by_method["GRPO-8"].numbers[key])]
        rows.append(
            [experiment.title.split(":")[0], key, str(len(experiment.seeds)), *measured, *differences]
        )
    return markdown_table(rows)


_COSTS: tuple[tuple[str, str, str, str], ...] = (
    ("igrpo_over_grpo_step", "iGRPO step / GRPO step, equal rollouts, drafting one step ahead", ".2f", ""),
    ("igrpo_over_grpo_as_published", "the same with the stages one after the other, as published", ".2f", ""),
    (
        "shared_prefix_speedup",
        "update with each group's prompt encoded once, against padded",
        ".1f",
        "x faster",
    ),
    (
        "sampler_over_generate",
        "our sampler against `model.generate`, log-probs and entropies included",
        ".1f",
        "x faster",
    ),
    ("step_over_trl", "a whole step against TRL's GRPOTrainer", ".2f", " of its time"),
    ("grading_per_second", "completions graded per second, two cores", ",.0f", ""),
)


def _costs() -> str:
    rows = [["benchmark (`make bench`; one thread)", "median [95% interval]", "samples"]]
    for name, what, form, unit in _COSTS:
        row = json.loads(data_path(f"benchmarks/{name}.json").read_text())
        value, low, high, least, most = (
            format(x, form)
            for x in (row["value"], *row["interval"], min(row["samples"]), max(row["samples"]))
        )
        rows.append(
            [what, f"{value}{unit} [{low}, {high}]", f"{len(row['samples'])}, from {least} to {most}"]
        )
    step = json.loads(data_path("benchmarks/igrpo_over_grpo_as_published.json").read_text())
    tokens, dead = step["updated_tokens"], step["dead_groups"]
    return (
        f"{markdown_table(rows)}\n\nThe first two rows rest on what is updated: an iGRPO step computes "
        f"{tokens['igrpo']:,.0f} tokens with a nonzero advantage, {tokens['igrpo'] / tokens['grpo']:.0%} of "
        f"GRPO's {tokens['grpo']:,.0f}. It trains half of the completions, and {dead['igrpo']:.0%} of its "
        f"groups are dead, against {dead['grpo']:.0%} of GRPO's."
    )


def _cost_model() -> str:
    printed = paper.load_table("table_s3")
    hours = float(printed["GRPO"]["Total GPU Hours"])
    more_hours = float(printed["iGRPO"]["Total GPU Hours"]) / hours - 1
    rates = [float(printed[method]["Throughput (Samples/sec)"]) for method in ("GRPO", "iGRPO")]
    cap = int(paper.load_text()["maximum completion length while measuring"])
    lengths = (600, 1000, 1800, 2500, 3500)

    def more(*schedules: cost.Schedule) -> str:
        found = []
        for length in lengths:
            job = cost.Job(num_drafts=0, num_refinements=8, completion=length, cap=cap)
            igrpo = replace(cost.calibrated(job, hours), num_drafts=4, num_refinements=4)
            found += [100 * (cost.job_cost(igrpo, s).gpu_hours / hours - 1) for s in schedules]
        return f"{min(found):.0f} to {max(found):.0f}%"

    return (
        f"The paper's iGRPO takes {100 * more_hours:.0f}% more GPU-hours than its GRPO and "
        f"{100 * (rates[0] / rates[1] - 1):.0f}% more time per sample (Table S.3). A model of FLOPs and "
        f"stragglers, calibrated on GRPO's GPU-hours alone, with completions cut at {cap:,} tokens as in "
        f"that measurement and a mean of {lengths[0]:,} to {lengths[-1]:,} before the cut (an assumption), "
        f"predicts {more('two barriers')} more GPU-hours if all refinements wait for all drafts, "
        f"{more('pipelined')} if those of a prompt wait for its own drafts only, so it cannot tell the two "
        f"apart, and {more('one step ahead')} with drafts sampled one step ahead."
    )


def _change(records: Iterable[Record], name: str, digits: int) -> str:
    """Mean of a metric over the first and over the last 20 steps of all runs."""
    start, end = zip(*((r.at_start(name), r.at_end(name)) for r in records), strict=True)
    return f"from {fmean(start):.{digits}f} to {fmean(end):.{digits}f}"


def _addition_mechanism() -> str:
    runs = [r for r in committed("addition-cpu")[1] if r.method == "iGRPO 4+4"]
    change = partial(_change, runs)
    return (
        f"Under iGRPO 4+4, from the first to the last 20 steps, means over {len(runs)} seeds: the share of "
        f"correct drafts goes {change('stage1/correct', 2)}, that of correct refinements "
        f"{change('correct', 2)}, that of exact copies of the draft {change('copy_rate', 2)}, and the length "
        f"of a refinement {change('length', 1)} tokens."
    )


def _smollm2_mechanism() -> str:
    (run,) = [r for r in committed("smollm2-cpu")[1] if r.method == "iGRPO 4+4"]

    def change(name: str) -> str:
        start, end = (fmean(row[name] for row in part) for part in (run.metrics[:10], run.metrics[-10:]))
        return f"from {start:.2f} to {end:.2f}"

    return (
        "Under iGRPO 4+4, from the first to the last 10 steps, the share of exact copies of the draft goes "
        f"{change('copy_rate')} and that of dead groups {change('dead_groups')}."
    )


def _learning_rates() -> str:
    """The rate chosen for each method, what it does for the method, and the differences to GRPO-8."""
    head = "task, method, chosen rate, minus itself at 3e-4, minus GRPO-8 (all at 3e-4)"
    rows = [[*head.split(", "), "minus GRPO-8 (each at its own rate)"]]
    for task in ("countdown", "addition"):
        tuning, runs, _ = committed(f"ablation-lr-{task}")
        shared, own = (_final_accuracies(preset) for preset in (f"{task}-cpu", f"best-lr-{task}"))
        for method, rate in best_learning_rates(tuning, runs).items():
            row = [task, method, f"{rate:.1e}"]
            row.append("" if rate == _SHARED_RATE else str(difference(own[method], shared[method])))
            for scores in (shared, own):
                row.append("" if method == "GRPO-8" else str(difference(scores[method], scores["GRPO-8"])))
            rows.append(row)
    return markdown_table(rows)


def _final_accuracies(preset: str) -> dict[str, dict[int, float]]:
    """Method -> seed -> accuracy at the end of the run."""
    found: dict[str, dict[int, float]] = {}
    for record in committed(preset)[1]:
        found.setdefault(record.method, {})[record.seed] = accuracy(record.final("q"))
    return found


def _template_difference() -> str:
    """iGRPO minus GRPO-8 with the draft after q, minus the same with the draft before it."""

    def differences(preset: str) -> list[float]:
        scores = _final_accuracies(preset)
        return [x - scores["GRPO-8"][seed] for seed, x in scores["iGRPO 4+4"].items()]

    after, before = differences("template-after-cpu"), differences("countdown-cpu")
    return (
        "The difference of iGRPO 4+4 to GRPO-8 with the draft after the question, minus that with the draft "
        f"before it: {signed(welch_interval(after, before))} (Welch, {len(after)} and {len(before)} seeds)."
    )


def _revision() -> str:
    """The main table of the revision cipher, from what is committed."""
    names = [name for name in MAIN if _is_committed(name)]
    return main_table({name: committed(name)[:2] for name in names})


def _rarities() -> str:
    names = filter(_is_committed, [f"revision-{length}" for length in (19, 15, 12, 8)])
    return rarity_table([committed(name)[1] for name in names])


def _revision_rates() -> str:
    """The runs at other rates than the chosen ones."""
    names = [name for name in ("revision-19-rates", "revision-15-shared") if _is_committed(name)]
    return "\n\n".join(f"{committed(n)[0].title}:\n\n{read_out_table(committed(n)[1])}" for n in names)


def _revision_controls() -> str:
    """The controls and the relatives, by length, beside the core methods on the same seeds."""
    shown = []
    for length in (19, 15):
        names = [f"revision-{length}-{kind}" for kind in ("controls", "prefix")]
        records = [record for name in names if _is_committed(name) for record in committed(name)[1]]
        if records:
            core = committed(f"revision-{length}")[1]
            shown.append(f"{length} digits:\n\n{controls_table(core, records)}")
    return "\n\n".join(shown)


def _revision_predictions() -> str:
    names = [name for name in revision.experiments() if _is_committed(name)]
    return outcome_table(judged({name: committed(name)[1] for name in names}))


def _natural(preset: str, judge: Callable[[Sequence[Record]], list[Outcome]]) -> str:
    """Each kind of base on its own, and the predictions."""
    _, records, _ = committed(preset)
    bases = {"Bases 0 and 2, the counterexample": True, "Base 1, where p is common": False}
    shown = [
        f"{title}:\n\n{read_out_table([r for r in records if (r.seed in natural.COUNTEREXAMPLE) == counted])}"
        for title, counted in bases.items()
    ]
    return "\n\n".join([*shown, outcome_table(judge(records))])


def _is_committed(name: str) -> bool:
    return data_path(f"runs/{name}").is_dir()


_CONTROLS = ("GRPO-4", "iGRPO 4+4, random draft", "iGRPO 4+4, no draft")
BLOCKS: dict[str, Callable[[], str]] = {
    "rarities": _rarities,
    "revision": _revision,
    "revision-rates": _revision_rates,
    "revision-controls": _revision_controls,
    "revision-predictions": _revision_predictions,
    "natural": partial(_natural, "natural-results-first-4x3", natural.natural_judged),
    "natural-low": partial(_natural, "natural-results-first-4x3-low", natural.low_rates_judged),
    "summary": _summary,
    "costs": _costs,
    "cost-model": _cost_model,
    **{name: partial(_long, name) for name in ("countdown-cpu", "addition-cpu", "graded-cpu")},
    "countdown-controls": partial(_bullets, "countdown-cpu", "iGRPO 4+4", _CONTROLS),
    "learning-rates": _learning_rates,
    **{f"best-lr-{task}": partial(_bullets, f"best-lr-{task}") for task in ("countdown", "addition")},
    "template-after-cpu": partial(_long, "template-after-cpu"),
    "template-difference": _template_difference,
    "addition-mechanism": _addition_mechanism,
    "smollm2-cpu": partial(_one_run, "smollm2-cpu"),
    "smollm2-mechanism": _smollm2_mechanism,
    **{
        name: partial(_bullets, name)
        for name in (
            "ablation-objective",
            "ablation-beta",
            "ablation-completions",
            "ablation-step-size",
            "baselines-cpu",
        )
    },
}
"""The generated blocks by name."""

_BLOCK = re.compile(r"^<!-- generated: (\S+) -->$(.*?)^<!-- end generated -->$", re.MULTILINE | re.DOTALL)


def with_blocks(text: str) -> str:
    """Markdown text with every block regenerated. Raises ValueError for an unknown block."""

    def filled(found: Any) -> str:
        if found[1] not in BLOCKS:
            raise ValueError(f"no generated block {found[1]!r}; there is {', '.join(BLOCKS)}")
        return f"<!-- generated: {found[1]} -->\n\n{BLOCKS[found[1]]()}\n\n<!-- end generated -->"

    return _BLOCK.sub(filled, text)


def write_blocks(paths: Iterable[Path]) -> list[Path]:
    """Regenerate the blocks of these files, and return the files that changed. Raises as `with_blocks`."""
    texts = {path: path.read_text(encoding="utf-8") for path in paths}
    changed = {path: new for path, text in texts.items() if (new := with_blocks(text)) != text}
    for path, text in changed.items():
        path.write_text(text, encoding="utf-8")
    return list(changed)
