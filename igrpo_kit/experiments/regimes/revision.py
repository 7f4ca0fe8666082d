"""The revision-cipher experiments: in which regime does a draft pay, and which part of iGRPO pays?

The length of an answer sets how rare a correct one is, from 1 in 100 (8 digits) to 1 in 50,000 (19). Runs
are blocked: 3 tables x 2 warm starts. `data/preregistrations/revision-cipher.md` holds what was expected.
"""

from collections.abc import Callable, Sequence
from functools import partial
from statistics import fmean
from typing import Any

from igrpo_kit.analysis.compare import Record
from igrpo_kit.analysis.takeoff import p_at
from igrpo_kit.experiments.experiment import GRPO_4, GRPO_8, IGRPO, Experiment
from igrpo_kit.training.sft import CIPHER_BLOCKS, CIPHER_LENGTHS

CORE: dict[str, dict[str, Any]] = {
    "GRPO-8": GRPO_8,
    "iGRPO 4+4": IGRPO,
    "both stages": {**IGRPO, "train_drafts": True},
    "drafts, then GRPO": {**IGRPO, "variant": "drafts-then-grpo"},
}
"""the methods that are tuned and run at every length"""

CONTROLS: dict[str, dict[str, Any]] = {
    "iGRPO 1+7": {"num_drafts": 1, "num_refinements": 7},
    "iGRPO 4+4, random draft": {**IGRPO, "select": "random"},
    "iGRPO 4+4, no draft": {**IGRPO, "select": "none"},
    "iGRPO 4+4, foreign draft": {**IGRPO, "variant": "foreign-draft"},
    "both stages, random draft": {**IGRPO, "train_drafts": True, "select": "random"},
    "refinements trained on q": {
        **IGRPO,
        "train_drafts": True,
        "select": "random",
        "variant": "consolidated",
    },
    "GRPO-4": GRPO_4,
    "GRPO-8 at T = 0.7": {**GRPO_8, "temperature": 0.7},
    "GRPO-8, partial credit": {**GRPO_8, "variant": "partial-credit"},
    "GRPO-8, batch x2": {**GRPO_8, "prompts_per_step": 64, "steps": 100},
    "GRPO-8, batch x4": {**GRPO_8, "prompts_per_step": 128, "steps": 50},
    "GRPO-8, batch x8": {**GRPO_8, "prompts_per_step": 256, "steps": 25},
}
"""the controls of the two rarest lengths; batches are larger at the same number of rollouts in total"""

PREFIX_RATES = (3e-4, 6e-4)

BASES = {
    "after": "the draft stands after the question",
    "fresh": "no skill to repair a draft",
    "shifted": "the refinement prompt shows the question with its digits shifted",
}
"""bases with another warm start, and what is different; the names are kinds of `training.sft.CIPHER_KINDS`"""

RATES = (1.5e-4, 3e-4, 6e-4)
"""learning rates that are tried for every core method; 7.5e-5 and 1.2e-3 where the best is at an end"""

EXTENDED: dict[tuple[int, str], tuple[float, ...]] = {
    (19, "iGRPO 4+4"): (1.2e-3,),
    (19, "drafts, then GRPO"): (1.2e-3,),
    **{(length, name): (1.2e-3,) for length in (12, 15) for name in CORE},
    **{(8, name): (1.2e-3,) for name in ("GRPO-8", "iGRPO 4+4", "both stages")},
}
"""(length, method) -> rates added because the best of `RATES` was the lowest or the highest"""

CHOSEN: dict[int, dict[str, float]] = {
    19: {"GRPO-8": 1.2e-3, "iGRPO 4+4": 6e-4, "both stages": 3e-4, "drafts, then GRPO": 6e-4},
    15: {"GRPO-8": 1.2e-3, "iGRPO 4+4": 6e-4, "both stages": 6e-4, "drafts, then GRPO": 1.2e-3},
    12: dict.fromkeys(CORE, 6e-4),
    8: {**dict.fromkeys(CORE, 6e-4), "drafts, then GRPO": 3e-4},
}
"""length -> method -> the rate that the tuning seeds chose, by the rule of the preregistration"""

_SHARED: dict[str, Any] = {
    "baseline": "GRPO-8",
    "blocks": CIPHER_BLOCKS,
    "held_out_problems": 128,
    "measure_every": 10,
    "evaluate_every": 200,
    "final_samples": 16,
    "draft_samples": 2,
    "record_every": 100,
    "preregistration": "revision-cipher.md",
}


def _experiment(name: str, title: str, length: int, kind: str = "", **settings: Any) -> Experiment:
    return Experiment(
        name=name,
        title=title,
        policy=f"cipher-{kind}{length}-{{block}}",
        problems=f"cipher-{length}-{{block}}",
        max_new_tokens=length + 1,
        **{**_SHARED, **settings},
    )


def tuning(length: int) -> Experiment:
    """Each core method at the rates that were tried, on seeds that are reported nowhere else."""
    methods = {
        f"{name} at {rate:g}": {**settings, "learning_rate": rate}
        for name, settings in CORE.items()
        for rate in sorted({*RATES, *EXTENDED.get((length, name), ())})
    }
    return _experiment(
        f"revision-{length}-lr",
        f"Revision cipher, {length} digits: the learning rate of each method (tuning seeds)",
        length,
        methods=methods,
        baseline="GRPO-8 at 0.00015",
        measure_every=50,
        seeds=(100, 101),
    )


