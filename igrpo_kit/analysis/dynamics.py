"""How runs develop, from their records: curves on a common clock, transitions, best-of-N predictions.

Two runs can be compared at equal *steps*, at equal sampled or trained *tokens*, or at equal *accuracy*. The
conclusions may differ: at equal steps, a method that learns more slowly keeps its entropy for longer, whether
or not it preserves entropy ("Entropy analysis" in Section 5 of https://arxiv.org/abs/2602.09000).

All functions are pure. They take records (read by `compare.load_records`) and return arrays for tables or
figures.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import t as student_t

from igrpo_kit.analysis.compare import Record, accuracy, mean_reward, reward_curve
from igrpo_kit.analysis.stats.intervals import (
    Interval,
    bootstrap_interval,
    bootstrap_means,
    paired_difference,
    wilson_interval,
)
from igrpo_kit.core.passk import pass_at_k
from igrpo_kit.core.rows import Row
from igrpo_kit.training.records import TRANSITIONS


class Curve(NamedTuple):
    """One run's number `y` against a clock `x`, point by point; y is NaN where the number is undefined."""

    x: Float[np.ndarray, " K"]
    y: Float[np.ndarray, " K"]


@dataclass(frozen=True)
class Band:
    """Several runs of one method on a common grid: each run, their mean, and an interval over the runs."""

    x: Float[np.ndarray, " K"]
    runs: Float[np.ndarray, "runs K"]
    mean: Float[np.ndarray, " K"]
    low: Float[np.ndarray, " K"]
    high: Float[np.ndarray, " K"]
    """upper end of Student's interval, separately at each point; NaN for a single run"""


def _column(record: Record, name: str, *, missing_ok: bool = False) -> Float[np.ndarray, " K"]:
    values = [row.get(name) for row in record.metrics]
    if not missing_ok and all(v is None for v in values):
        raise LookupError(f"{record.method}, seed {record.seed}: no step has the metric {name!r}")
    return np.array([np.nan if v is None else v for v in values], dtype=float)


def _trailing_mean(values: Float[np.ndarray, " K"], window: int) -> Float[np.ndarray, " K"]:
    """Mean over the last `window` values (fewer at the start), ignoring NaN; NaN if all are NaN."""
    if window < 1:
        raise ValueError(f"smooth must be >= 1, got {window}")
    padded = np.concatenate([np.full(window - 1, np.nan), values])
    windows = np.lib.stride_tricks.sliding_window_view(padded, window)
    known = ~np.isnan(windows)
    total, count = np.where(known, windows, 0.0).sum(axis=1), known.sum(axis=1)
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0)


def training_curve(
    record: Record,
    name: str,
    clock: str = "step",
    *,
    base: Row | None = None,
    on_q: bool = False,
    smooth: int = 1,
) -> Curve:
    """A training metric (`entropy`, `reward`, `length`, `dead_groups`, `copy_rate`, ...) against a clock.

    With the clock "held_out_reward", runs are compared at equal accuracy. This reward is interpolated
    linearly between evaluations, starting at `base`, and a point counts only if its reward exceeds all
    earlier ones.

    Args:
        record: the run.
        name: the metric.
        clock: "step", "tokens_sampled", "tokens_trained", "tokens_live", "seconds/cpu_total", or
            "held_out_reward".
        base: the untrained policy's evaluation from q, required by "held_out_reward".
        on_q: take the metric from the completions of q, that is iGRPO's drafts or GRPO's group. Only these
            are directly comparable, because iGRPO's trained group is conditioned on a draft.
        smooth: window of a trailing mean, in steps.

    Raises:
        LookupError: the record has no such metric.
        ValueError: `base` is missing.
    """
    drafted = on_q and any(f"stage1/{name}" in row for row in record.metrics)
    y = _trailing_mean(_column(record, f"stage1/{name}" if drafted else name), smooth)
    if clock != "held_out_reward":
        return Curve(_column(record, clock), y)
    if base is None:
        raise ValueError("base: the clock 'held_out_reward' starts at the untrained policy's evaluation")
    reward = np.interp(_column(record, "step"), *reward_curve(record, base, "step"))
    higher = np.concatenate([[True], reward[1:] > np.maximum.accumulate(reward)[:-1]])
    return Curve(reward[higher], y[higher])


