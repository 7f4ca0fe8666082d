"""From the records of an experiment to one table: every number with its seeds, its interval, its budget.

Methods are compared at three matched budgets. *Rollouts*: the end of the run, where all have drawn
P * (N + G) completions per step (GRPO-4 half of that). *Gradient tokens*: where each has trained on as many
tokens as the thriftiest method in all. *Seconds*: where each has used as much processor time as the quickest
in all, evaluations not counted. Between two evaluations accuracy is interpolated linearly.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from igrpo_kit.analysis.intervals import Interval, bootstrap_interval, paired_difference, student_interval
from igrpo_kit.analysis.passk import pass_at_k
from igrpo_kit.runlog import OnError, Row, RunLog, SkippedLinesWarning, read_checked_rows

WINDOW = 20
"""steps averaged for "at the start" and "at the end" of a training metric"""


@dataclass(frozen=True)
class Record:
    """One run as it was recorded."""

    method: str
    seed: int
    metrics: list[Row]
    evaluations: list[Row]

    def final(self, protocol: str, *, greedy: bool = False) -> Row:
        """The evaluation after the last step. Raises LookupError where the run has none."""
        for row in self.evaluations:
            if row["final"] and row["protocol"] == protocol and (row["temperature"] == 0) == greedy:
                return row
        raise LookupError(f"{self.method}, seed {self.seed}: no final evaluation {protocol!r}, {greedy=}")

    def single_shot(self) -> list[Row]:
        """The sampled evaluations from q, in the order of the steps."""
        return [row for row in self.evaluations if row["protocol"] == "q" and row["temperature"] > 0]

    def at_start(self, name: str) -> float:
        """Mean of a metric over the first steps."""
        return _mean([row.get(name) for row in self.metrics[:WINDOW]])

    def at_end(self, name: str) -> float:
        """Mean of a metric over the last steps."""
        return _mean([row.get(name) for row in self.metrics[-WINDOW:]])


def _mean(values: Sequence[float | None]) -> float:
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else float("nan")


def accuracy(row: Row) -> float:
    """Mean over problems of the share of samples that reached the full reward."""
    return float(np.mean(row["right"])) / row["num_samples"]


def mean_reward(row: Row) -> float:
    """Mean over problems of the mean reward; the accuracy, where the reward is binary."""
    return float(np.mean(row["reward"]))


def entropy(row: Row) -> float:
    """Nats per token; NaN where the sampler gave none (null in the record)."""
    return float("nan") if row["entropy"] is None else row["entropy"]


def pass_at(row: Row, k: int) -> float:
    """Unbiased pass@k, mean over problems."""
    return float(pass_at_k(row["num_samples"], np.array(row["right"]), k).mean())


METRIC_COLUMNS = (
    "reward",
    "right",
    "dead_groups",
    "entropy",
    "length",
    "tokens_sampled",
    "tokens_trained",
    "seconds/cpu_total",
)
"""what every metric row of this package holds, beside its step"""

_NUMBER_OR_NULL = (int, float, type(None))

EVALUATION_COLUMNS = {
    "step": int, "final": bool, "protocol": str, "temperature": float, "num_samples": int,
    "right": list, "reward": list, "entropy": float | None, "length": float,
}  # fmt: skip


def _require(row: Row, columns: Iterable[str]) -> None:
    missing = [name for name in columns if name not in row]
    if missing:
        raise ValueError(
            f"no {', '.join(map(repr, missing))}: of another program, or another version of this"
        )


def _metric_check() -> Callable[[Row], None]:
    """A check of one file's metric rows in order."""
    last = 0

    def check(row: Row) -> None:
        nonlocal last
        _require(row, ("step", *METRIC_COLUMNS))
        for name in METRIC_COLUMNS:
            if not isinstance(row[name], _NUMBER_OR_NULL):
                raise ValueError(f"{name!r} is not a number: {row[name]!r:.60}")
        if not isinstance(row["step"], int) or row["step"] <= last:
            raise ValueError(f"step {row['step']!r} after step {last}: not one run in order")
        last = row["step"]

    return check


def _check_evaluation(row: Row) -> None:
    _require(row, EVALUATION_COLUMNS)
    for name, kind in EVALUATION_COLUMNS.items():
        if not isinstance(row[name], int | float if kind is float else kind):
            raise ValueError(f"{name!r} has a value of another kind: {row[name]!r:.60}")
    if len(row["right"]) != len(row["reward"]):
        raise ValueError(f"{len(row['right'])} counts in 'right' for {len(row['reward'])} rewards")
    if not all(isinstance(c, int) and 0 <= c <= row["num_samples"] for c in row["right"]):
        raise ValueError(f"'right' holds no counts from 0 to {row['num_samples']}")


