"""Summarize the records of an experiment in one table: each number with its seeds, interval and budget.

Methods are compared at three equal budgets. *Rollouts*: at the end of the run, when all methods have sampled
P * (N + G) completions per step (GRPO-4: half of that). *Live tokens*: when each method has trained on as
many tokens with a nonzero advantage as the method with the fewest in total. Only these have a gradient; a
second column counts all tokens of the trained groups, dead ones included, as loggers usually do. *Seconds*:
when each method has used as much processor time as the fastest in total, not counting evaluations. Accuracy
is interpolated linearly between evaluations.

Two methods are called different if both the interval paired by seed and Welch's exclude 0, and equivalent if
two one-sided tests at 5% put their difference within `MARGIN`, again by both. A difference that is neither is
called neither.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from igrpo_kit.analysis.stats.intervals import (
    Interval,
    bootstrap_interval,
    paired_difference,
    student_interval,
    welch_interval,
)
from igrpo_kit.core.passk import pass_at_k
from igrpo_kit.core.rows import OnError, Row, SkippedLinesWarning, read_checked_rows, read_rows
from igrpo_kit.training.records import RunLog, read_config, upgraded, with_live_tokens

WINDOW = 20
"""number of steps averaged for the start and the end of a training metric"""
MARGIN = 0.02
"""margin of equivalence of accuracies and rewards, fixed before the runs it judges (docs/predictions.md)"""


@dataclass(frozen=True)
class Record:
    """The record of one run."""

    method: str
    seed: int
    metrics: list[Row]
    evaluations: list[Row]
    exact: list[Row] = field(default_factory=list)
    """rows of exact rates (`analysis.transfer.exact_row`) in the order of steps, if any were measured"""

    def final(self, protocol: str, *, greedy: bool = False) -> Row:
        """The evaluation after the last step. Raises LookupError if the run has none."""
        for row in self.evaluations:
            if row["final"] and row["protocol"] == protocol and (row["temperature"] == 0) == greedy:
                return row
        raise LookupError(f"{self.method}, seed {self.seed}: no final evaluation {protocol!r}, {greedy=}")

    def single_shot(self) -> list[Row]:
        """The sampled evaluations from q, in the order of steps."""
        return [row for row in self.evaluations if row["protocol"] == "q" and row["temperature"] > 0]

    def at_start(self, name: str) -> float:
        """Mean of a metric over the first `WINDOW` steps."""
        return _mean([row.get(name) for row in self.metrics[:WINDOW]])

    def at_end(self, name: str) -> float:
        """Mean of a metric over the last `WINDOW` steps."""
        return _mean([row.get(name) for row in self.metrics[-WINDOW:]])


def _mean(values: Sequence[float | None]) -> float:
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else float("nan")


def accuracy(row: Row) -> float:
    """Fraction of samples that reached the full reward, averaged over problems."""
    return float(np.mean(row["correct"])) / row["num_samples"]


def mean_reward(row: Row) -> float:
    """Mean reward, averaged over problems; equals the accuracy if the reward is binary."""
    return float(np.mean(row["reward"]))


def entropy(row: Row) -> float:
    """Nats per token; NaN if the sampler reported none (null in the record)."""
    return float("nan") if row["entropy"] is None else row["entropy"]


def pass_at(row: Row, k: int) -> float:
    """Unbiased pass@k (https://arxiv.org/abs/2107.03374), mean over problems; NaN for under k samples."""
    if row["num_samples"] < k:
        return float("nan")
    return float(pass_at_k(row["num_samples"], np.array(row["correct"]), k).mean())


METRIC_COLUMNS = (
    "reward",
    "correct",
    "dead_groups",
    "entropy",
    "length",
    "tokens_sampled",
    "tokens_trained",
    "seconds/cpu_total",
)
"""metrics that every row must have besides its step"""

_NUMBER_OR_NULL = (int, float, type(None))

EVALUATION_COLUMNS = {
    "step": int, "final": bool, "protocol": str, "temperature": float, "num_samples": int,
    "correct": list, "reward": list, "entropy": float | None, "length": float,
}  # fmt: skip


def _require(row: Row, columns: Iterable[str]) -> None:
    missing = [name for name in columns if name not in row]
    if missing:
        raise ValueError(
            f"no {', '.join(map(repr, missing))}: of another program, or another version of this"
        )


def _metric_check() -> Callable[[Row], Row]:
    """A check of the metric rows of one file, in order; it returns them under the current names."""
    last = 0

    def check(row: Row) -> Row:
        nonlocal last
        row = upgraded(row)
        _require(row, ("step", *METRIC_COLUMNS))
        for name in METRIC_COLUMNS:
            if not isinstance(row[name], _NUMBER_OR_NULL):
                raise ValueError(f"{name!r} is not a number: {row[name]!r:.60}")
        if not isinstance(row["step"], int) or row["step"] <= last:
            raise ValueError(f"step {row['step']!r} after step {last}: not one run in order")
        last = row["step"]
        return row

    return check


def _check_evaluation(row: Row) -> Row:
    row = upgraded(row)
    _require(row, EVALUATION_COLUMNS)
    for name, kind in EVALUATION_COLUMNS.items():
        if not isinstance(row[name], int | float if kind is float else kind):
            raise ValueError(f"{name!r} has a value of another kind: {row[name]!r:.60}")
    if len(row["correct"]) != len(row["reward"]):
        raise ValueError(f"{len(row['correct'])} counts in 'correct' for {len(row['reward'])} rewards")
    if not all(isinstance(c, int) and 0 <= c <= row["num_samples"] for c in row["correct"]):
        raise ValueError(f"'correct' holds no counts from 0 to {row['num_samples']}")
    return row


def load_record(folder: str | Path, method: str, seed: int, *, on_error: OnError = "raise") -> Record:
    """Read one run's folder, packed or not.

    Args:
        folder: the run's folder.
        method: the method's name, kept in the record.
        seed: the run's seed, kept in the record.
        on_error: "skip" leaves out invalid rows with a warning.

    Raises:
        FileNotFoundError: the folder has no record.
        ValueError: a row is truncated, not JSON, out of order or incomplete (the message has file and line).
    """
    folder = Path(folder)
    metrics = list(read_checked_rows(folder / RunLog.METRICS, _metric_check(), on_error=on_error))
    if (folder / "config.json").exists():
        metrics = with_live_tokens(metrics, read_config(folder))
    evaluations = read_checked_rows(folder / RunLog.EVALUATIONS, _check_evaluation, on_error=on_error)
    exact = folder / RunLog.EXACT
    measured = exact.exists() or exact.with_name(exact.name + ".gz").exists()
    rows = list(read_rows(exact)) if measured else []
    return Record(method, seed, metrics, list(evaluations), rows)


def reward_curve(record: Record, base: Row, clock: str) -> tuple[list[float], list[float]]:
    """Held-out mean reward (single-shot, sampled) against an increasing metric: steps, tokens or seconds.

    Args:
        record: the run.
        base: the untrained policy's evaluation from q, the first point.
        clock: name of the metric.

    Returns:
        Values of the clock, and rewards.
    """
    clock_at = {row["step"]: row[clock] for row in record.metrics}
    times = [0.0, *(clock_at[row["step"]] for row in record.single_shot())]
    return times, [mean_reward(row) for row in (base, *record.single_shot())]


def reward_at(record: Record, base: Row, clock: str, value: float) -> float:
    """The reward of `reward_curve` at the point where the metric `clock` reached `value`."""
    return float(np.interp(value, *reward_curve(record, base, clock)))


@dataclass(frozen=True)
class Difference:
    """How far two methods are apart, over seeds."""

    paired: Interval
    """of runs with the same seed (Student)"""
    welch: Interval
    """of independent samples; the estimate is the same if both methods have the same seeds"""
    equivalent_within: float
    """the smallest margin at which two one-sided tests at 5% show equivalence, both paired and by Welch"""

    @property
    def sign(self) -> int:
        """1 or -1 if both intervals lie on that side of 0, otherwise 0."""
        both = (self.paired, self.welch)
        return all(i.low > 0 for i in both) - all(i.high < 0 for i in both)

    def __str__(self) -> str:
        return signed(self.paired)


@dataclass(frozen=True)
class Summary:
    """One method of an experiment; each number has a Student interval over its seeds."""

    method: str
    seeds: int
    numbers: dict[str, Interval]
    """by column; see `COLUMNS`"""
    differences: dict[str, Difference]
    """the same columns minus those of the method it is compared with; empty for the baseline"""
    against: str | None = None
    """the method used for the differences, if it is not the baseline"""


@dataclass(frozen=True)
class Budgets:
    """The budgets at which the columns at equal budgets compare."""

    base: Row
    """the untrained policy's evaluation from q"""
    spent: Mapping[str, float]
    """metric that counts tokens or seconds -> its total for the method that spent the least"""


_Values = Mapping[str, Mapping[int, float]]
"""column -> seed -> number"""


class Column(NamedTuple):
    """A number of each run: its label in tables, and the function that computes it."""

    label: str
    number: Callable[[Record, Budgets], float]
    of_evaluation: Callable[[Row], float] | None = None
    """the same number for a single evaluation from q, if it is defined there"""
    margin: float | None = None
    """margin of equivalence, for numbers that have one"""


def _of_final(label: str, number: Callable[[Row], float], margin: float | None = MARGIN) -> Column:
    """A number of the last evaluation from q."""
    return Column(label, lambda r, _: number(r.final("q")), number, margin)


def _answers(label: str, number: Callable[[Record, Budgets], float]) -> Column:
    """A share of correct answers or a mean reward, which has a margin of equivalence."""
    return Column(label, number, margin=MARGIN)


COLUMNS: dict[str, Column] = {
    "reward": _of_final("reward", mean_reward),
    "accuracy": _of_final("accuracy", accuracy),
    "greedy": _answers("greedy", lambda r, _: accuracy(r.final("q", greedy=True))),
    "pass_at_8": _of_final("pass@8", lambda row: pass_at(row, 8)),
    "pass_at_32": _of_final("pass@32", lambda row: pass_at(row, 32)),
    "at_equal_live_tokens": _answers("at equal live tokens", lambda r, b: _at_budget(r, b, "tokens_live")),
    "at_equal_trained_tokens": _answers(
        "at equal tokens, dead groups included", lambda r, b: _at_budget(r, b, "tokens_trained")
    ),
    "at_equal_seconds": _answers("at equal seconds", lambda r, b: _at_budget(r, b, "seconds/cpu_total")),
    "own_draft": _answers("own draft, refined", lambda r, _: accuracy(r.final("own_draft"))),
    "own_draft_gain": _answers(
        "gain over own draft", lambda r, _: accuracy(r.final("own_draft")) - _draft_accuracy(r)
    ),
    "best_of_4": _answers("best of 4, refined", lambda r, _: accuracy(r.final("best_of_n"))),
    "vote": _answers("vote of 8", lambda r, _: _accuracy_if_any(r, "vote")),
    "verified_vote": _answers("vote of 8, own verdicts", lambda r, _: _accuracy_if_any(r, "verified_vote")),
    "verdict": _answers("verdicts correct", lambda r, _: _accuracy_if_any(r, "verdict")),
    "entropy": _of_final("entropy", entropy, margin=None),
    "length": Column("length", lambda r, _: r.final("q")["length"]),
    "dead_groups_start": Column("dead groups, start", lambda r, _: r.at_start("dead_groups")),
    "dead_groups_end": Column("dead groups, end", lambda r, _: r.at_end("dead_groups")),
    "copy_rate_start": Column("copy rate, start", lambda r, _: r.at_start("copy_rate")),
    "copy_rate_end": Column("copy rate, end", lambda r, _: r.at_end("copy_rate")),
    "tokens_live": Column("live tokens", lambda r, _: _last(r, "tokens_live")),
    "tokens_trained": Column("tokens, dead groups included", lambda r, _: r.metrics[-1]["tokens_trained"]),
    "tokens_sampled": Column("sampled tokens", lambda r, _: r.metrics[-1]["tokens_sampled"]),
    "cpu_seconds": Column("processor seconds", lambda r, _: r.metrics[-1]["seconds/cpu_total"]),
}
"""All columns by key."""


def _last(record: Record, clock: str) -> float:
    """The last value of a counter; NaN if the record lacks it."""
    value = record.metrics[-1].get(clock)
    return float("nan") if value is None else float(value)


def _at_budget(record: Record, budgets: Budgets, clock: str) -> float:
    """The reward at the budget; NaN if a record lacks this count."""
    budget = budgets.spent[clock]
    return float("nan") if np.isnan(budget) else reward_at(record, budgets.base, clock, budget)


def _accuracy_if_any(record: Record, protocol: str) -> float:
    """NaN if the experiment did not run this evaluation."""
    asked = any(row["final"] and row["protocol"] == protocol for row in record.evaluations)
    return accuracy(record.final(protocol)) if asked else float("nan")


def _draft_accuracy(record: Record) -> float:
    row = record.final("own_draft")
    return float(np.mean(row["draft_correct"])) / row["num_samples"]


def summarize(
    records: Sequence[Record], base: Row, *, baseline: str, against: Mapping[str, str] | None = None
) -> list[Summary]:
    """One `Summary` per method, in the order of the records.

    A column that is undefined for a method (such as the copy rate without drafts) is left out.

    Args:
        records: the runs of all methods.
        base: the untrained policy's evaluation from q.
        baseline: the method that the others are compared with.
        against: for some methods, another one to compare with.

    Raises:
        ValueError: a method has fewer than 2 seeds, or a method to compare with is missing.
    """
    methods = list(dict.fromkeys(record.method for record in records))
    by_method = {m: {r.seed: r for r in records if r.method == m} for m in methods}
    to = {m: (against or {}).get(m, baseline) for m in methods}
    for name in (baseline, *to.values()):
        if name not in by_method:
            raise ValueError(f"baseline: {name!r} is not among the records: {methods}")
    clocks = ("tokens_live", "tokens_trained", "seconds/cpu_total")
    least = {
        clock: float(
            np.min([np.mean([_last(r, clock) for r in runs.values()]) for runs in by_method.values()])
        )
        for clock in clocks
    }
    values = {m: _values(runs, Budgets(base, least)) for m, runs in by_method.items()}
    return [
        _summary(method, own, {} if method == baseline else values[to[method]], (against or {}).get(method))
        for method, own in values.items()
    ]


def _summary(method: str, own: _Values, other: _Values, against: str | None) -> Summary:
    return Summary(
        method=method,
        seeds=len(next(iter(own.values()))),
        numbers={key: student_interval(list(v.values())) for key, v in own.items()},
        differences={key: difference(v, other[key]) for key, v in own.items() if key in other},
        against=against,
    )


def difference(own: Mapping[int, float], other: Mapping[int, float]) -> Difference:
    """The difference of two methods in one number.

    Args:
        own: seed -> number.
        other: the same of the method to compare with.

    Raises:
        ValueError: fewer than 2 seeds, or fewer than 2 in common.
    """
    pairs = [x - other[seed] for seed, x in own.items() if seed in other]
    first, second = list(own.values()), list(other.values())
    at_95, at_90 = (
        (student_interval(pairs, confidence=c), welch_interval(first, second, confidence=c))
        for c in (0.95, 0.9)
    )
    return Difference(*at_95, equivalent_within=max(abs(end) for i in at_90 for end in (i.low, i.high)))


def _values(runs: Mapping[int, Record], budgets: Budgets) -> _Values:
    """Column -> seed -> number, without columns that are undefined for a run."""
    found = {key: {seed: c.number(run, budgets) for seed, run in runs.items()} for key, c in COLUMNS.items()}
    return {key: numbers for key, numbers in found.items() if not np.isnan(list(numbers.values())).any()}


def signed(d: Interval) -> str:
    """A difference and its interval, with signs."""
    return f"{d.estimate:+.3f} [{d.low:+.3f}, {d.high:+.3f}]"


def verdicts(summary: Summary, baseline: str, columns: Sequence[str]) -> list[str]:
    """One sentence per column: different, equivalent within the column's margin, both, or neither.

    Args:
        summary: the method.
        baseline: name of the method it is compared with.
        columns: keys of `COLUMNS`; those without a difference are skipped.
    """
    sentences = []
    for key in columns:
        if key in summary.differences:
            column, d = COLUMNS[key], summary.differences[key]
            welch = f"[{d.welch.low:+.3f}, {d.welch.high:+.3f}]"
            sentences.append(
                f"{summary.method}: {column.label} is {_relation(d, column.margin, baseline)} "
                f"({d} paired, {welch} Welch, {summary.seeds} seeds)."
            )
    return sentences


def _relation(d: Difference, margin: float | None, baseline: str) -> str:
    equivalent = margin is not None and d.equivalent_within < margin
    if d.sign:
        by = f" by less than {margin:g}" if equivalent else ""
        return f"{'higher' if d.sign > 0 else 'lower'} than that of {baseline}{by}"
    if equivalent:
        return f"equivalent to that of {baseline} within {margin:g}"
    unequal = "" if margin is None else f", nor shown to be equivalent within {margin:g}"
    return f"not distinguishable from that of {baseline}{unequal}"


def markdown_table(lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table from rows of cells, the first of which is the header."""
    head, *rest = lines
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *rest))


def table(summaries: Sequence[Summary], base: Row, columns: Sequence[str]) -> str:
    """A Markdown table: mean [95% interval over seeds], and the difference of each method to the baseline.

    Args:
        summaries: one per method.
        base: the untrained policy's evaluation from q, the first row.
        columns: keys of `COLUMNS`.
    """
    start = {key: column.of_evaluation for key in columns if (column := COLUMNS[key]).of_evaluation}
    known = {key: number(base) for key, number in start.items()}
    lines = [["method", "seeds", *(COLUMNS[key].label for key in columns)]]
    lines.append(
        [
            "before training",
            "",
            *(f"{known[key]:.3f}" if key in known and not np.isnan(known[key]) else "" for key in columns),
        ]
    )
    for s in summaries:
        cells = {key: str(number) for key, number in s.numbers.items()}
        lines.append([s.method, str(s.seeds), *(cells.get(key, "") for key in columns)])
    for s in summaries:
        if s.differences:
            cells = {key: str(d) for key, d in s.differences.items()}
            to = "" if s.against is None else f" to {s.against}"
            lines.append([f"difference: {s.method}{to}", "", *(cells.get(key, "") for key in columns)])
    return markdown_table(lines)


def load_records(
    folder: str | Path, runs: dict[tuple[str, int], str], *, on_error: OnError = "raise"
) -> tuple[list[Record], Row]:
    """Read the records of an experiment's runs, and the untrained policy's evaluation from q.

    Args:
        folder: folder of the experiment.
        runs: (method, seed) -> folder name of the run.
        on_error: "skip" leaves out invalid rows and missing runs, with a warning.

    Raises:
        FileNotFoundError, ValueError: see `load_record`.
    """
    folder, records = Path(folder), []
    for (method, seed), name in runs.items():
        try:
            records.append(load_record(folder / name, method, seed, on_error=on_error))
        except FileNotFoundError as error:
            if on_error == "raise":
                raise
            warnings.warn(f"{method}, seed {seed}: left out, {error}", SkippedLinesWarning, stacklevel=2)
    base = read_checked_rows(folder / "base" / RunLog.EVALUATIONS, _check_evaluation, on_error=on_error)
    return records, Record("before training", 0, [], list(base)).final("q")


def one_run_table(records: Sequence[Record], base: Row) -> str:
    """A Markdown table of one run per method: accuracy, its change in training, greedy, own draft.

    The 95% intervals are bootstrapped over the held-out problems (for the change, paired by problem). They
    exclude run-to-run variance, so they do not show which method is better.
    """

    def interval(row: Row) -> str:
        return str(bootstrap_interval(_shares(row), rng=np.random.default_rng(0)))

    lines = [["one run each", "accuracy", "change", "greedy", "own draft, refined"]]
    lines.append(["before training", interval(base), "", "", ""])
    for record in records:
        row = record.final("q")
        change = paired_difference(_shares(row), _shares(base), rng=np.random.default_rng(0))
        others = (record.final("q", greedy=True), record.final("own_draft"))
        lines.append([record.method, interval(row), signed(change), *map(interval, others)])
    return markdown_table(lines)


def _shares(row: Row) -> np.ndarray:
    """For each problem, the fraction of its samples that are correct."""
    return np.array(row["correct"]) / row["num_samples"]
