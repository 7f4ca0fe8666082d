"""Tables of the revision-cipher experiments from their committed records."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial

from igrpo_kit.analysis.compare import Record, accuracy, markdown_table
from igrpo_kit.analysis.takeoff import (
    BySeed,
    bounded_difference,
    mean_over_seeds,
    mean_p,
    p_after,
    reach_curve,
    share_taken_off,
)

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
        started, half = share_taken_off(runs), reach_curve(runs).median
        count = (
            f"{round(started.estimate * len(runs))} of {len(runs)} [{started.low:.2f}, {started.high:.2f}]"
        )
        at_end = [_mean(r.at_end(name) for r in runs) for name in ("dead_groups", "copy_rate")]
        greedy = _mean(accuracy(r.final("q", greedy=True)) for r in runs)
        rows.append([method, str(len(runs)), *numbers, count, str(half or "-"), greedy, *at_end])
    return markdown_table(rows)


def _mean(values: Iterable[float]) -> str:
    numbers = list(values)
    mean = sum(numbers) / len(numbers)
    return "" if mean != mean else f"{mean:.2f}"


def difference_table(records: Sequence[Record], baseline: str) -> str:
    """One line per other method: its differences to the baseline, paired by seed, with a bootstrap interval.

    A difference is bold if Student's interval excludes 0 as well.
    """
    rows = [["minus " + baseline, "seeds", *SHARES, "area"]]
    all_runs = runs_of(records)
    base = _numbers(all_runs[baseline])
    for method, runs in all_runs.items():
        if method == baseline:
            continue
        found = {key: bounded_difference(values, base[key]) for key, values in _numbers(runs).items()}
        cells = [f"**{d}**" if d.sign else str(d) for d in found.values()]
        rows.append([method, str(len(runs)), *cells])
    return markdown_table(rows)