def load_record(folder: Path, method: str, seed: int, *, on_error: OnError = "raise") -> Record:
    """Read one run's folder, packed or not.

    Raises FileNotFoundError, and ValueError naming file and line for a row that is torn, not JSON, out of
    order, or without what this version records; on_error="skip" leaves such rows out with a warning.
    """
    metrics = read_checked_rows(folder / RunLog.METRICS, _metric_check(), on_error=on_error)
    evaluations = read_checked_rows(folder / RunLog.EVALUATIONS, _check_evaluation, on_error=on_error)
    return Record(method, seed, list(metrics), list(evaluations))


def score_curve(record: Record, base: Row, clock: str) -> tuple[list[float], list[float]]:
    """Held-out mean reward, single-shot and sampled, against a metric that grows (steps, tokens, seconds)."""
    clock_at = {row["step"]: row[clock] for row in record.metrics}
    times = [0.0, *(clock_at[row["step"]] for row in record.single_shot())]
    return times, [mean_reward(row) for row in (base, *record.single_shot())]


def score_at(record: Record, base: Row, clock: str, value: float) -> float:
    """The score of `score_curve` when the metric `clock` had reached `value`."""
    return float(np.interp(value, *score_curve(record, base, clock)))


@dataclass(frozen=True)
class Summary:
    """One method of an experiment; each number an interval over its seeds (Student)."""

    method: str
    seeds: int
    numbers: dict[str, Interval]
    """by column; see `COLUMNS`"""
    differences: dict[str, Interval]
    """the same columns minus the baseline's with the same seed"""
    against: str | None = None
    """the method the differences are taken to instead of the baseline, if another was named"""


def _columns(base: Row, tokens: float, seconds: float) -> dict[str, Callable[[Record], float]]:
    return {
        "reward": lambda r: mean_reward(r.final("q")),
        "accuracy": lambda r: accuracy(r.final("q")),
        "greedy": lambda r: accuracy(r.final("q", greedy=True)),
        "pass@8": lambda r: pass_at(r.final("q"), 8),
        "pass@32": lambda r: pass_at(r.final("q"), 32),
        "at equal gradient tokens": lambda r: score_at(r, base, "tokens_trained", tokens),
        "at equal seconds": lambda r: score_at(r, base, "seconds/cpu_total", seconds),
        "own draft, refined": lambda r: accuracy(r.final("own_draft")),
        "gain over own draft": lambda r: accuracy(r.final("own_draft")) - _draft_accuracy(r),
        "best of 4, refined": lambda r: accuracy(r.final("best_of_n")),
        "vote of 8": lambda r: _accuracy_if_any(r, "vote"),
        "vote of 8, own verdicts": lambda r: _accuracy_if_any(r, "verified_vote"),
        "verdicts right": lambda r: _accuracy_if_any(r, "verdict"),
        "entropy": lambda r: entropy(r.final("q")),
        "length": lambda r: r.final("q")["length"],
        "dead groups, start": lambda r: r.at_start("dead_groups"),
        "dead groups, end": lambda r: r.at_end("dead_groups"),
        "copy rate, start": lambda r: r.at_start("copy_rate"),
        "copy rate, end": lambda r: r.at_end("copy_rate"),
        "gradient tokens": lambda r: r.metrics[-1]["tokens_trained"],
        "sampled tokens": lambda r: r.metrics[-1]["tokens_sampled"],
        "processor seconds": lambda r: r.metrics[-1]["seconds/cpu_total"],
    }


COLUMNS = list(_columns({}, 0, 0))


def _accuracy_if_any(record: Record, protocol: str) -> float:
    """NaN where the experiment did not evaluate this."""
    asked = any(row["final"] and row["protocol"] == protocol for row in record.evaluations)
    return accuracy(record.final(protocol)) if asked else float("nan")


def _draft_accuracy(record: Record) -> float:
    row = record.final("own_draft")
    return float(np.mean(row["draft_right"])) / row["num_samples"]


def summarise(
    records: Sequence[Record], base: Row, *, baseline: str, against: Mapping[str, str] | None = None
) -> list[Summary]:
    """One `Summary` per method, in the order of the records.

    `base` is the untrained policy's evaluation from q. `against` names, for some methods, another one than
    `baseline` to take the differences to. A column that does not exist for a method (a copy rate without
    drafts) is left out.

    Raises ValueError where a method has fewer than 2 seeds, or one to compare with is missing.
    """
    methods = list(dict.fromkeys(record.method for record in records))
    by_method = {m: {r.seed: r for r in records if r.method == m} for m in methods}
    to = {m: (against or {}).get(m, baseline) for m in methods}
    for name in (baseline, *to.values()):
        if name not in by_method:
            raise ValueError(f"baseline: {name!r} is not among the records: {methods}")
    tokens = min(
        float(np.mean([r.metrics[-1]["tokens_trained"] for r in rs.values()])) for rs in by_method.values()
    )
    seconds = min(
        float(np.mean([r.metrics[-1]["seconds/cpu_total"] for r in rs.values()])) for rs in by_method.values()
    )
    columns = _columns(base, tokens, seconds)
    summaries = []
    for method, runs in by_method.items():
        values = {name: {s: column(r) for s, r in runs.items()} for name, column in columns.items()}
        values = {name: v for name, v in values.items() if not np.isnan(list(v.values())).any()}
        other = by_method[to[method]]
        shared = [seed for seed in runs if seed in other]
        summaries.append(
            Summary(
                method=method,
                seeds=len(runs),
                numbers={name: student_interval(list(v.values())) for name, v in values.items()},
                differences={
                    name: student_interval([v[s] - columns[name](other[s]) for s in shared])
                    for name, v in values.items()
                    if method != baseline and not np.isnan(columns[name](other[shared[0]]))
                },
                against=(against or {}).get(method),
            )
        )
    return summaries