def held_out_curve(record: Record, base: Row, name: str = "reward", clock: str = "step") -> Curve:
    """A number of the held-out evaluations from q against a clock.

    With the clock "held_out_reward", every evaluation is a point, in the order of steps, so x may decrease.

    Args:
        record: the run.
        base: the untrained policy's evaluation, the first point.
        name: "reward" (mean), "accuracy", "entropy" (nats per token) or "length" (tokens).
        clock: as in `training_curve`.
    """
    numbers: dict[str, Callable[[Row], float]] = {
        "reward": mean_reward,
        "accuracy": accuracy,
        "entropy": lambda row: row["entropy"],
        "length": lambda row: row["length"],
    }
    if name not in numbers:
        raise ValueError(f"name: one of {list(numbers)}, got {name!r}")
    rows = [base, *record.single_shot()]
    x = (
        [mean_reward(row) for row in rows]
        if clock == "held_out_reward"
        else reward_curve(record, base, clock)[0]
    )
    return Curve(np.array(x, dtype=float), np.array([numbers[name](row) for row in rows], dtype=float))


def exact_curve(record: Record, name: str = "p", clock: str = "step") -> Curve:
    """An exact rate of the record (see `analysis.transfer.exact_row`) against a clock, the start included.

    Args:
        record: the run.
        name: "p", "log_prob", "repair", "keep", "reliance", "live/q8", "live/q4", "live/refine4".
        clock: "step", "tokens_sampled", "tokens_trained", "tokens_live", or "seconds/cpu_total".

    Raises:
        LookupError: the record has no exact rates, or not this one.
    """
    if not record.exact or name not in record.exact[0]:
        raise LookupError(f"{record.method}, seed {record.seed}: no exact rate {name!r}")
    at = {0: 0.0} | {row["step"]: row[clock] for row in record.metrics}
    x = [at[row["step"]] for row in record.exact]
    y = [np.nan if row[name] is None else row[name] for row in record.exact]
    return Curve(np.array(x, dtype=float), np.array(y, dtype=float))


def band(curves: Sequence[Curve], *, points: int = 101, confidence: float = 0.95) -> Band:
    """Interpolate the curves of several runs linearly on one evenly spaced grid of the x covered by all.

    If all runs have the same x, it is kept. Points where y is NaN are removed first.

    Args:
        curves: one per run.
        points: size K of the grid.
        confidence: of the interval over runs.

    Raises:
        ValueError: no x is covered by all runs, or a curve has no points.
    """
    known = [Curve(c.x[~np.isnan(c.y)], c.y[~np.isnan(c.y)]) for c in curves]
    if not known or any(len(c.x) == 0 for c in known):
        raise ValueError("curves: at least one, each with a point that is a number")
    grid = known[0].x
    if any(not np.array_equal(c.x, grid) for c in known):
        low, high = max(c.x.min() for c in known), min(c.x.max() for c in known)
        if low > high:
            raise ValueError(f"curves: no x is covered by all; they share nothing between {high} and {low}")
        grid = np.linspace(low, high, points)
    runs = np.stack([c.y if grid is c.x else np.interp(grid, c.x, c.y) for c in known])
    mean, half = runs.mean(axis=0), np.full(len(grid), np.nan)
    if len(runs) > 1:
        t = student_t.ppf((1 + confidence) / 2, len(runs) - 1)
        half = t * runs.std(axis=0, ddof=1) / len(runs) ** 0.5
    return Band(grid, runs, mean, mean - half, mean + half)


def bands(
    records: Sequence[Record], curve: Callable[[Record], Curve], *, points: int = 101
) -> dict[str, Band]:
    """`band` of each method: `bands(records, lambda r: training_curve(r, "entropy", "tokens_sampled"))`."""
    methods = list(dict.fromkeys(record.method for record in records))
    return {m: band([curve(r) for r in records if r.method == m], points=points) for m in methods}


