"""Ablations: one factor varies, all else is equal (Tables 2 and S.4, and factors that the paper leaves out).

An ablation is an `Experiment` whose methods differ in one factor. It is run, resumed, packed and reported
like any other experiment. `ablation("beta")` is the preset `ablation-beta`; `ablation("beta", [0, 0.1])` has
values of your own. `ablate` runs or loads an ablation and compares each value with the baseline, paired by
seed.

All ablations train the tiny Countdown policy for 120 steps of 32 prompts. Limitations:

- *completions* increases the number of rollouts, as in Table S.4; every other factor keeps it at 8.
- *objective* uses two optimizer steps per rollout. With one, the importance ratio is 1, clipping has no
  effect, and GSPO has exactly GRPO's gradient. Each objective with Stage 1 is compared with itself without
  (Table 2). DAPO: https://arxiv.org/abs/2503.14476; GSPO: https://arxiv.org/abs/2507.18071; Dr. GRPO:
  https://arxiv.org/abs/2503.20783.
- *template* moves the draft after the question, the paper's order (Eq. 3). The tiny policy was trained only
  on its own template, so this changes familiarity as well as position. For a language model, both orders
  are new.
- *draft length* keeps the last tokens of a draft. Countdown's answers have about six tokens.

Tables and equations: https://arxiv.org/abs/2602.09000.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from igrpo_kit.analysis.compare import Record, Summary, accuracy, load_records
from igrpo_kit.core.rows import Row
from igrpo_kit.experiments.experiment import GRPO_8, IGRPO, Experiment, record_folders
from igrpo_kit.experiments.runner import run_experiment

Methods = dict[str, dict[str, Any]]
"""A method's name -> its overrides, as in `Experiment.methods`."""

_LENGTH = 12  # tokens per answer at most

_OBJECTIVES: dict[str, dict[str, Any]] = {
    "GRPO": {"name": "GRPO"},
    "DAPO": {"name": "DAPO"},
    "GSPO": {"name": "GSPO"},
    "Dr. GRPO": {"name": "DrGRPO", "max_length": _LENGTH},
}
TEMPLATES = {"draft before q": "draft-before", "draft after q": "draft-after"}


@dataclass(frozen=True)
class Factor:
    """The factor of an ablation: its values, the methods for each value, and the method to compare with."""

    title: str
    values: tuple[Any, ...]
    methods: Callable[[Any], Methods]
    baseline: str


def _beta(value: float) -> Methods:
    return {f"beta {value:g}": {**IGRPO, "objective": {"name": "GRPO", "beta": value}}}


