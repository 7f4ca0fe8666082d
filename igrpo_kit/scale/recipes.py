"""The paper's training runs as data: every value with the table or section it comes from.

`data/recipes.json` holds them; a recipe names its `base` and states what it changes. A value is the pair
[value, source]; a source that begins with "ours" is not the paper's, and "Reading:" marks where the paper
contradicts itself or is silent and one reading was chosen. A file of your own, of the same form, is loaded by
its path and may name one of these as its base.

What a recipe does not hold is `gradient_accumulation_steps`. It follows from the prompts per update, the
group size and the number of GPUs, so a comparison with GRPO, or a run on another machine, keeps the prompts
per update.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from igrpo_kit.core.data import data_path
from igrpo_kit.tasks.grading.grader import Grader
from igrpo_kit.tasks.judge import JudgeReward
from igrpo_kit.tasks.problem import Problem
from igrpo_kit.tasks.rewards import AccuracyReward, FormatReward, Reward
from igrpo_kit.tasks.sets.files import load_problems
from igrpo_kit.tasks.sets.hub import HUB_SETS, load_hub_set

if TYPE_CHECKING:
    from igrpo_kit.scale.trainer import IGRPOConfig

RECIPES = data_path("recipes.json")

# section: its keys, and the type of each; None where other rooms hold the names.
_SECTIONS: dict[str, dict[str, type] | None] = {
    "run": {
        "model": str,
        "problems": str,
        "max_problems": int,
        "max_question_tokens": int,
        "prompts_per_update": int,
        "judge_url": str,
        "judge_model": str,
    },
    "rewards": {"accuracy": float, "format": float, "judge": float},
    "trainer": None,
    "evaluation": None,
    "decoding": {"temperature": float, "top_p": float, "max_new_tokens": int},
    "server": {
        "tensor_parallel_size": int,
        "data_parallel_size": int,
        "gpu_memory_utilization": float,
        "max_model_len": int,
    },
    "machines": {"training_gpus": int, "server_gpus": int, "shape": str, "device": str},
}
_ONLY_JUDGED = {"judge", "judge_url", "judge_model"}


@dataclass(frozen=True)
class Recipe:
    """A training run: plain values by section, and `sources["section.key"]` says where each comes from."""

    name: str
    title: str
    run: dict[str, Any]
    """model, problems, how many of them at most, prompts per update"""
    rewards: dict[str, float]
    """weight by reward"""
    trainer: dict[str, Any]
    """fields of IGRPOConfig"""
    evaluation: dict[str, int]
    """runs per problem, by benchmark"""
    decoding: dict[str, Any]
    """how the benchmarks are answered"""
    server: dict[str, Any]
    """the vLLM server of a run on several nodes"""
    machines: dict[str, Any]
    """what the run was made for, and what its cost is estimated with"""
    sources: dict[str, str]

    @property
    def model(self) -> str:
        """What is trained, as transformers, TRL and vLLM take it: a hub id, or a directory."""
        if "/" in (name := self.run["model"]):
            return name
        from igrpo_kit.policies.load import local_policies

        return str(local_policies().get(name, name))

    def to_row(self) -> dict[str, Any]:
        """Plain values by section, without the sources: for a run's record, and for the shell."""
        row = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "sources"}
        return row | {"model": self.model}

    def accumulation(self, processes: int) -> int:
        """`gradient_accumulation_steps`: prompts * G / (rows per device * training processes).

        Raises ValueError where that is no whole number.
        """
        rows = self.run["prompts_per_update"] * self.trainer["num_generations"]
        at_once = self.trainer["per_device_train_batch_size"]
        if processes < 1 or rows % (at_once * processes):
            raise ValueError(
                f"recipe {self.name}: {rows} completions per update do not divide over {processes} processes "
                f"of {at_once} (per_device_train_batch_size): change either"
            )
        return rows // (at_once * processes)

    def config(
        self, output_dir: str | Path, *, processes: int = 1, vllm_host: str = "", **changes: Any
    ) -> "IGRPOConfig":
        """The trainer's configuration on so many processes; `changes` are fields of IGRPOConfig.

        With a `vllm_host` the vLLM server there generates, whatever the recipe says. Raises ValueError naming
        the recipe: a field IGRPOConfig does not have, a recipe that needs a server and is given none, and as
        `accumulation`.
        """
        from igrpo_kit.scale.trainer import IGRPOConfig

        arguments = {"gradient_accumulation_steps": self.accumulation(processes), **self.trainer, **changes}
        if vllm_host:
            arguments |= {"use_vllm": True, "vllm_mode": "server", "vllm_server_host": vllm_host}
        elif arguments["use_vllm"] and arguments["vllm_mode"] == "server":
            raise ValueError(
                f"recipe {self.name}: completions come from a vLLM server, say where it runs: vllm_host"
            )
        unknown = sorted(set(arguments) - {field.name for field in fields(IGRPOConfig)})
        if unknown:
            raise ValueError(f"recipe {self.name}: IGRPOConfig has no field {', '.join(unknown)}")
        return IGRPOConfig(
            output_dir=str(output_dir), reward_weights=list(self.rewards.values()), **arguments
        )

    def reward_functions(self, *, grader: Grader | None = None, prefill: str = "") -> list[Reward]:
        """The rewards in the order of `rewards`; `prefill` as in FormatReward."""
        made: dict[str, Reward] = {
            "accuracy": AccuracyReward(grader),
            "format": FormatReward(prefill=prefill),
        }
        if "judge" in self.rewards:
            made["judge"] = JudgeReward(self.run["judge_url"], self.run["judge_model"], options={})
        return [made[name] for name in self.rewards]

    def problems(self) -> list[Problem]:
        """What is trained on, the first `max_problems` of it. Raises as `problem_set`."""
        return problem_set(self.run["problems"])[: self.run["max_problems"]]