def best_rate(records: Sequence[Record], method: str) -> float | None:
    """The rate with the highest mean p at step 200 over the tuning seeds; None if no run reached p = .05.

    Args:
        records: runs of `tuning`.
        method: a core method.
    """
    found: dict[float, list[float]] = {}
    for record in records:
        name, rate = record.method.rsplit(" at ", 1)
        if name == method:
            found.setdefault(float(rate), []).append(p_at(record, 200))
    if max(map(max, found.values())) < 0.05:
        return None
    return max(found, key=lambda rate: fmean(found[rate]))


def core(length: int) -> Experiment:
    """The core methods, each at its chosen rate."""
    methods = {name: {**settings, "learning_rate": CHOSEN[length][name]} for name, settings in CORE.items()}
    title = f"Revision cipher, {length} digits, each method at its own learning rate"
    return _experiment(f"revision-{length}", title, length, methods=methods, seeds=tuple(range(10)))


def at_rates(name: str, title: str, length: int, rates: dict[str, Sequence[float]]) -> Experiment:
    """Core methods at other rates than the chosen ones, on the seeds of the core runs."""
    methods = {
        f"{method} at {rate:g}": {**CORE[method], "learning_rate": rate}
        for method, tried in rates.items()
        for rate in tried
    }
    seeds = tuple(range(10))
    return _experiment(name, title, length, methods=methods, baseline=next(iter(methods)), seeds=seeds)


def lower_rates() -> Experiment:
    """GRPO-8 at 19 digits at two lower rates, as no tuning run took off there (addendum 2)."""
    title = "Revision cipher, 19 digits: GRPO-8 at lower learning rates"
    return at_rates("revision-19-rates", title, 19, {"GRPO-8": (1.5e-4, 6e-4)})


def shared_rate() -> Experiment:
    """GRPO-8 and iGRPO 4+4 at 15 digits at one rate, because the tuning seeds misled there (addendum 3)."""
    title = "Revision cipher, 15 digits: one learning rate for both"
    return at_rates("revision-15-shared", title, 15, {"GRPO-8": (3e-4,), "iGRPO 4+4": (3e-4,)})


def prefix(length: int) -> Experiment:
    """GRPO-8 with the beginning of a correct answer given, at two learning rates (addendum 5)."""
    methods = {
        f"GRPO-8, prefix given, at {rate:g}": {**GRPO_8, "variant": "prefix", "learning_rate": rate}
        for rate in PREFIX_RATES
    }
    title = f"Revision cipher, {length} digits: the beginning of a correct answer is given (PrefixRL)"
    name, baseline = f"revision-{length}-prefix", next(iter(methods))
    return _experiment(name, title, length, methods=methods, baseline=baseline, seeds=tuple(range(5)))


def _closest(name: str, settings: dict[str, Any]) -> str:
    """The core method whose learning rate a control uses."""
    if name.startswith("GRPO"):
        return "GRPO-8"
    return "both stages" if settings.get("train_drafts") else "iGRPO 4+4"


def controls(length: int) -> Experiment:
    """The controls, at the rate of the core method they are closest to; large batches also at twice that."""
    methods = {}
    for name, settings in CONTROLS.items():
        rate = CHOSEN[length][_closest(name, settings)]
        methods[name] = {**settings, "learning_rate": rate}
        if "batch" in name:
            methods[f"{name}, rate x2"] = {**settings, "learning_rate": 2 * rate}
    title = f"Revision cipher, {length} digits: controls and relatives"
    return _experiment(
        f"revision-{length}-controls",
        title,
        length,
        methods=methods,
        baseline="GRPO-4",
        seeds=tuple(range(5)),
    )


def other_base(kind: str, length: int) -> Experiment:
    """GRPO-8, iGRPO 4+4, and both stages on a base of `BASES`, at the rates chosen for the usual one."""
    names = ("GRPO-8", "iGRPO 4+4", "both stages")
    methods = {name: {**CORE[name], "learning_rate": CHOSEN[length][name]} for name in names}
    title = f"Revision cipher, {length} digits: {BASES[kind]}"
    return _experiment(
        f"revision-{length}-{kind}", title, length, f"{kind}-", methods=methods, seeds=tuple(range(5))
    )


def experiments() -> dict[str, Callable[[], Experiment]]:
    """All experiments of the revision cipher by name; lengths without chosen rates have their tuning only."""
    made: dict[str, Callable[[], Experiment]]
    made = {f"revision-{n}-lr": partial(tuning, n) for n in CIPHER_LENGTHS}
    made |= {f"revision-{n}": partial(core, n) for n in CHOSEN}
    made |= {f"revision-{n}-controls": partial(controls, n) for n in (19, 15)}
    made |= {"revision-19-rates": lower_rates, "revision-15-shared": shared_rate}
    made |= {"revision-19-prefix": partial(prefix, 19)}
    made |= {f"revision-15-{kind}": partial(other_base, kind, 15) for kind in BASES}
    return made | {f"revision-19-{kind}": partial(other_base, kind, 19) for kind in ("fresh", "shifted")}