def value_at(curve: Curve, x: float) -> float:
    """A curve's y at `x`, interpolated linearly. Raises ValueError if x lies outside the curve."""
    if not curve.x.min() <= x <= curve.x.max():
        raise ValueError(f"x: {x} lies outside the curve, {curve.x.min()} to {curve.x.max()}")
    return float(np.interp(x, curve.x, curve.y))


@dataclass(frozen=True)
class Transitions:
    """Counts of refinements by the correctness of the draft they were conditioned on and their own.

    `counts` [units, 4] is in the order of `TRANSITIONS`. A unit is a training step or a problem; refinements
    within a unit are not independent. `left_out` counts the units whose records do not determine their
    counts.
    """

    counts: Int[np.ndarray, "units 4"]
    unit: str
    left_out: int = 0

    def __add__(self, other: "Transitions") -> "Transitions":
        """Both as one sample of units. Raises ValueError if the units differ."""
        if self.unit != other.unit:
            raise ValueError(f"units: {self.unit}s cannot be added to {other.unit}s")
        counts = np.concatenate([self.counts, other.counts])
        return Transitions(counts, self.unit, self.left_out + other.left_out)


def transitions_in_metrics(rows: Iterable[Row]) -> Transitions:
    """Counts from metric rows, with one unit per step; a run without drafts has no units.

    Steps of older records whose rates do not determine the counts are left out, and counted in `left_out`.
    """
    logged = [
        [row[f"transitions/{name}"] for name in TRANSITIONS] for row in rows if "transitions/kept" in row
    ]
    known = [row for row in logged if row[0] is not None]
    counts = [row for row in known if any(row)]  # a step without any selected draft is not a unit
    return Transitions(np.array(counts, dtype=int).reshape(-1, 4), "step", len(logged) - len(known))


def transitions_in_samples(rows: Iterable[Row], *, full_reward: float = 1.0) -> Transitions:
    """Counts from the completions recorded in full (`samples.jsonl`), with one unit per problem."""
    counts = []
    for row in rows:
        if "drafts" not in row or row["selected"] < 0:
            continue
        draft, *became = (
            item["reward"] is not None and item["reward"] >= full_reward
            for item in (row["drafts"][row["selected"]], *row["completions"])
        )
        correct = [sum(became), len(became) - sum(became)]
        counts.append([*correct, 0, 0] if draft else [0, 0, *correct])
    return Transitions(np.array(counts, dtype=int).reshape(-1, 4), "problem")


def transition_table(
    transitions: Transitions, *, rng: np.random.Generator, confidence: float = 0.95, resamples: int = 2000
) -> dict[str, tuple[int, Interval]]:
    """For each of `TRANSITIONS`: its count, and its fraction of the refinements of such drafts.

    `regressed` is the regression rate, `repaired` the repair rate. The interval is a bootstrap over units;
    for a fraction of 0 or 1, it is Wilson's with one trial per unit. The two outcomes of a kind of draft
    (correct or incorrect) that never occurred are left out.

    Args:
        transitions: counts by unit.
        rng: source of randomness.
        confidence: of the intervals.
        resamples: number of bootstrap samples.

    Raises:
        ValueError: there are no units.
    """
    units = len(transitions.counts)
    if units == 0:
        raise ValueError("transitions: no refinement was shown a draft")
    totals = transitions.counts.sum(axis=0)
    resampled = bootstrap_means(transitions.counts.astype(float), rng=rng, resamples=resamples)
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    table = {}
    for i, name in enumerate(TRANSITIONS):
        source = slice(0, 2) if i < 2 else slice(2, 4)
        if totals[source].sum() == 0:
            continue
        seen = resampled[:, source].sum(axis=1)
        share = float(totals[i] / totals[source].sum())
        low, high = map(float, np.quantile(resampled[seen > 0, i] / seen[seen > 0], tails))
        if share in (0.0, 1.0):  # all resamples are equal, so the bootstrap interval would have no width
            trials = int((transitions.counts[:, source].sum(axis=1) > 0).sum())
            wilson = wilson_interval(int(share) * trials, trials, confidence=confidence)
            low, high = wilson.low, wilson.high
        table[name] = (int(totals[i]), Interval(share, low, high, confidence))
    return table


