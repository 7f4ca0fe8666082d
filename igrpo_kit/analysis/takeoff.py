"""Take-off: how often and how early runs start to learn, from exact rates (`analysis.transfer`).

Where a correct answer is rare, a run waits for its first one and then rises quickly. The mean of p over seeds
is then a mean of runs that have started and runs that have not, so three read-outs stand beside it: the share
of runs that took off (Wilson), the step at which p reached one half, with runs that did not as censored
observations (Kaplan and Meier, 1958), and the area under the curve. Means of p have a bootstrap interval over
seeds, because p is bounded and its distribution over seeds is far from normal.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import CensoredData, ecdf

from igrpo_kit.analysis.compare import Record
from igrpo_kit.analysis.stats.intervals import Interval, bootstrap_interval, student_interval, wilson_interval

TAKEN_OFF = 0.1
"""p from which on a run has taken off"""

BySeed = Mapping[int, float]


def p_at(record: Record, step: int) -> float:
    """Mean probability of a correct answer on held-out questions after a step, exact.

    Raises:
        LookupError: nothing was measured at this step.
    """
    for row in record.exact:
        if row["step"] == step:
            return row["p"]
    raise LookupError(f"{record.method}, seed {record.seed}: nothing was measured at step {step}")


def p_after(record: Record, share: float) -> float:
    """p after a share of the run's steps, interpolated linearly between measurements.

    A run with larger batches has fewer steps; at the same share it has sampled as many rollouts.
    """
    steps = [row["step"] for row in record.exact]
    return float(np.interp(share * steps[-1], steps, [row["p"] for row in record.exact]))


def mean_p(record: Record) -> float:
    """Mean of p over all measured steps, the start included: the area under the curve, between 0 and 1."""
    return float(np.mean([row["p"] for row in record.exact]))


def first_step(record: Record, level: float) -> int | None:
    """The first measured step with p >= level; None if there is none."""
    return next((row["step"] for row in record.exact if row["p"] >= level), None)


def share_taken_off(records: Sequence[Record], level: float = TAKEN_OFF) -> Interval:
    """Share of runs with p >= level at any measured step, with Wilson's interval."""
    started = sum(first_step(record, level) is not None for record in records)
    return wilson_interval(started, len(records))


@dataclass(frozen=True)
class ReachCurve:
    """Share of runs that have reached a level, after each step at which one did; Kaplan-Meier."""

    steps: list[int]
    share: list[float]
    low: list[float]
    high: list[float]
    """95% interval (log-log transform of Greenwood's variance); a point where all runs have reached it"""

    @property
    def median(self) -> int | None:
        """The step by which half of the runs have reached the level; None if fewer have."""
        return next((s for s, share in zip(self.steps, self.share, strict=True) if share >= 0.5), None)


def reach_curve(records: Sequence[Record], level: float = 0.5) -> ReachCurve:
    """When p reaches `level`; runs that end before are censored at their last measured step.

    Args:
        records: runs of one method, at least one.
        level: of p.
    """
    found = [first_step(record, level) for record in records]
    reached = [step for step in found if step is not None]
    if not reached:
        return ReachCurve([], [], [], [])
    censored = [r.exact[-1]["step"] for r, step in zip(records, found, strict=True) if step is None]
    estimate = ecdf(CensoredData(uncensored=reached, right=censored)).cdf
    with warnings.catch_warnings():  # where all have reached the level, the variance is undefined: NaN
        warnings.filterwarnings("ignore", message="The confidence interval is undefined")
        band = estimate.confidence_interval(method="log-log")
    events = np.isin(estimate.quantiles, reached)
    share, low, high = (x.probabilities[events] for x in (estimate, band.low, band.high))
    return ReachCurve(
        [int(step) for step in estimate.quantiles[events]],
        share.tolist(),
        np.where(np.isnan(low), share, low).tolist(),
        np.where(np.isnan(high), share, high).tolist(),
    )


def mean_over_seeds(values: BySeed) -> Interval:
    """Mean of a bounded number over seeds, with a bootstrap interval."""
    return bootstrap_interval(list(values.values()), rng=np.random.default_rng(0))


@dataclass(frozen=True)
class BoundedDifference:
    """A paired difference of two methods in a bounded number, over seeds."""

    bootstrap: Interval
    student: Interval

    @property
    def sign(self) -> int:
        """1 or -1 if both intervals lie on that side of 0, otherwise 0."""
        both = (self.bootstrap, self.student)
        return all(i.low > 0 for i in both) - all(i.high < 0 for i in both)

    def __str__(self) -> str:
        b = self.bootstrap
        return f"{b.estimate:+.3f} [{b.low:+.3f}, {b.high:+.3f}]"


def bounded_difference(own: BySeed, other: BySeed) -> BoundedDifference:
    """own - other, paired by seed.

    Raises:
        ValueError: fewer than 2 seeds in common.
    """
    pairs = [x - other[seed] for seed, x in own.items() if seed in other]
    if len(pairs) < 2:
        raise ValueError(f"other: at least 2 seeds in common are needed, got {len(pairs)}")
    return BoundedDifference(bootstrap_interval(pairs, rng=np.random.default_rng(0)), student_interval(pairs))