def verdicts(summary: Summary, baseline: str, columns: Sequence[str]) -> list[str]:
    """One plain sentence per column: what the interval of the difference to the baseline allows to say."""
    sentences = []
    for column in columns:
        if column not in summary.differences:
            continue
        d = summary.differences[column]
        word = "higher than" if d.low > 0 else "lower than" if d.high < 0 else "not distinguishable from"
        numbers = f"{d.estimate:+.3f} [{d.low:+.3f}, {d.high:+.3f}]"
        sentences.append(
            f"{summary.method}: {column} is {word} {baseline}'s ({numbers}, {summary.seeds} seeds)."
        )
    return sentences


def table(summaries: Sequence[Summary], base: Row, columns: Sequence[str]) -> str:
    """A Markdown table: mean [95 % interval over seeds], and each method's difference to the baseline."""
    header = ["method", "seeds", *columns]
    lines = [header, ["---"] * len(header)]
    start = {"reward": mean_reward(base), "accuracy": accuracy(base), "entropy": entropy(base)}
    start |= {f"pass@{k}": pass_at(base, k) for k in (8, 32) if base["num_samples"] >= k}
    lines.append(
        [
            "before training",
            "",
            *(f"{start[c]:.3f}" if c in start and not np.isnan(start[c]) else "" for c in columns),
        ]
    )
    for summary in summaries:
        cells = [str(summary.numbers[c]) if c in summary.numbers else "" for c in columns]
        lines.append([summary.method, str(summary.seeds), *cells])
    for summary in summaries:
        if summary.differences:
            cells = [
                f"{summary.differences[c].estimate:+.3f} [{summary.differences[c].low:+.3f}, "
                f"{summary.differences[c].high:+.3f}]"
                if c in summary.differences
                else ""
                for c in columns
            ]
            to = "" if summary.against is None else f" to {summary.against}"
            lines.append([f"difference: {summary.method}{to}", "", *cells])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def load_experiment(
    folder: Path, runs: dict[tuple[str, int], str], *, on_error: OnError = "raise"
) -> tuple[list[Record], Row]:
    """The records of `runs`, (method, seed) -> folder name, and the untrained policy's evaluation from q.

    Raises as `load_record` does; on_error="skip" also leaves out a run that is not there, with a warning.
    """
    records = []
    for (method, seed), name in runs.items():
        try:
            records.append(load_record(folder / name, method, seed, on_error=on_error))
        except FileNotFoundError as error:
            if on_error == "raise":
                raise
            warnings.warn(f"{method}, seed {seed}: left out, {error}", SkippedLinesWarning, stacklevel=2)
    evaluations = read_checked_rows(
        folder / "base" / RunLog.EVALUATIONS, _check_evaluation, on_error=on_error
    )
    return records, Record("before training", 0, [], list(evaluations)).final("q")


def one_run_table(records: Sequence[Record], base: Row) -> str:
    """Runs that were made once, a Markdown line each: accuracy, its change in training, greedy, own draft.

    The 95 % intervals are bootstrapped over the held-out problems (the change paired by problem). They say
    what other problems could have given; what another run would have given, and so which method is better,
    they do not say.
    """
    shares = {"before training": [_shares(base)]}
    for record in records:
        rows = (record.final("q"), record.final("q", greedy=True), record.final("own_draft"))
        shares[record.method] = [_shares(row) for row in rows]
    lines = ["| one run each | accuracy | change | greedy | own draft, refined |", "| --- " * 5 + "|"]
    for name, (single_shot, *rest) in shares.items():
        changed = paired_difference(single_shot, shares["before training"][0], rng=np.random.default_rng(0))
        change = f"{changed.estimate:+.3f} [{changed.low:+.3f}, {changed.high:+.3f}]" if rest else ""
        others = [str(bootstrap_interval(x, rng=np.random.default_rng(0))) for x in rest] or ["", ""]
        accuracy = bootstrap_interval(single_shot, rng=np.random.default_rng(0))
        lines.append("| " + " | ".join([name, str(accuracy), change, *others]) + " |")
    return "\n".join(lines)


def _shares(row: Row) -> np.ndarray:
    """Per problem, the share of its samples that are right."""
    return np.array(row["right"]) / row["num_samples"]