def problem_set(name: str) -> list[Problem]:
    """A set of `HUB_SETS` (from the hub or its cache), or a file of `data/problems/` or elsewhere.

    Raises ConnectionError where the hub is needed and out of reach, ValueError for what is neither.
    """
    if name in HUB_SETS:
        return load_hub_set(name)
    path = next((p for p in (data_path(f"problems/{name}"), Path(name)) if p.is_file()), None)
    if path is None:
        raise ValueError(f"problems: {name!r} is no set of the hub ({', '.join(HUB_SETS)}) and no file")
    return load_problems(path)


def fits(problems: Sequence[Problem], tokenizer: Any, max_tokens: int) -> list[Problem]:
    """The problems whose question has at most `max_tokens` tokens: TRL cuts no prompt, and neither do we."""
    lengths = [
        len(ids) for ids in tokenizer([p.question for p in problems], add_special_tokens=False).input_ids
    ]
    return [problem for problem, length in zip(problems, lengths, strict=True) if length <= max_tokens]


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected an object, recipes by name or one recipe")
    return found


def recipe_names() -> list[str]:
    """The names `load_recipe` knows."""
    return list(_read(RECIPES))


def _merged(name: str, recipes: Mapping[str, Any], path: Path, seen: tuple[str, ...] = ()) -> dict[str, Any]:
    """A recipe over its base, section by section."""
    if name not in recipes:
        raise ValueError(f"{path}: no recipe {name!r}; there is {', '.join(recipes)}")
    if name in seen:
        raise ValueError(f"{path}: {' <- '.join([*seen, name])}: a recipe cannot be its own base")
    own = dict(recipes[name])
    base = _merged(own.pop("base"), recipes, path, (*seen, name)) if "base" in own else {}
    unknown = set(own) - {"title"} - set(_SECTIONS)
    if unknown:
        raise ValueError(
            f"{path}, recipe {name}: no section {unknown.pop()!r}; there is {', '.join(_SECTIONS)}"
        )
    sections = {section: {**base.get(section, {}), **own.get(section, {})} for section in _SECTIONS}
    return {"title": own.get("title", ""), **sections}


def _checked(where: str, key: str, pair: Any, kind: type | None) -> tuple[Any, str]:
    if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[1], str) and pair[1].strip()):
        raise ValueError(f"{where}: expected [value, source], got {pair!r}")
    value = float(pair[0]) if kind is float and type(pair[0]) is int else pair[0]
    if kind is not None and type(value) is not kind:
        raise ValueError(f"{where}: expected {kind.__name__}, got {value!r}")
    return value, pair[1]


def load_recipe(name: str) -> Recipe:
    """A recipe by its name in `data/recipes.json`, or the one recipe of a JSON file.

    Raises ValueError naming file, recipe and key: an unknown name, section or key, a value without its source
    or of another type, a missing one. Fields of the trainer are checked by `Recipe.config`.
    """
    path, recipes = RECIPES, _read(RECIPES)
    if name.endswith(".json"):
        path = Path(name)
        recipes, name = {**recipes, path.stem: _read(path)}, path.stem
    merged = _merged(name, recipes, path)
    values: dict[str, dict[str, Any]] = {}
    sources: dict[str, str] = {}
    for section, known in _SECTIONS.items():
        values[section] = {}
        for key, pair in merged[section].items():
            where = f"{path}, recipe {name}, {section}.{key}"
            if known is not None and key not in known:
                raise ValueError(f"{where}: no such key; there is {', '.join(known)}")
            kind = int if section == "evaluation" else None if known is None else known[key]
            values[section][key], sources[f"{section}.{key}"] = _checked(where, key, pair, kind)
        optional = set() if "judge" in merged["rewards"] else _ONLY_JUDGED
        missing = set(known or {}) - set(values[section]) - optional
        if missing:
            raise ValueError(f"{path}, recipe {name}: {section}.{missing.pop()} is missing")
    return Recipe(name=name, title=merged["title"], **values, sources=sources)
