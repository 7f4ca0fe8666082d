"""The predictions of `data/preregistrations/revision-cipher*.md`, each judged by its records.

The first 16 are those of the preregistration, the others those of its dated addenda.

A prediction is a list of claims, each of which the records decide. Where several lengths are named, every
length is a claim of its own. The words are those of the preregistration: *higher* and *lower* need both the
bootstrap and the paired Student interval to exclude 0; *estimate* and *mean* are point estimates. Runs are
paired by seed, so where a control has fewer seeds than what it is compared with, only common seeds count. A
*crossing* is the last time at which the mean curve of iGRPO falls below that of GRPO-8, interpolated linearly
between measurements.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean

from igrpo_kit.analysis.compare import Record, markdown_table
from igrpo_kit.analysis.stats.intervals import welch_interval
from igrpo_kit.analysis.takeoff import (
    TAKEN_OFF,
    BoundedDifference,
    bounded_difference,
    first_step,
    mean_p,
    p_after,
    p_at,
)
from igrpo_kit.experiments.regimes.revision import BASES, CORE
from igrpo_kit.experiments.regimes.tables import by_seed

Runs = Mapping[str, Sequence[Record]]
"""name of an experiment -> its records"""
Claim = Callable[[Runs], tuple[str, bool]]
"""what was measured, and whether the claim is true; LookupError where runs are missing"""
Number = Callable[[Record], float]

LENGTHS, RARE = (8, 12, 15, 19), (15, 19)
CORE_SEEDS, OTHER_SEEDS = 10, 5
GRPO, IGRPO, BOTH, SWITCH = CORE
"""GRPO-8, iGRPO 4+4, both stages, and drafts, then GRPO"""


@dataclass(frozen=True)
class Outcome:
    """A prediction and what happened."""

    number: int
    statement: str
    """in short"""
    measured: str
    hit: bool | None
    """None: not run. A claim that the runs at hand refute is a miss even if others are missing."""

    @property
    def verdict(self) -> str:
        """hit, miss, or not run."""
        return {True: "hit", False: "miss", None: "not run"}[self.hit]


def judged(runs: Runs) -> list[Outcome]:
    """One outcome for each prediction, in their order.

    Args:
        runs: name of an experiment of the revision cipher ("revision-19", "revision-19-controls",
            "revision-15-fresh", ...) -> its records. Experiments may be missing or incomplete.
    """
    return [
        _judge(number, statement, claims, runs)
        for number, (statement, claims) in enumerate(PREDICTIONS, start=1)
    ]


def outcome_table(outcomes: Iterable[Outcome]) -> str:
    """A Markdown table of the outcomes."""
    rows = [
        [str(o.number), o.statement, o.measured.replace("; ", "<br>"), f"**{o.verdict}**"] for o in outcomes
    ]
    return markdown_table([["", "prediction", "measured", "outcome"], *rows])


def _judge(number: int, statement: str, claims: Sequence[Claim], runs: Runs) -> Outcome:
    texts, truths, missing = [], [], []
    for claim in claims:
        try:
            text, true = claim(runs)
        except LookupError as error:
            missing.append(str(error.args[0]))
            continue
        texts.append(text if true else f"{text} (✗)")
        truths.append(true)
    texts += dict.fromkeys(missing)
    hit = False if False in truths else None if missing else True
    return Outcome(number, statement, "; ".join(texts), hit)


def _runs_of(runs: Runs, where: str, method: str) -> Sequence[Record]:
    """The runs of a method at "19" digits, or of another experiment, as "15-fresh".

    Raises:
        LookupError: there are fewer seeds than the preregistration states.
    """
    name = f"revision-{where}"
    if where.isdigit() and method not in CORE:
        name = f"{name}-controls"
    wanted = OTHER_SEEDS if name.endswith(("-controls", "-prefix", *BASES)) else CORE_SEEDS
    found = [record for record in runs.get(name, ()) if record.method == method]
    if len(found) < wanted:
        raise LookupError(f"{method} in {name}: {len(found)} of {wanted} seeds")
    return found


def _difference(runs: Runs, where: str, own: str, other: str, number: Number) -> BoundedDifference:
    return bounded_difference(
        by_seed(_runs_of(runs, where, own), number), by_seed(_runs_of(runs, where, other), number)
    )


def _differs(
    where: int | str, own: str, other: str, holds: Callable[[BoundedDifference], bool], step: int = 200
) -> Claim:
    """The difference own - other in p at a step."""

    def claim(runs: Runs) -> tuple[str, bool]:
        d = _difference(runs, str(where), own, other, partial(p_at, step=step))
        return f"{where}: {own} minus {other} at {step} {d}", holds(d)

    return claim


def _higher(d: BoundedDifference) -> bool:
    return d.sign == 1


def _lower(d: BoundedDifference) -> bool:
    return d.sign == -1


def _not_higher(d: BoundedDifference) -> bool:
    return d.sign < 1


def _not_lower(d: BoundedDifference) -> bool:
    return d.sign > -1


def _estimate(low: float, high: float = float("inf")) -> Callable[[BoundedDifference], bool]:
    return lambda d: low <= d.bootstrap.estimate <= high


def _mean(
    where: int | str,
    method: str,
    holds: Callable[[float], bool],
    number: Number = partial(p_at, step=200),  # noqa: B008  a constant
    what: str = "mean p at 200",
) -> Claim:
    """The mean of a number over seeds."""

    def claim(runs: Runs) -> tuple[str, bool]:
        mean = fmean(map(number, _runs_of(runs, str(where), method)))
        return f"{where}: {method}, {what} {mean:.3g}", holds(mean)

    return claim


def _every_seed(where: int | str, method: str, at_least: float) -> Claim:
    """p at step 200 in every seed."""

    def claim(runs: Runs) -> tuple[str, bool]:
        lowest = min(p_at(record, 200) for record in _runs_of(runs, str(where), method))
        return f"{where}: {method}, lowest p at 200 {lowest:.3g}", lowest >= at_least

    return claim


def _never_reaches(where: int, method: str, level: float) -> Claim:
    """p at every measured step in every seed."""

    def claim(runs: Runs) -> tuple[str, bool]:
        highest = max(row["p"] for record in _runs_of(runs, str(where), method) for row in record.exact)
        return f"{where}: {method}, highest p {highest:.2g}", highest < level

    return claim


def _taken_off(records: Iterable[Record]) -> int:
    return sum(first_step(record, TAKEN_OFF) is not None for record in records)


def _starts(where: int | str, method: str, low: int, high: int) -> Claim:
    """How many seeds took off."""

    def claim(runs: Runs) -> tuple[str, bool]:
        records = _runs_of(runs, str(where), method)
        started = _taken_off(records)
        return f"{where}: {method} took off in {started} of {len(records)}", low <= started <= high

    return claim


def _start_order(where: int, fewer: str, more: str) -> Claim:
    """`fewer` takes off in at most as many of the common seeds as `more`."""

    def claim(runs: Runs) -> tuple[str, bool]:
        pair = [_runs_of(runs, str(where), method) for method in (fewer, more)]
        common = set.intersection(*({record.seed for record in records} for records in pair))
        own, other = (_taken_off(r for r in records if r.seed in common) for records in pair)
        return f"{where}: {fewer} took off in {own}, {more} in {other} of {len(common)}", own <= other

    return claim


def _larger_area(runs: Runs) -> tuple[str, bool]:
    d = _difference(runs, "19", IGRPO, GRPO, mean_p)
    return f"19: area {IGRPO} minus {GRPO} {d}", _higher(d)


def _never_higher(runs: Runs) -> tuple[str, bool]:
    """At no measured step after the start is iGRPO higher than GRPO-8, at 8 digits."""
    steps = [row["step"] for row in _runs_of(runs, "8", IGRPO)[0].exact][1:]
    ahead = [s for s in steps if _higher(_difference(runs, "8", IGRPO, GRPO, partial(p_at, step=s)))]
    return f"8: {IGRPO} is higher at steps {ahead or 'none'}", not ahead


def crossing(ahead: Sequence[Record], behind: Sequence[Record]) -> float | None:
    """The last step at which the mean p of `ahead` falls below that of `behind`; None if it never does.

    Args:
        ahead, behind: runs of two methods, measured at the same steps.
    """
    steps = [row["step"] for row in ahead[0].exact]
    gaps = [fmean(p_at(r, s) for r in ahead) - fmean(p_at(r, s) for r in behind) for s in steps]
    falls = [i for i in range(1, len(steps)) if gaps[i - 1] > 0 > gaps[i]]
    if not falls:
        return None
    i = falls[-1]
    return steps[i - 1] + (steps[i] - steps[i - 1]) * gaps[i - 1] / (gaps[i - 1] - gaps[i])


def _crosses(where: int, low: float, high: float) -> Claim:
    def claim(runs: Runs) -> tuple[str, bool]:
        at = crossing(_runs_of(runs, str(where), IGRPO), _runs_of(runs, str(where), GRPO))
        text = f"{where}: curves {'do not cross' if at is None else f'cross at {at:.0f}'}"
        return text, at is not None and low <= at <= high

    return claim


def _at_end(name: str) -> Number:
    return lambda record: record.at_end(name)


def _below_its_usual_base(runs: Runs) -> tuple[str, bool]:
    """Draft after the question against draft before it, iGRPO at step 200, over the seeds of the former."""
    after = by_seed(_runs_of(runs, "15-after", IGRPO), partial(p_at, step=200))
    before = by_seed(_runs_of(runs, "15", IGRPO), partial(p_at, step=200))
    d = welch_interval(list(after.values()), [before[seed] for seed in after])
    text = f"15: {IGRPO}, after minus before {d.estimate:+.3f} [{d.low:+.3f}, {d.high:+.3f}] (Welch)"
    return text, d.high < 0


_BATCHES = [f"GRPO-8, batch x{n}{rate}" for n in (4, 8) for rate in ("", ", rate x2")]


def _batch_below(batch: str) -> Claim:
    def claim(runs: Runs) -> tuple[str, bool]:
        d = _difference(runs, "19", batch, IGRPO, partial(p_after, share=1.0))
        return f"19: {batch} minus {IGRPO} at the end {d}", d.bootstrap.estimate < 0

    return claim


def _rate_below(method: str) -> Claim:
    """GRPO-8 at a lower rate has a mean below that of iGRPO at its own, at 19 digits."""

    def claim(runs: Runs) -> tuple[str, bool]:
        own, other = (
            fmean(p_at(record, 200) for record in _runs_of(runs, where, name))
            for where, name in (("19-rates", method), ("19", IGRPO))
        )
        return f"19: {method}, mean p at 200 {own:.3g}, {IGRPO} {other:.3g}", own < other

    return claim


_LOWER = ("GRPO-8 at 0.00015", "GRPO-8 at 0.0006")
_PREFIX = "GRPO-8, prefix given, at 0.0003"


def _prefix_above(runs: Runs) -> tuple[str, bool]:
    """With a prefix given, the mean is above that of iGRPO on the common seeds, at 19 digits."""
    own, other = (
        by_seed(_runs_of(runs, where, method), partial(p_at, step=200))
        for where, method in (("19-prefix", _PREFIX), ("19", IGRPO))
    )
    d = bounded_difference(own, other)
    return f"19: {_PREFIX} minus {IGRPO} at 200 {d}", d.bootstrap.estimate > 0


_CORRECT, _DEAD = "refinements correct at the end", "dead groups at the end"

PREDICTIONS: list[tuple[str, list[Claim]]] = [
    (
        "19 digits: iGRPO ends higher than GRPO-8, with a larger area; GRPO-8 takes off in at most 5 of 10 "
        "seeds, iGRPO in 10",
        [
            _differs(19, IGRPO, GRPO, _higher),
            _larger_area,
            _starts(19, GRPO, 0, 5),
            _starts(19, IGRPO, 10, 10),
        ],
    ),
    (
        "15 digits: iGRPO is higher at step 50 and lower at 200; the curves cross in 60 to 180",
        [
            _differs(15, IGRPO, GRPO, _higher, 50),
            _differs(15, IGRPO, GRPO, _lower, 200),
            _crosses(15, 60, 180),
        ],
    ),
    (
        "12 digits: the curves cross by step 60; GRPO-8 is higher at 100 and 200",
        [
            _crosses(12, 0, 60),
            _differs(12, GRPO, IGRPO, _higher, 100),
            _differs(12, GRPO, IGRPO, _higher, 200),
        ],
    ),
    (
        "8 digits: GRPO-8 is higher at 50, 100, 200; iGRPO never is",
        [*(_differs(8, GRPO, IGRPO, _higher, step) for step in (50, 100, 200)), _never_higher],
    ),
    (
        "iGRPO stalls at 15 and 19 digits: mean p below .75 at 200, with at least 75% of its groups dead and "
        "80% of its refinements correct",
        [
            claim
            for n in RARE
            for claim in (
                _mean(n, IGRPO, lambda p: p < 0.75),
                _mean(n, IGRPO, lambda x: x >= 0.75, _at_end("dead_groups"), _DEAD),
                _mean(n, IGRPO, lambda x: x >= 0.8, _at_end("correct"), _CORRECT),
            )
        ],
    ),
    (
        "Both stages: p >= .9 at 200 in every seed at every length; higher than GRPO-8 at 100 at 15 and 19 "
        "digits; nowhere below it by more than .02 at 200",
        [
            *(_every_seed(n, BOTH, 0.9) for n in LENGTHS),
            *(_differs(n, BOTH, GRPO, _higher, 100) for n in RARE),
            *(_differs(n, BOTH, GRPO, _estimate(-0.02)) for n in LENGTHS),
        ],
    ),
    (
        "Drafts, then GRPO: mean p above .9 at 200, and higher than iGRPO, at every length",
        [
            claim
            for n in LENGTHS
            for claim in (_mean(n, SWITCH, lambda p: p > 0.9), _differs(n, SWITCH, IGRPO, _higher))
        ],
    ),
    (
        "The choice of the draft is not the mechanism: random is not lower, 1+7 is higher at 200; foreign "
        "and no draft stay below .02 at 19 digits",
        [
            *(_differs(n, "iGRPO 4+4, random draft", IGRPO, _not_lower) for n in RARE),
            *(_differs(n, "iGRPO 1+7", IGRPO, _higher) for n in RARE),
            *(_never_reaches(19, f"iGRPO 4+4, {kind} draft", 0.02) for kind in ("foreign", "no")),
        ],
    ),
    (
        "Two stages with a random draft end within .03 of both stages",
        [_differs(n, "both stages, random draft", BOTH, _estimate(-0.03, 0.03)) for n in RARE],
    ),
    (
        "Refinements trained on q end above .9 (mean) at 15 and 19 digits",
        [_mean(n, "refinements trained on q", lambda p: p > 0.9) for n in RARE],
    ),
    (
        "GRPO-4 takes off in at most as many seeds as GRPO-8, T = 0.7 in at least as many",
        [
            *(_start_order(n, "GRPO-4", GRPO) for n in RARE),
            *(_start_order(n, GRPO, "GRPO-8 at T = 0.7") for n in RARE),
        ],
    ),
    (
        "Partial credit: GRPO-8 has p >= .9 at 200 in every seed at 15 and 19 digits",
        [_every_seed(n, "GRPO-8, partial credit", 0.9) for n in RARE],
    ),
    (
        "19 digits: with batches x4 and x8 at equal rollouts GRPO-8 ends below iGRPO (mean)",
        [_batch_below(batch) for batch in _BATCHES],
    ),
    (
        "No repair skill: iGRPO has mean p < .1 and is lower than GRPO-8 at 200; both stages is not higher "
        "than GRPO-8 at 100",
        [
            _mean("15-fresh", IGRPO, lambda p: p < 0.1),
            _differs("15-fresh", IGRPO, GRPO, _lower),
            _differs("15-fresh", BOTH, GRPO, _not_higher, 100),
        ],
    ),
    (
        "Transfer made hard: iGRPO has mean p < .1 at 200 although more than half of its refinements are "
        "correct",
        [
            _mean("15-shifted", IGRPO, lambda p: p < 0.1),
            _mean("15-shifted", IGRPO, lambda x: x > 0.5, _at_end("correct"), _CORRECT),
        ],
    ),
    (
        "Draft after the question: iGRPO is lower at 200 than with the draft before it; both stages is "
        "higher than GRPO-8 at 100",
        [_below_its_usual_base, _differs("15-after", BOTH, GRPO, _higher, 100)],
    ),
    (
        "Addendum 2, 19 digits: at 1.5e-4 and at 6e-4 GRPO-8 takes off in at most 3 of 10 runs, with a mean "
        "p below iGRPO's at 200",
        [claim for m in _LOWER for claim in (_starts("19-rates", m, 0, 3), _rate_below(m))],
    ),
    (
        "Addendum 3, 15 digits, both at 3e-4: GRPO-8 takes off in at least 8 of 10 runs, and is higher than "
        "iGRPO at 200",
        [
            _starts("15-shared", "GRPO-8 at 0.0003", 8, 10),
            _differs("15-shared", "GRPO-8 at 0.0003", "iGRPO 4+4 at 0.0003", _higher),
        ],
    ),
    (
        "Addendum 3, 19 digits, no repair skill: no method takes off in more than 1 of 5 runs",
        [_starts("19-fresh", method, 0, 1) for method in (GRPO, IGRPO, BOTH)],
    ),
    (
        "Addendum 3, 19 digits, transfer made hard: iGRPO takes off in at most 1 of 5 runs, although more "
        "than half of its refinements are correct",
        [
            _starts("19-shifted", IGRPO, 0, 1),
            _mean("19-shifted", IGRPO, lambda x: x > 0.5, _at_end("correct"), _CORRECT),
        ],
    ),
    (
        "Addendum 4, the meter's own: with transfer made hard, which the meter does not see, iGRPO takes off "
        "in at least 4 of 5 runs",
        [_starts("19-shifted", IGRPO, 4, 5)],
    ),
    (
        "Addendum 5, 19 digits: given the beginning of a correct answer, GRPO-8 takes off at 3e-4 in at "
        "least 4 of 5 runs, with a mean p above iGRPO's at 200",
        [_starts("19-prefix", _PREFIX, 4, 5), _prefix_above],
    ),
]
"""in the order of the preregistration: the statement in short, and its claims"""
