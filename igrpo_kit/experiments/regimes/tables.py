"""Tables of the revision-cipher experiments from their records."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from statistics import fmean

from igrpo_kit.analysis.compare import Record, accuracy, markdown_table
from igrpo_kit.analysis.stats.intervals import Interval
from igrpo_kit.analysis.takeoff import (
    BoundedDifference,
    BySeed,
    bounded_difference,
    mean_over_seeds,
    mean_p,
    p_after,
    reach_curve,
    share_taken_off,
)
from igrpo_kit.experiments.experiment import Experiment

SHARES = {"p at 1/4": 0.25, "p at 1/2": 0.5, "p at 3/4": 0.75, "p at the end": 1.0}
"""read-outs, by share of the run; of 200 steps, 50, 100, 150, and 200"""


def runs_of(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Method -> its runs, in the order of the records."""
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(record.method, []).append(record)
    return found


def by_seed(runs: Sequence[Record], number: Callable[[Record], float]) -> BySeed:
    """Seed -> a number of its run."""
    return {record.seed: number(record) for record in runs}


def _numbers(runs: Sequence[Record]) -> dict[str, BySeed]:
    """The read-outs of the preregistration."""
    found = {name: by_seed(runs, partial(p_after, share=share)) for name, share in SHARES.items()}
    return {**found, "area": by_seed(runs, mean_p)}


def read_out_table(records: Sequence[Record]) -> str:
    """One line per method: p at `SHARES`, the area, how many runs took off, and when p reached one half."""
    head = ["method", "seeds", *SHARES, "area", "took off", "half by step"]
    rows = [[*head, "greedy", "dead groups, end", "copies, end"]]
    for method, runs in runs_of(records).items():
        numbers = [str(mean_over_seeds(values)) for values in _numbers(runs).values()]
        count, half = _count(share_taken_off(runs), len(runs)), reach_curve(runs).median
        at_end = [_mean(r.at_end(name) for r in runs) for name in ("dead_groups", "copy_rate")]
        greedy = _mean(accuracy(r.final("q", greedy=True)) for r in runs)
        rows.append([method, str(len(runs)), *numbers, count, str(half or "-"), greedy, *at_end])
    return markdown_table(rows)


def _mean(values: Iterable[float]) -> str:
    numbers = list(values)
    mean = sum(numbers) / len(numbers)
    return "" if mean != mean else f"{mean:.2f}"


MAIN = {
    "revision-19": "19 digits",
    "revision-19-fresh": "19 digits, no skill to repair",
    "revision-19-shifted": "19 digits, q' with its digits shifted",
    "revision-15": "15 digits",
    "revision-12": "12 digits",
    "revision-8": "8 digits: p is common",
    "revision-15-fresh": "15 digits, no skill to repair",
    "revision-15-shifted": "15 digits, q' with its digits shifted",
    "revision-15-after": "15 digits, draft after the question",
}
"""the experiments of the main table: rarities first, then the bases that should change the outcome"""


Found = Mapping[str, tuple[Experiment, Sequence[Record]]]
"""name of a preset -> its definition and its records"""


def main_table(found: Found) -> str:
    """All core methods on all bases of `MAIN` that are found: p, area, take-offs, differences to GRPO-8."""
    head = ["setting", "method", "rate", "seeds", "p at 1/2", "p at the end", "area", "took off"]
    rows = [[*head, "half by step", "p at the end, minus GRPO-8", "area, minus GRPO-8"]]
    for name in [name for name in MAIN if name in found]:
        experiment, records = found[name]
        methods = runs_of(records)
        base = _numbers(methods[experiment.baseline])
        for method, runs in methods.items():
            numbers = _numbers(runs)
            cells = [str(mean_over_seeds(numbers[key])) for key in ("p at 1/2", "p at the end", "area")]
            row = [MAIN[name], method, f"{experiment.methods[method]['learning_rate']:g}", str(len(runs))]
            row += [*cells, _count(share_taken_off(runs), len(runs)), str(reach_curve(runs).median or "-")]
            for key in ("p at the end", "area"):
                same = method == experiment.baseline
                row.append("" if same else _difference(bounded_difference(numbers[key], base[key])))
            rows.append(row)
    return markdown_table(rows)


def rarity_table(experiments: Sequence[Sequence[Record]]) -> str:
    """Each method at several rarities: how many runs took off, and p at the end.

    Args:
        experiments: for each rarity, the runs of its core methods.
    """

    def start(records: Sequence[Record]) -> str:
        p, r = (fmean(record.exact[0][name] for record in records) for name in ("p", "repair"))
        one_in, times = (f"{float(f'{x:.2g}'):,.0f}" for x in (1 / p, r / p))
        return f"p = 1 in {one_in}; r = {times} p"

    rows = [["runs that take off, and p at the end", *map(start, experiments)]]
    by_method = [runs_of(records) for records in experiments]
    for method in by_method[0]:
        cells = []
        for runs in (found[method] for found in by_method):
            started = round(share_taken_off(runs).estimate * len(runs))
            end = mean_over_seeds(by_seed(runs, partial(p_after, share=1.0)))
            cells.append(f"{started} of {len(runs)}; {end}")
        rows.append([method, *cells])
    return markdown_table(rows)


def _count(share: Interval, runs: int) -> str:
    return f"{round(share.estimate * runs)} of {runs} [{share.low:.2f}, {share.high:.2f}]"


def _difference(d: BoundedDifference) -> str:
    """Bold where both intervals exclude 0."""
    return f"**{d}**" if d.sign else str(d)


def controls_table(core: Sequence[Record], controls: Sequence[Record]) -> str:
    """The controls and, on the same seeds, the core methods they are compared with.

    Args:
        core: runs of `revision.core`.
        controls: runs of `revision.controls`.
    """
    seeds = {record.seed for record in controls}
    core = [record for record in core if record.seed in seeds]
    shown = [r for r in core if r.method != "drafts, then GRPO"]
    methods = runs_of([*shown, *controls])
    rows = [["method", "p at 1/2", "p at the end", "area", "took off", "p at the end, minus iGRPO 4+4"]]
    base = _numbers(methods["iGRPO 4+4"])["p at the end"]
    for method, runs in methods.items():
        numbers = _numbers(runs)
        cells = [str(mean_over_seeds(numbers[key])) for key in ("p at 1/2", "p at the end", "area")]
        d = _difference(bounded_difference(numbers["p at the end"], base))
        rows.append(
            [method, *cells, _count(share_taken_off(runs), len(runs)), "" if method == "iGRPO 4+4" else d]
        )
    return markdown_table(rows)