@dataclass(frozen=True)
class BestDraftCheck:
    """Proposition 3.1 on held-out problems, with prediction and measurement from independent samples."""

    measured: float
    """fraction of best drafts that were correct"""
    from_mean_p: float
    """1 - (1 - mean p)^N"""
    per_prompt: Interval
    """mean over problems of the unbiased 1 - (1 - p)^N (pass@N), with an interval over problems"""
    error: Interval
    """measured minus per_prompt, paired by problem"""
    mean_p_bias: Interval
    """1 - (1 - mean p)^N minus measured, the effect of unequal problems; interval over problems"""


def check_best_draft(record: Record, num_drafts: int = 4, *, rng: np.random.Generator) -> BestDraftCheck:
    """Predict the best of N drafts from the final samples of q, and compare with the drafts of `best_of_n`.

    The protocol `best_of_n` sampled its drafts independently, for the same problems.

    Args:
        record: the run.
        num_drafts: N.
        rng: source of randomness of the intervals.

    Raises:
        LookupError: the record lacks one of the two evaluations.
    """
    on_q, refined = record.final("q"), record.final("best_of_n")
    correct = np.array(on_q["correct"])
    measured = np.array(refined["draft_correct"]) / refined["num_samples"]
    if len(measured) != len(correct):
        raise ValueError(f"{record.method}: best_of_n has {len(measured)} problems, q has {len(correct)}")
    predicted = pass_at_k(on_q["num_samples"], correct, num_drafts)
    p = correct / on_q["num_samples"]
    means = bootstrap_means(np.stack([p, measured], axis=1), rng=rng)
    bias = 1 - (1 - means[:, 0]) ** num_drafts - means[:, 1]
    mean_p = 1 - (1 - p.mean()) ** num_drafts
    low, high = np.quantile(bias, [0.025, 0.975])
    return BestDraftCheck(
        measured=float(measured.mean()),
        from_mean_p=float(mean_p),
        per_prompt=bootstrap_interval(predicted, rng=rng, resamples=2000),
        error=paired_difference(measured, predicted, rng=rng, resamples=2000),
        mean_p_bias=Interval(float(mean_p - measured.mean()), float(low), float(high), 0.95),
    )


def thin(curve: Curve, buckets: int = 500) -> Curve:
    """Reduce a curve to at most 5 points per bucket of x, without changing the appearance of its line.

    Kept are the first, last, lowest and highest point of each of `buckets` equal ranges of x (M4; Jugel et
    al., 2014, https://doi.org/10.14778/2732951.2732953), and one NaN per bucket that has any, so that gaps
    remain.

    Raises:
        ValueError: buckets < 1, or x decreases.
    """
    x, y = curve
    if buckets < 1:
        raise ValueError(f"buckets must be >= 1, got {buckets}")
    if np.any(np.diff(x) < 0):
        raise ValueError("curve: x goes back; sort it first")
    if len(x) <= 5 * buckets:
        return curve
    edges = np.searchsorted(x, np.linspace(x[0], x[-1], buckets + 1)[1:-1])
    starts = np.unique([0, *edges])
    bucket = np.repeat(np.arange(len(starts)), np.diff([*starts, len(x)]))
    gap = np.isnan(y)
    kept = [starts, np.append(starts[1:], len(x)) - 1]
    # After sorting by bucket and then by y, with NaN removed, the ends of each bucket are its extremes.
    numbers = np.flatnonzero(~gap)
    order = numbers[np.lexsort((y[numbers], bucket[numbers]))]
    edge = np.flatnonzero(np.diff(bucket[order])) + 1
    kept += [order[np.r_[0, edge]], order[np.r_[edge - 1, len(order) - 1]]] if len(order) else []
    first_gap = np.flatnonzero(gap)[np.unique(bucket[gap], return_index=True)[1]]
    index = np.unique(np.concatenate([*kept, first_gap]))
    return Curve(x[index], y[index])
