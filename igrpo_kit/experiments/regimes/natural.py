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
RATES = {"": (3e-4, 6e-4), "-low": (1e-4, 3e-5)}
"""end of an experiment's name -> its learning rates, the long arm's first; the lower ones are addendum 2's"""
COUNTEREXAMPLE = (0, 2)
"""seeds whose base has r >= 10 p and p < .002 (addendum 1, before the runs); on base 1 p is common"""
LONG_STEPS = 600
"""of one more arm: `CONSOLIDATED`, the method that trains q itself on correct refinements"""
LONG = f"{CONSOLIDATED}, {LONG_STEPS} steps"


def results_first(sums: int, digits: int, rates: str = "") -> Experiment:
    """Every method of `METHODS` at the rates of a key of `RATES`, one warm start for each seed."""
    methods = {
        f"{name} at {rate:g}": {**settings, "learning_rate": rate}
        for name, settings in METHODS.items()
        for rate in RATES[rates]
    }
    longest = {**METHODS[CONSOLIDATED], "learning_rate": RATES[rates][0], "steps": LONG_STEPS}
    shape = f"{sums}x{digits}"
    return Experiment(
        name=f"natural-results-first-{shape}{rates}",
        title=f"Results first, {sums} sums of {digits} digits: each method at two {'lower ' * bool(rates)}"
        "learning rates",
        policy=f"results-first-{shape}-{{block}}",
        problems=f"results-first-{shape}",
        methods={**methods, LONG: longest},
        baseline=f"GRPO-8 at {RATES[rates][0]:g}",
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


def _counted(records: Sequence[Record], *names: str) -> list[Record]:
    """Runs on `COUNTEREXAMPLE` whose method begins with a name; those of the long arm only for its own."""
    return [
        record
        for name in names
        for record in records
        if record.seed in COUNTEREXAMPLE
        and record.method.startswith(name)
        and record.method.endswith("steps") == name.endswith("steps")
    ]


def _started(runs: Sequence[Record]) -> int:
    return sum(first_step(run, TAKEN_OFF) is not None for run in runs)


def _share(runs: Sequence[Record]) -> str:
    return f"{_started(runs)} of {len(runs)}"


def _is_alive(run: Record) -> bool:
    """Addendum 2: the last measured repair rate is at least half of that of the base."""
    first, last = (run.exact[i]["repair"] or 0.0 for i in (0, -1))
    return bool(last >= first / 2)


def _stays_below(number: int, statement: str, runs: Sequence[Record]) -> Outcome:
    highest = max(row["p"] for run in runs for row in run.exact)
    return Outcome(number, statement, f"highest p {highest:.2g} in {len(runs)} runs", highest < 0.02)


def natural_judged(records: Sequence[Record]) -> list[Outcome]:
    """Predictions 2 to 6 of natural-tasks.md on the bases of the counterexample, judged as addendum 1 says.

    Prediction 1 is about the bases themselves; the table of the addendum decides it.

    Args:
        records: all runs of an experiment of this module.
    """
    igrpo = _counted(records, "iGRPO 4+4")
    low = _stays_below(3, "", igrpo)
    repairs = [[row["repair"] or 0.0 for row in run.exact] for run in igrpo]
    better = sum(max(r) >= r[0] + 0.1 or max(r) >= 0.9 for r in repairs)
    short, long = _counted(records, CONSOLIDATED), _counted(records, LONG)
    either = _counted(records, "GRPO-8", "iGRPO 4+4")
    return [
        _stays_below(
            2, "GRPO-8 does not take off: p < .02 at every measured step", _counted(records, "GRPO-8")
        ),
        Outcome(
            3,
            "iGRPO stays below .02, although its repair rate rises by .1 or reaches .9 in every run",
            f"{low.measured}; repair rate higher in {better} of {len(repairs)}",
            bool(low.hit) and better == len(repairs),
        ),
        _stays_below(4, "Both stages: p < .02 in every run", _counted(records, "both stages")),
        Outcome(
            5,
            "Refinements trained on q: no take-off in 200 steps, nor in 600",
            f"{_share(short)} in 200 steps; {_share(long)} in {LONG_STEPS}",
            _started([*short, *long]) == 0,
        ),
        Outcome(
            6,
            "r/p is not enough: where r >= 10 p and transfer is low, neither GRPO-8 nor iGRPO takes off",
            f"{_share(either)} runs",
            _started(either) == 0,
        ),
    ]


def low_rates_judged(records: Sequence[Record]) -> list[Outcome]:
    """Predictions 7 to 10 of addendum 2, on the bases of the counterexample.

    Args:
        records: all runs of an experiment of this module at the lower rates.
    """
    high, low = RATES["-low"]
    drafted = _counted(records, "iGRPO 4+4", "both stages")
    alive = {
        rate: [_is_alive(run) for run in drafted if run.method.endswith(f" at {rate:g}")]
        for rate in (low, high)
    }
    short, long = _counted(records, CONSOLIDATED), _counted(records, LONG)
    either = _counted(records, "GRPO-8", "iGRPO 4+4")
    living = [run for run in either if _is_alive(run)]
    return [
        Outcome(
            7,
            "At 3e-5 all runs of iGRPO and of both stages are alive, at 1e-4 at least 2 of 4",
            "; ".join(f"{sum(found)} of {len(found)} alive at {rate:g}" for rate, found in alive.items()),
            all(alive[low]) and sum(alive[high]) >= 2,
        ),
        _stays_below(8, "iGRPO and both stages have p < .02 at every measured step", drafted),
        Outcome(
            9,
            "Refinements trained on q: no take-off in 200 steps, at least 1 of 2 in 600",
            f"{_share(short)} in 200 steps; {_share(long)} in {LONG_STEPS}",
            _started(short) == 0 and _started(long) >= 1,
        ),
        Outcome(
            10,
            "r/p is not enough: at least 4 of 8 runs of GRPO-8 and iGRPO are alive, and none of those starts",
            f"{len(living)} of {len(either)} alive; {_started(living)} of those took off",
            len(living) >= 4 and _started(living) == 0,
        ),
    ]


def experiments() -> dict[str, Callable[[], Experiment]]:
    """All experiments of natural tasks by name."""
    return {
        f"natural-results-first-{sums}x{digits}{rates}": partial(results_first, sums, digits, rates)
        for sums, digits in RESULTS_FIRST_SHAPES
        for rates in RATES
    }
