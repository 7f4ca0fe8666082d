"""Definition of an experiment as validated plain data, read from a file and written to one.

An `Experiment` fixes policy, problems, reward and budget. Its methods differ only in what is compared.
Policies, problems, rewards, objectives and variants are given by their names in the tables below, so that an
experiment can be written to a file, and a process can be started from the file.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal, get_type_hints

import msgspec
import yaml

from igrpo_kit.analysis.compare import COLUMNS, Record, Summary, summarize
from igrpo_kit.core.losses import ABCGRPO, CISPO, DAPO, GRPO, GSPO, DrGRPO, Objective
from igrpo_kit.core.prompts import PromptFormat
from igrpo_kit.core.rows import Row
from igrpo_kit.experiments.baselines import CRITIQUE_AS_IF_FROM_Q, CRITIQUE_GRPO, SELF_VERIFICATION
from igrpo_kit.experiments.drafts import CONSOLIDATED, DRAFTS_THEN_GRPO, FOREIGN_DRAFT, PARTIAL_CREDIT, PREFIX
from igrpo_kit.experiments.relatives import GDPO, MGRPO, SGPO, HalvedGRPO, LiveGroupsGRPO
from igrpo_kit.policies.policy import DRAFT_AFTER, DRAFT_BEFORE
from igrpo_kit.tasks.cipher import CIPHER_TABLES
from igrpo_kit.tasks.problem import Problem
from igrpo_kit.tasks.rewards import AccuracyReward, FormatReward, Reward, WeightedSum
from igrpo_kit.tasks.sets.generated import (
    addition_problems,
    cipher_problems,
    countdown_max_problems,
    countdown_problems,
    results_first_problems,
)
from igrpo_kit.tasks.sets.gym import sum_problems
from igrpo_kit.training.config import IGRPO_STEPS, TrainConfig, Variant
from igrpo_kit.training.sft import (
    CIPHER_BLOCKS,
    CIPHER_KINDS,
    CIPHER_LENGTHS,
    RESULTS_FIRST_BLOCKS,
    RESULTS_FIRST_SHAPES,
    cipher_policy,
    prepare_cipher,
    prepare_results_first,
    prepare_smollm2_sums,
    results_first_policy,
)

PROBLEMS: dict[str, Callable[..., list[Problem]]] = {
    "countdown": countdown_problems,
    "countdown-max": countdown_max_problems,
    "addition": addition_problems,
    "sums": sum_problems,
    **{
        f"cipher-{length}-{block}": partial(cipher_problems, length=length, table=block % CIPHER_TABLES)
        for length in CIPHER_LENGTHS
        for block in range(CIPHER_BLOCKS)
    },
    **{
        f"results-first-{sums}x{digits}": partial(results_first_problems, sums=sums, digits=digits)
        for sums, digits in RESULTS_FIRST_SHAPES
    },
}
REWARDS: dict[str, Callable[[], Reward]] = {
    "accuracy": AccuracyReward,
    "accuracy+format": lambda: WeightedSum([AccuracyReward(), FormatReward()], [1.0, 1.0]),
}
OBJECTIVES: dict[str, type[Objective]] = {
    o.__name__: o for o in (GRPO, DrGRPO, DAPO, GSPO, CISPO, ABCGRPO, HalvedGRPO, LiveGroupsGRPO)
}
PROMPT_FORMATS: dict[str, PromptFormat] = {"draft-before": DRAFT_BEFORE, "draft-after": DRAFT_AFTER}
VARIANTS: dict[str, Variant] = {
    v.name: v
    for v in (
        IGRPO_STEPS, SELF_VERIFICATION, CRITIQUE_GRPO, CRITIQUE_AS_IF_FROM_Q, GDPO, SGPO, MGRPO,
        DRAFTS_THEN_GRPO, FOREIGN_DRAFT, PARTIAL_CREDIT, PREFIX, CONSOLIDATED,
    )
}  # fmt: skip
PREPARED: dict[str, Callable[[], object]] = {
    "smollm2-sums": prepare_smollm2_sums,
    **{
        cipher_policy(length, block, kind): partial(prepare_cipher, length, block, kind)
        for kind in CIPHER_KINDS
        for length in CIPHER_LENGTHS
        for block in range(CIPHER_BLOCKS)
    },
    **{
        results_first_policy(sums, digits, block): partial(prepare_results_first, sums, digits, block)
        for sums, digits in RESULTS_FIRST_SHAPES
        for block in range(RESULTS_FIRST_BLOCKS)
    },
}
"""policies that are created if missing; called once, before any run"""

GRPO_8: dict[str, Any] = {"num_drafts": 0, "num_refinements": 8}
GRPO_4: dict[str, Any] = {"num_drafts": 0, "num_refinements": 4}
IGRPO: dict[str, Any] = {"num_drafts": 4, "num_refinements": 4}


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """An experiment: the methods to compare, and everything that is equal for all of them.

    `methods` are overrides of `TrainConfig`, with `select` as a name and `objective` as a name with settings.
    In addition, `prompt_format` replaces that of the policy, `variant` names another training step, and
    `temperature` is that of training.

    Raises:
        ValueError: an unknown name or setting, a value of another type, or an invalid setting (the message
            names the key).
    """

    name: str
    title: str
    policy: str
    problems: str
    methods: dict[str, dict[str, Any]]
    max_new_tokens: int
    reward: str = "accuracy"
    steps: int = 200
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    train_problems: int = 4000
    held_out_problems: int = 512
    evaluate_every: int = 20
    evaluation_samples: int = 8
    """samples per held-out problem during training"""
    final_samples: int = 32
    """samples per held-out problem at the end; pass@k is available for k up to this number"""
    baseline: str = "GRPO-8"
    """the method that the others are compared with"""
    against: dict[str, str] = field(default_factory=dict)
    """for some methods, another method to compare with"""
    verdicts: bool = False
    """also evaluate majority votes, plain and weighted by the policy's own verdicts"""
    metric: str = "accuracy"
    """the main column of `analysis.compare`; "reward" for graded rewards"""
    settings: dict[str, Any] = field(default_factory=dict)
    """settings of `TrainConfig` for all methods, where they differ from the defaults"""
    draft_samples: int = 8
    """samples per held-out problem at the end, for protocols with a draft"""
    record_every: int = 50
    """steps between two checkpoints, and between two records of full completions"""
    blocks: int = 1
    """a run with seed s uses block s % blocks; `policy` and `problems` may contain {block}"""
    measure_every: int = 0
    """steps between two rows of exact rates on the held-out problems (`analysis.transfer`); 0: none"""
    preregistration: str | None = None
    """a file in data/preregistrations, committed before the runs; each record stores its SHA-256"""
    device: str = "cpu"

    def __post_init__(self) -> None:
        tables: dict[str, Collection[str]] = {"reward": REWARDS, "metric": COLUMNS}
        for key, table in (tables | {"baseline": self.methods}).items():
            if getattr(self, key) not in table:
                raise ValueError(f"{key}: one of {', '.join(table)}, got {getattr(self, key)!r}")
        if self.blocks < 1:
            raise ValueError(f"blocks must be >= 1, got {self.blocks}")
        for name in map(self.problems_of, range(self.blocks)):
            if name not in PROBLEMS:
                raise ValueError(f"problems: one of {', '.join(PROBLEMS)}, got {name!r}")
        if unknown := {*self.against, *self.against.values()} - self.methods.keys():
            raise ValueError(f"against: no method {', '.join(map(repr, sorted(unknown)))}")
        if len(set(record_folders(self).values())) < len(self.methods) * len(self.seeds):
            raise ValueError("methods, seeds: two runs would be written to one folder")
        for method in self.methods:
            try:
                self.config(method, seed=0)
            except (TypeError, ValueError) as error:
                raise ValueError(f"methods, {method!r}: {error}") from error

    def config(self, method: str, seed: int) -> TrainConfig:
        """The training settings of one run. Raises ValueError for an unknown method or an invalid setting."""
        if method not in self.methods:
            raise ValueError(f"method: one of {', '.join(self.methods)}, got {method!r}")
        chosen = {**self.settings, **self.methods[method]}
        checked = msgspec.to_builtins(msgspec.convert(chosen, _method_type()))
        elsewhere = ("variant", "prompt_format", "temperature")
        settings = {"steps": self.steps} | {k: v for k, v in checked.items() if k not in elsewhere}
        if "objective" in settings:
            settings["objective"] = _objective(settings["objective"])
        return TrainConfig(seed=seed, **settings)

    def policy_of(self, seed: int) -> str:
        """Name of the policy that a run with this seed starts from."""
        return self.policy.format(block=seed % self.blocks)

    def problems_of(self, seed: int) -> str:
        """Name of the problems of a run with this seed."""
        return self.problems.format(block=seed % self.blocks)

    def keeps_samples(self, seed: int) -> bool:
        """Whether a run records full completions; with exact rates, only that of the first seed does."""
        return self.measure_every == 0 or seed == self.seeds[0]

    def temperature(self, method: str) -> float:
        """The temperature at which a method samples and trains; evaluations are at 1."""
        return self.methods[method].get("temperature", 1.0)

    def variant(self, method: str) -> Variant:
        """The training step of a method."""
        return VARIANTS[self.methods[method].get("variant", IGRPO_STEPS.name)]

    def prompt_format(self, method: str) -> PromptFormat | None:
        """The prompt format of a method; None for that of the policy."""
        name = self.methods[method].get("prompt_format")
        return None if name is None else PROMPT_FORMATS[name]

    def held_out(self, seed: int = 0) -> list[Problem]:
        """The evaluation problems, the same for every run of a block, split off by a hash of the question."""
        sample = PROBLEMS[self.problems_of(seed)]
        return sample(self.held_out_problems, seed=1, split="held_out", distinct=True)

    def summarize(self, records: Sequence[Record], base: Row) -> list[Summary]:
        """`compare.summarize` with this experiment's baselines."""
        return summarize(records, base, baseline=self.baseline, against=self.against)

    def to_yaml(self) -> str:
        """The experiment as YAML text, which `read_experiment` reads."""
        return yaml.safe_dump(msgspec.to_builtins(asdict(self)), sort_keys=False, allow_unicode=True)


