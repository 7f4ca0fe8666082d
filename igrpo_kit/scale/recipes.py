"""The paper's training runs as data: every value with the table or section it comes from.

`data/recipes.json` holds the recipes. A recipe names its `base` and states its changes. A value is a pair
[value, source]. Sources that begin with "ours" are not from the paper (https://arxiv.org/abs/2602.09000).
"Reading:" marks values where the paper contradicts itself or is silent, and one reading was chosen. A file of
your own in the same form is loaded by its path, and may name one of these recipes as its base.

A recipe does not contain `gradient_accumulation_steps`. It follows from the prompts per update, the group
size and the number of GPUs. A comparison with GRPO, or a run on another machine, therefore keeps the number
of prompts per update.
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


# section -> its keys and their types; None if the keys are defined elsewhere.
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
    """A training run: plain values by section; `sources["section.key"]` is the source of each value."""

    name: str
    title: str
    run: dict[str, Any]
    """model, problems, their maximum number, prompts per update"""
    rewards: dict[str, float]
    """weight by reward"""
    trainer: dict[str, Any]
    """fields of IGRPOConfig"""
    evaluation: dict[str, int]
    """runs per problem, by benchmark"""
    decoding: dict[str, Any]
    """sampling settings for the benchmarks"""
    server: dict[str, Any]
    """the vLLM server of a run on several nodes"""
    machines: dict[str, Any]
    """the intended GPUs, and the device for cost estimates"""
    sources: dict[str, str]

    @property
    def model(self) -> str:
        """The model to train, in the form transformers, TRL and vLLM accept: a hub id or a directory."""
        if "/" in (name := self.run["model"]):
            return name
        from igrpo_kit.policies.load import local_policies

        return str(local_policies().get(name, name))

    def to_row(self) -> dict[str, Any]:
        """Plain values by section without the sources, for the run's record and for shell scripts."""
        row = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "sources"}
        return row | {"model": self.model}

    def accumulation(self, processes: int) -> int:
        """`gradient_accumulation_steps`: prompts * G / (rows per device * training processes).

        Raises:
            ValueError: the result is not a whole number.
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
        """The trainer's configuration.

        Args:
            output_dir: folder of the run.
            processes: number of training processes.
            vllm_host: host of a vLLM server for generation, overriding the recipe; "" follows the recipe.
            changes: fields of IGRPOConfig that differ from the recipe.

        Raises:
            ValueError: IGRPOConfig has no such field, the recipe needs a vLLM server and `vllm_host` is
                missing, or as `accumulation`. The message names the recipe.
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
        """The reward functions in the order of `rewards`; for `prefill` see FormatReward."""
        made: dict[str, Reward] = {
            "accuracy": AccuracyReward(grader),
            "format": FormatReward(prefill=prefill),
        }
        if "judge" in self.rewards:
            made["judge"] = JudgeReward(self.run["judge_url"], self.run["judge_model"], options={})
        return [made[name] for name in self.rewards]

    def problems(self) -> list[Problem]:
        """The first `max_problems` training problems. Raises as `problem_set`."""
        return problem_set(self.run["problems"])[: self.run["max_problems"]]


def problem_set(name: str | Path) -> list[Problem]:
    """A set of `HUB_SETS` (from the hub or its cache), or a file in `data/problems/` or elsewhere.

    Raises:
        ConnectionError: the hub is needed and cannot be reached.
        ValueError: `name` is neither a set nor a file.
    """
    if name in HUB_SETS:
        return load_hub_set(name)
    path = next((p for p in (data_path(f"problems/{name}"), Path(name)) if p.is_file()), None)
    if path is None:
        raise ValueError(f"problems: {name!r} is no set of the hub ({', '.join(HUB_SETS)}) and no file")
    return load_problems(path)


def fits(problems: Sequence[Problem], tokenizer: Any, max_tokens: int) -> list[Problem]:
    """The problems whose question has at most `max_tokens` tokens. (TRL does not truncate prompts.)"""
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
    """The names that `load_recipe` accepts."""
    return list(_read(data_path("recipes.json")))


def _merged(name: str, recipes: Mapping[str, Any], path: Path, seen: tuple[str, ...] = ()) -> dict[str, Any]:
    """A recipe merged into its base, section by section."""
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


def load_recipe(name: str | Path) -> Recipe:
    """Load a recipe by its name in `data/recipes.json`, or from a JSON file with one recipe.

    Fields of the trainer are checked later, by `Recipe.config`.

    Raises:
        ValueError: an unknown name, section or key, a missing key, or a value without a source or of another
            type. The message names file, recipe and key.
    """
    name, path = str(name), data_path("recipes.json")
    recipes = _read(path)
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
