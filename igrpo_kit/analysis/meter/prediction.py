"""From a reading to a prediction: does a draft pay in a run of this length, and in which form?

The rule is about waiting times. GRPO with R rollouts per prompt waits about 1 / (P R p) steps for its first
live group, Stage 2 about 1 / (P G r). A draft can pay only while GRPO waits: where its wait is a considerable
part of the run, that of Stage 2 is much shorter, what is learned on q' reaches the tokens that limit p on q,
and the repair comes from the policy's *own* draft (r is higher than on a foreign one).

The constants were fixed before the rule was compared with any committed experiment. They rest on the first
study of when a draft pays: a task like `tasks.cipher`, answers of 8 to 20 symbols, P = 32, runs of 200 steps.
The rule says nothing about how good the end is, nor about learning rates.
"""

from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np

from igrpo_kit.analysis.meter.reading import Reading
from igrpo_kit.analysis.stats.intervals import Interval
from igrpo_kit.analysis.transfer import Transfer

Verdict = Literal["GRPO", "iGRPO, then GRPO (or both stages)", "both stages", "more warm-up"]

GRPO: Verdict = "GRPO"
"""a draft does not pay: GRPO starts early, or refinements do not help it to start"""
DRAFTS_FIRST: Verdict = "iGRPO, then GRPO (or both stages)"
"""GRPO hardly starts in this run, and iGRPO does: iGRPO is ahead at the end of the run"""
BOTH_STAGES: Verdict = "both stages"
"""GRPO starts late, and iGRPO early: iGRPO is ahead at first, and behind at the end"""
WARM_UP: Verdict = "more warm-up"
"""neither can start in this run"""

CONSIDERABLE = 1 / 5
"""share of the run from which on GRPO's wait decides its end. In the study, iGRPO 4+4 was ahead of GRPO-8
for 5.6 (16 symbols) and 11 (12 symbols) of its waits of 23 and 3.5 steps; at 20 symbols (205) to the end."""
NOTICEABLE = 1 / 20
"""share of the run below which there is nothing to gain. In the study, training both stages was better than
GRPO-8 where its wait was 1/9 of the run, and equal where it was 1/57; this is about their geometric mean."""
MUCH_SHORTER = 4
"""how many times Stage 2's wait must fit into GRPO's. Its groups are of half the size, and teach q only by
transfer, so an equal wait is a loss; one half is about a tie, and a fourth leaves another factor of two."""
TRANSFERS = 0.1
"""transfer on the limiting tokens from which on q learns. In the study, runs at .69 and above took off, and
those at .03 and below learned q' alone; the geometric mean is .14."""
COMMON = 0.5
"""p from which on GRPO is not waiting for right answers; its groups are then dead for lack of wrong ones"""

ADVICE = (
    "Where partial credit can be given, it needs neither a draft nor more warm-up; the meter cannot measure "
    "what it would bring."
)


@dataclass(frozen=True)
class Prediction:
    """The verdict on a policy for a run of some length, with those that the intervals leave possible."""

    verdict: Verdict
    """at the estimates"""
    possible: tuple[Verdict, ...]
    """all verdicts at the ends of the intervals, the verdict itself first"""
    reason: str
    """one sentence, with what is uncertain"""
    advice: str | None = None
    """where neither can start: what the meter cannot measure"""


def decide(
    *, p: float, wait_grpo: float, wait_refine: float, limiting: float, own_over_foreign: float, steps: int
) -> tuple[Verdict, str]:
    """The rule at one point: verdict, and the reason as half a sentence.

    Args:
        p: probability of a correct answer on q.
        wait_grpo: steps to GRPO's first live group.
        wait_refine: steps to that of Stage 2.
        limiting: transfer on the tokens that limit p.
        own_over_foreign: repair rate on own minus that on foreign wrong drafts.
        steps: length of the run.
    """
    if p >= COMMON:
        return GRPO, f"right answers are common on q (p = {p:.2g})"
    if wait_grpo <= NOTICEABLE * steps:
        return GRPO, f"GRPO waits {wait_grpo:.3g} steps of {steps}, so a draft has no time to pay"
    if obstacle := _obstacle(wait_grpo, wait_refine, limiting, own_over_foreign):
        starts = wait_grpo <= steps
        return GRPO if starts else WARM_UP, f"GRPO waits {wait_grpo:.3g} steps of {steps}, but {obstacle}"
    waits = f"GRPO waits {wait_grpo:.3g} steps of {steps}, Stage 2 only {wait_refine:.3g}"
    if wait_refine > CONSIDERABLE * steps:
        return GRPO if wait_grpo <= steps else WARM_UP, f"{waits}, which is still too long for this run"
    return DRAFTS_FIRST if wait_grpo > CONSIDERABLE * steps else BOTH_STAGES, f"{waits}, and q' teaches q"


def _obstacle(wait_grpo: float, wait_refine: float, limiting: float, own_over_foreign: float) -> str | None:
    """Why a draft does not pay however long GRPO waits; None if nothing speaks against it."""
    if not wait_refine * MUCH_SHORTER <= wait_grpo or wait_refine == np.inf:
        return f"Stage 2 waits {wait_refine:.3g}, not much less"
    if not limiting > TRANSFERS:
        return f"q' does not teach the tokens that limit p (s = {limiting:.2g})"
    if not own_over_foreign > 0:
        return "an own wrong draft is no better than a foreign one"
    return None


def predict(reading: Reading, transfer: Transfer, *, steps: int) -> Prediction:
    """Apply the rule at the estimates, and at every combination of the ends of the intervals.

    The combinations assume the worst in all quantities at once, so `possible` is wider than a 95% set. An
    interval that is NaN counts as 0 at the estimate, and as anything in `possible`. Batch and group sizes are
    those of the reading.

    Args:
        reading: of the policy.
        transfer: of the same policy on the same problems.
        steps: length of the run.

    Raises:
        ValueError: steps < 1.
    """
    if steps < 1:
        raise ValueError(f"steps must be >= 1, got {steps}")
    ends = {
        "p": reading.p,
        "wait_grpo": reading.wait_grpo,
        "wait_refine": reading.wait_refine,
        "limiting": transfer.limiting,
        "own_over_foreign": reading.own_over_foreign,
    }
    # The first combination is that of the estimates.
    points = [dict(zip(ends, at, strict=True)) for at in product(*map(_ends, ends.values()))]
    (verdict, reason), *elsewhere = [decide(**point, steps=steps) for point in points]
    others = tuple(sorted({other for other, _ in elsewhere} - {verdict}))
    doubt = f"; within the intervals also: {', '.join(others)}" if others else "; so at all interval ends"
    advice = ADVICE if verdict == WARM_UP else None
    return Prediction(verdict, (verdict, *others), f"{reason}{doubt}.", advice)


def _ends(interval: Interval) -> tuple[float, float, float]:
    """Estimate and both ends."""
    if np.isnan(interval.estimate):
        return 0.0, -np.inf, np.inf
    return interval.estimate, interval.low, interval.high