def _completions(value: int) -> Methods:
    if value % 2 or value < 4:
        raise ValueError(f"completions: an even number >= 4 is shared out evenly, got {value}")
    return {f"{value} completions": {"num_drafts": value // 2, "num_refinements": value // 2}}


def _split(drafts: int) -> Methods:
    return {f"{drafts}+{8 - drafts}": {"num_drafts": drafts, "num_refinements": 8 - drafts}}


def _select(value: str) -> Methods:
    return {f"{value} draft": {**IGRPO, "select": value}}


def _objective(name: str) -> Methods:
    if name not in _OBJECTIVES:
        raise ValueError(f"objective: one of {', '.join(_OBJECTIVES)}, got {name!r}")
    shared = {"objective": _OBJECTIVES[name], "num_iterations": 2}
    return {f"{name}-8": {**GRPO_8, **shared}, f"{name} 4+4": {**IGRPO, **shared}}


def _template(name: str) -> Methods:
    if name not in TEMPLATES:
        raise ValueError(f"template: one of {', '.join(TEMPLATES)}, got {name!r}")
    return {name: {**IGRPO, "prompt_format": TEMPLATES[name]}}


def _draft_length(tokens: int | None) -> Methods:
    name = "whole draft" if tokens is None else f"last {tokens} tokens"
    return {name: {**IGRPO, "max_draft_tokens": tokens}}


FACTORS: dict[str, Factor] = {
    "beta": Factor("The weight of the KL penalty", (0.0, 1e-4, 1e-3, 1e-2), _beta, "beta 0"),
    "completions": Factor(
        "Completions per prompt, half of them drafts", (4, 8, 16, 32), _completions, "8 completions"
    ),
    "split": Factor("Drafts + refinements at 8 completions", (0, 2, 4, 6), _split, "4+4"),
    "select": Factor(
        "Which draft is shown", ("best", "random", "worst", "first", "none"), _select, "best draft"
    ),
    "objective": Factor("The objective, with and without Stage 1", tuple(_OBJECTIVES), _objective, "GRPO-8"),
    "template": Factor("Where the draft stands", tuple(TEMPLATES), _template, "draft before q"),
    "draft-length": Factor("How much of the draft is shown", (0, 2, 4, None), _draft_length, "whole draft"),
}
"""The factors by name. `completions` and `beta` use the values of Table S.4; `objective` is Table 2."""


def ablation(
    factor: str, values: Sequence[Any] | None = None, *, steps: int = 120, seeds: Sequence[int] = (0, 1, 2)
) -> Experiment:
    """The experiment that varies one factor of `FACTORS`.

    Args:
        factor: name of the factor.
        values: values of the factor; None uses its own.
        steps: training steps of each run.
        seeds: training seeds.

    Raises:
        ValueError: an unknown factor, an invalid value, or values without the baseline's.
    """
    if factor not in FACTORS:
        raise ValueError(f"factor: one of {', '.join(FACTORS)}, got {factor!r}")
    chosen = FACTORS[factor]
    methods: Methods = {}
    for value in chosen.values if values is None else values:
        methods |= chosen.methods(value)
    if chosen.baseline not in methods:
        raise ValueError(f"values: {chosen.baseline!r} is what the others are compared with; add its value")
    with_stage_1 = [name for name in _OBJECTIVES if f"{name} 4+4" in methods]
    return Experiment(
        name=f"ablation-{factor}",
        title=f"{chosen.title} (Countdown, binary reward)",
        policy="tiny",
        problems="countdown",
        methods=methods,
        baseline=chosen.baseline,
        against={f"{name} 4+4": f"{name}-8" for name in with_stage_1},
        max_new_tokens=_LENGTH,
        steps=steps,
        seeds=tuple(seeds),
        held_out_problems=256,
        evaluate_every=30,
    )


def best_learning_rates(experiment: Experiment, records: Sequence[Record]) -> dict[str, float]:
    """The learning rate of each method with the highest mean accuracy at the end of its runs.

    Args:
        experiment: one whose methods are named "METHOD at RATE", such as `ablation-lr-countdown`.
        records: its runs, on seeds that are reported nowhere else.

    Raises:
        ValueError: a rate is an end of its range, so that the best one may lie outside.
    """
    found: dict[str, dict[float, float]] = {}
    for name, settings in experiment.methods.items():
        scores = [accuracy(r.final("q")) for r in records if r.method == name]
        found.setdefault(name.rsplit(" at ", 1)[0], {})[settings["learning_rate"]] = fmean(scores)
    best = {method: max(by_rate, key=by_rate.__getitem__) for method, by_rate in found.items()}
    at_an_end = [m for m, rate in best.items() if rate in (min(found[m]), max(found[m]))]
    if at_an_end:
        raise ValueError(f"learning_rate: the best of {', '.join(at_an_end)} is an end of the range")
    return best


def ablate(experiment: Experiment, folder: str | Path, *, jobs: int = 2) -> tuple[list[Summary], Row]:
    """Run the missing runs of an experiment in `folder`, and compare its methods, paired by seed.

    Runs are parallel single-thread processes with one progress bar. A killed run resumes. If the folder
    already holds all records, including committed ones, nothing is run.

    Args:
        experiment: the ablation.
        folder: folder of the runs.
        jobs: number of processes at a time.

    Returns:
        One `Summary` per method, and the untrained policy's evaluation, as required by `compare.table`.

    Raises:
        RuntimeError: as `run_experiment`.
        ValueError: the folder holds runs with other settings.
    """
    run_experiment(experiment, folder, jobs=jobs)
    records, base = load_records(folder, record_folders(experiment))
    return experiment.summarize(records, base), base
