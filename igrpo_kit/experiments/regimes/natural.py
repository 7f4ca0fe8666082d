"""Natural tasks: the skill to use a draft is not planted. Is r >> p enough for iGRPO to win?

*Results first* is the counterexample (`tasks.results_first`): own wrong drafts are repaired far more often
than questions are answered, and yet the first study saw nothing learned on q. What was expected here stands
in `data/preregistrations/natural-tasks.md`; which other tasks were tried, in `regimes.screen`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from igrpo_kit.analysis.compare import Record
from igrpo_kit.analysis.takeoff import TAKEN_OFF, first_step
from igrpo_kit.experiments.experiment import Experiment
from igrpo_kit.experiments.regimes.predictions import Outcome
from igrpo_kit.experiments.regimes.revision import CONTROLS, CORE
from igrpo_kit.training.sft import RESULTS_FIRST_BLOCKS, RESULTS_FIRST_SHAPES, results_first_length

CONSOLIDATED = "refinements trained on q"
METHODS: dict[str, dict[str, Any]] = {
    **{name: CORE[name] for name in ("GRPO-8", "iGRPO 4+4", "both stages")},
    CONSOLIDATED: CONTROLS[CONSOLIDATED],
}
RATES = (3e-4, 6e-4)
COUNTEREXAMPLE = (0, 2)
"""seeds whose base has r >= 10 p and p < .002 (addendum 1, before the runs); on base 1 p is common"""
LONG_STEPS = 600
"""of one more arm: `CONSOLIDATED`, the method that trains q itself on correct refinements"""


def results_first(sums: int, digits: int) -> Experiment:
    """Every method of `METHODS` at every rate, on as many warm starts as there are seeds."""
    methods = {
        f"{name} at {rate:g}": {**settings, "learning_rate": rate}
        for name, settings in METHODS.items()
        for rate in RATES
    }
    longest = {**METHODS[CONSOLIDATED], "learning_rate": RATES[0], "steps": LONG_STEPS}
    shape = f"{sums}x{digits}"
    return Experiment(
        name=f"natural-results-first-{shape}",
        title=f"Results first, {sums} sums of {digits} digits: each method at two learning rates",
        policy=f"results-first-{shape}-{{block}}",
        problems=f"results-first-{shape}",
        methods={**methods, f"{CONSOLIDATED}, {LONG_STEPS} steps": longest},
        baseline=f"GRPO-8 at {RATES[0]:g}",
        seeds=tuple(range(RESULTS_FIRST_BLOCKS)),
        blocks=RESULTS_FIRST_BLOCKS,
        max_new_tokens=results_first_length(sums, digits),
        held_out_problems=128,
        measure_every=10,
        evaluate_every=200,
        final_samples=16,
        draft_samples=2,
        record_every=100,
        preregistration="natural-tasks.md",
    )


def natural_judged(records: Sequence[Record]) -> list[Outcome]:
    """Predictions 2 to 6 of natural-tasks.md on the bases of the counterexample, judged as addendum 1 says.

    Prediction 1 is about the bases themselves; the table of the addendum decides it.

    Args:
        records: all runs of an experiment of this module.
    """

    def of(name: str) -> list[Record]:
        found = [r for r in records if r.seed in COUNTEREXAMPLE and r.method.startswith(name)]
        return [r for r in found if r.method.endswith("steps") == name.endswith("steps")]

    def stays_below(number: int, name: str, statement: str) -> Outcome:
        runs = of(name)
        highest = max(row["p"] for run in runs for row in run.exact)
        return Outcome(number, statement, f"highest p {highest:.2g} in {len(runs)} runs", highest < 0.02)

    def started(names: Sequence[str]) -> tuple[int, int]:
        runs = [run for name in names for run in of(name)]
        return sum(first_step(run, TAKEN_OFF) is not None for run in runs), len(runs)

    low = stays_below(3, "iGRPO 4+4", "")
    repairs = [[row["repair"] or 0.0 for row in run.exact] for run in of("iGRPO 4+4")]
    better = sum(max(r) >= r[0] + 0.1 or max(r) >= 0.9 for r in repairs)
    short, all_short = started([CONSOLIDATED])
    long, all_long = started([f"{CONSOLIDATED}, {LONG_STEPS} steps"])
    either, all_either = started(["GRPO-8", "iGRPO 4+4"])
    return [
        stays_below(2, "GRPO-8", "GRPO-8 does not take off: p < .02 at every measured step"),
        Outcome(
            3,
            "iGRPO stays below .02, although its repair rate rises by .1 or reaches .9 in every run",
            f"{low.measured}; repair rate higher in {better} of {len(repairs)}",
            bool(low.hit) and better == len(repairs),
        ),
        stays_below(4, "both stages", "Both stages: p < .02 in every run"),
        Outcome(
            5,
            "Refinements trained on q: no take-off in 200 steps, nor in 600",
            f"{short} of {all_short} in 200 steps; {long} of {all_long} in {LONG_STEPS}",
            short == long == 0,
        ),
        Outcome(
            6,
            "r/p is not enough: where r >= 10 p and transfer is low, neither GRPO-8 nor iGRPO takes off",
            f"{either} of {all_either} runs",
            either == 0,
        ),
    ]


def experiments() -> dict[str, Callable[[], Experiment]]:
    """All experiments of natural tasks by name."""
    return {
        f"natural-results-first-{sums}x{digits}": partial(results_first, sums, digits)
        for sums, digits in RESULTS_FIRST_SHAPES
    }
