"""How runs unfold, from their records alone: curves on a common clock, transitions, what best-of-N promised.

Two runs can be laid side by side at equal *steps*, at equal sampled or trained *tokens*, or at equal
*accuracy*, and the three can tell different stories: a method that learns more slowly keeps its entropy for
longer at equal steps, whether or not it does anything to keep it (Section 5, "Entropy analysis").

Every function is pure: records in (`compare.load_experiment` reads them), arrays out, for a table or a figure.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import t as student_t

from igrpo_kit.analysis.compare import Record, accuracy, mean_reward, score_curve
from igrpo_kit.analysis.intervals import Interval, paired_difference
from igrpo_kit.analysis.passk import pass_at_k
from igrpo_kit.runlog import Row


class Curve(NamedTuple):
    """One run's number `y` against a clock `x`, point by point; NaN in y where the number did not exist."""

    x: Float[np.ndarray, " K"]
    y: Float[np.ndarray, " K"]


@dataclass(frozen=True)
class Band:
    """Several runs of one method on one grid: each run, their mean, and an interval over the runs."""

    x: Float[np.ndarray, " K"]
    runs: Float[np.ndarray, "runs K"]
    mean: Float[np.ndarray, " K"]
    low: Float[np.ndarray, " K"]
    high: Float[np.ndarray, " K"]
    """Student's interval at each point on its own; NaN for a single run"""


def with_metric(records: Sequence[Record], name: str) -> list[Record]:
    """The records that hold a training metric: GRPO has no copy rate.

    Raises LookupError where none does, which is how a misspelt name shows.
    """
    raise NotImplementedError


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

    `clock` is a metric that grows: "step", "tokens_sampled", "tokens_trained", "seconds/cpu_total"; or
    "score", the held-out score of that moment, for equal accuracy. The score is interpolated linearly
    between evaluations, starts at `base`, the untrained policy's, and a point counts only where the score is
    higher than ever before.

    `on_q=True` takes the metric of the completions of q, that is iGRPO's drafts and GRPO's group: the only
    like-for-like comparison, since iGRPO's group was shown a draft. `smooth` is a trailing mean over so many
    steps.

    Raises LookupError where the record has no such metric, ValueError for the clock "score" without `base`.
    """
    raise NotImplementedError


def held_out_curve(record: Record, base: Row, name: str = "score", clock: str = "step") -> Curve:
    """A number of the held-out evaluations from q against a clock, from the untrained policy `base` on.

    `name`: "score" (mean reward), "accuracy", "entropy" (nats per token) or "length" (tokens). With the clock
    "score" every evaluation is a point, in the order of the steps: x may go back.
    """
    raise NotImplementedError


def band(curves: Sequence[Curve], *, points: int = 101, confidence: float = 0.95) -> Band:
    """Curves of several runs on one evenly spaced grid of the x they all cover, linearly interpolated.

    Runs whose x agree keep it. Points with NaN in y are left out first.
    Raises ValueError where no x is covered by all runs, or a curve has no point.
    """
    raise NotImplementedError


def bands(
    records: Sequence[Record], curve: Callable[[Record], Curve], *, points: int = 101
) -> dict[str, Band]:
    """`band` for each method: `bands(records, lambda r: training_curve(r, "entropy", "tokens_sampled"))`."""
    raise NotImplementedError


def value_at(curve: Curve, x: float) -> float:
    """A curve's y at `x`, linearly interpolated. Raises ValueError where x lies outside the curve."""
    raise NotImplementedError


TRANSITIONS = ("right_to_right", "right_to_wrong", "wrong_to_right", "wrong_to_wrong")


@dataclass(frozen=True)
class Transitions:
    """How many refinements went from the draft they were shown to what they became.

    `counts` [units, 4], in the order of `TRANSITIONS`; a unit is a training step or a problem, within which
    refinements are not independent. `left_out` units do not determine their counts.
    """

    counts: Int[np.ndarray, "units 4"]
    unit: str
    left_out: int = 0

    def __add__(self, other: "Transitions") -> "Transitions":
        """Both, as one sample of units. Raises ValueError where the units differ."""
        raise NotImplementedError


def transitions_in_metrics(rows: Iterable[Row]) -> Transitions:
    """Exact counts from metric rows, a step a unit; a run without drafts has no units.

    Rows hold shares. With R refinements, `right` = d (1 - rw) + (1 - d) wr gives d, the share that was shown
    a right draft, unless rw + wr = 1; such a step is left out, and counted.
    Raises ValueError naming the step whose shares are not those of whole numbers.
    """
    raise NotImplementedError


def transitions_in_samples(rows: Iterable[Row], *, full_reward: float = 1.0) -> Transitions:
    """Counts from the completions recorded in full (`samples.jsonl`), a problem a unit."""
    raise NotImplementedError


def transition_table(
    transitions: Transitions, *, rng: np.random.Generator, confidence: float = 0.95, resamples: int = 2000
) -> dict[str, tuple[int, Interval]]:
    """For each of `TRANSITIONS` its count, and its share of the refinements that saw such a draft.

    `right_to_wrong` is the regression rate, `wrong_to_right` the recovery rate. The interval resamples units.
    A pair whose kind of draft never occurred is left out. Raises ValueError for no units.
    """
    raise NotImplementedError


@dataclass(frozen=True)
class BestDraftCurve:
    """Per training step: was the best of N drafts right, and what Proposition 3.1 says it would be."""

    step: Float[np.ndarray, " K"]
    measured: Float[np.ndarray, " K"]
    """share of prompts whose best draft is right"""
    from_mean_p: Float[np.ndarray, " K"]
    """1 - (1 - p)^N with p the mean over the prompts: too high wherever prompts differ (Jensen)"""
    per_prompt: Float[np.ndarray, " K"]
    """the mean over prompts of the unbiased estimate for each; NaN where no more than N samples exist, since
    that estimate is the measurement itself"""


def best_draft_curve(record: Record) -> BestDraftCurve:
    """The prediction 1 - (1 - p)^N against the measured best draft, step by step.

    For GRPO, whose group of R > N completions of q stands in for drafts, the best of the first N is measured.
    Raises LookupError where the record holds no such metrics.
    """
    raise NotImplementedError


@dataclass(frozen=True)
class BestDraftCheck:
    """Proposition 3.1 on held-out problems, its two sides from independent samples."""

    measured: float
    """share of best drafts that were right"""
    from_mean_p: float
    """1 - (1 - mean p)^N"""
    per_prompt: Interval
    """mean over problems of the unbiased 1 - (1 - p)^N (pass@N), over problems"""
    error: Interval
    """measured minus per_prompt, paired by problem"""
    mean_p_bias: Interval
    """1 - (1 - mean p)^N minus measured: what heterogeneity takes away, over problems"""


def check_best_draft(record: Record, num_drafts: int = 4, *, rng: np.random.Generator) -> BestDraftCheck:
    """Predict the best of N drafts per problem from the final samples of q, and compare with the drafts that
    the protocol `best_of_n` drew anew for the same problems.

    Raises LookupError where the record lacks either evaluation.
    """
    raise NotImplementedError


def thin(curve: Curve, buckets: int = 500) -> Curve:
    """At most 5 points per bucket of x, such that the line drawn through them looks the same.

    Kept are the first, the last, the lowest and the highest point of each of `buckets` equal ranges of x (M4;
    Jugel et al., 2014), and one NaN where a bucket has any, so that gaps stay. x must not go back.
    Raises ValueError for buckets < 1 or an x that goes back.
    """
    raise NotImplementedError
