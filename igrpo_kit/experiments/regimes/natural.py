"""Natural tasks: the skill to use a draft is not planted. Is r >> p enough for iGRPO to win?

*Results first* is the counterexample (`tasks.results_first`): own wrong drafts are repaired far more often
than questions are answered, and yet the first study saw nothing learned on q. What was expected here stands
in `data/preregistrations/natural-tasks.md`; which other tasks were tried, in `regimes.screen`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from igrpo_kit.experiments.experiment import Experiment
from igrpo_kit.experiments.regimes.revision import CONTROLS, CORE
from igrpo_kit.training.sft import RESULTS_FIRST_BLOCKS, RESULTS_FIRST_SHAPES, results_first_length

CONSOLIDATED = "refinements trained on q"
METHODS: dict[str, dict[str, Any]] = {
    **{name: CORE[name] for name in ("GRPO-8", "iGRPO 4+4", "both stages")},
    CONSOLIDATED: CONTROLS[CONSOLIDATED],
}
RATES = (3e-4, 6e-4)
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


def experiments() -> dict[str, Callable[[], Experiment]]:
    """All experiments of natural tasks by name."""
    return {
        f"natural-results-first-{sums}x{digits}": partial(results_first, sums, digits)
        for sums, digits in RESULTS_FIRST_SHAPES
    }
