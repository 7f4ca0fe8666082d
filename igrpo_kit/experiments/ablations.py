"""One factor varied, everything else held: the paper's ablations (Tables 2 and S.4) and those it leaves out.

An ablation is an `Experiment` whose methods differ in one factor, so it is run, resumed, packed and reported
like any other. `ablation("beta")` is the preset `ablation-beta`, `ablation("beta", [0, 0.1])` one of yours;
`ablate` runs or loads it and compares every value with the baseline, paired by seed.

All of them train the tiny Countdown policy for 120 steps of 32 prompts. What this can and cannot show:

- *completions* lets the number of rollouts grow, as Table S.4 does; every other factor keeps it at 8.
- *objective* makes two optimizer steps per rollout. With one the importance ratio is 1, no clip acts, and
  GSPO has exactly GRPO's gradient. Each objective with Stage 1 is compared with itself without (Table 2).
- *template* moves the draft behind the question, the paper's order (Eq. 3). The tiny policy has learned its
  own template alone, so this varies familiarity together with position; a language model has learned neither.
- *draft length* keeps the last tokens of a draft. Countdown's answers have about six.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from igrpo_kit.analysis.compare import Summary, load_records
from igrpo_kit.core.rows import Row
from igrpo_kit.experiments.experiment import GRPO_8, IGRPO, Experiment, record_folders
from igrpo_kit.experiments.runner import run_experiment

Methods = dict[str, dict[str, Any]]
"""A method's name -> its overrides, as in `Experiment.methods`."""

_LENGTH = 12  # tokens an answer may have

OBJECTIVES: dict[str, dict[str, Any]] = {
    "GRPO": {"name": "GRPO"},
    "DAPO": {"name": "DAPO"},
    "GSPO": {"name": "GSPO"},
    "Dr. GRPO": {"name": "DrGRPO", "max_length": _LENGTH},
}
TEMPLATES = {"draft before q": "draft-before", "draft after q": "draft-after"}


@dataclass(frozen=True)
class Factor:
    """What an ablation varies: its values, the methods each stands for, and the one to compare with."""

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
    if name not in OBJECTIVES:
        raise ValueError(f"objective: one of {', '.join(OBJECTIVES)}, got {name!r}")
    shared = {"objective": OBJECTIVES[name], "num_iterations": 2}
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
    "objective": Factor("The objective, with and without Stage 1", tuple(OBJECTIVES), _objective, "GRPO-8"),
    "template": Factor("Where the draft stands", tuple(TEMPLATES), _template, "draft before q"),
    "draft-length": Factor("How much of the draft is shown", (0, 2, 4, None), _draft_length, "whole draft"),
}
"""The factors by name. `completions` and `beta` are Table S.4's with its values, `objective` is Table 2's."""


def ablation(
    factor: str, values: Sequence[Any] | None = None, *, steps: int = 120, seeds: Sequence[int] = (0, 1, 2)
) -> Experiment:
    """The experiment that varies one factor of `FACTORS`, over its own values or over yours.

    Raises ValueError for an unknown factor, a value it cannot take, or values without the baseline's.
    """
    if factor not in FACTORS:
        raise ValueError(f"factor: one of {', '.join(FACTORS)}, got {factor!r}")
    chosen = FACTORS[factor]
    methods: Methods = {}
    for value in chosen.values if values is None else values:
        methods |= chosen.methods(value)
    if chosen.baseline not in methods:
        raise ValueError(f"values: {chosen.baseline!r} is what the others are compared with; add its value")
    with_stage_1 = [name for name in OBJECTIVES if f"{name} 4+4" in methods]
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


def ablate(experiment: Experiment, folder: str | Path, *, jobs: int = 2) -> tuple[list[Summary], Row]:
    """Run what is missing of an experiment in `folder`, and compare its methods, paired by seed.

    Runs are parallel single-thread processes with one progress bar; a killed one goes on where it was, and
    where the folder holds every record, committed ones too, nothing is run. One `Summary` per method, with
    the untrained policy's evaluation, as `compare.table` takes them.

    Raises RuntimeError as `run_experiment`, ValueError where the folder holds runs with other settings.
    """
    run_experiment(experiment, folder, jobs=jobs)
    records, base = load_records(folder, record_folders(experiment))
    return experiment.summarize(records, base), base