@lru_cache
def _method_type() -> Any:
    """The type of a method: every setting of `TrainConfig` as plain data, all of them optional."""
    hints = get_type_hints(TrainConfig)
    del hints["seed"]
    hints |= {"select": str, "objective": dict[str, Any], "temperature": float}
    hints |= {"variant": Literal[tuple(VARIANTS)], "prompt_format": Literal[tuple(PROMPT_FORMATS)]}
    optional = [(name, hint | msgspec.UnsetType, msgspec.UNSET) for name, hint in hints.items()]
    return msgspec.defstruct("Method", optional, forbid_unknown_fields=True)


def _objective(data: dict[str, Any]) -> Objective:
    name = data.get("name")
    if name not in OBJECTIVES:
        raise ValueError(f"objective: its name is one of {', '.join(OBJECTIVES)}, got {name!r}")
    settings = {key: value for key, value in data.items() if key != "name"}
    if unknown := settings.keys() - {f.name for f in fields(OBJECTIVES[name])}:
        raise ValueError(f"objective: {name} has no {', '.join(sorted(unknown))}")
    return msgspec.convert(settings, OBJECTIVES[name])


def read_experiment(path: str | Path) -> Experiment:
    """Read an experiment from a YAML file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the content is invalid (the message names file and key).
    """
    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        if not isinstance(data, dict):
            raise ValueError("not a mapping of keys to values")
        if unknown := sorted(set(data) - {f.name for f in fields(Experiment)}):
            raise ValueError(f"unknown keys: {', '.join(unknown)}")
        return msgspec.convert(data, Experiment)
    except (yaml.YAMLError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def run_name(method: str, seed: int) -> str:
    """Name of a run's folder inside that of its experiment, in plain letters for any name of a method."""
    plain = "".join(c if c.isalnum() else "-" for c in method.lower())
    return f"{'-'.join(filter(None, plain.split('-')))}/seed-{seed}"


def record_folders(experiment: Experiment) -> dict[tuple[str, int], str]:
    """All runs of an experiment: (method, seed) -> folder name."""
    # Seed by seed, so that variation in the machine's load affects all methods.
    return {(m, seed): run_name(m, seed) for seed in experiment.seeds for m in experiment.methods}
