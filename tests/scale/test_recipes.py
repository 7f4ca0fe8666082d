"""The paper's runs as data: values typed here from its text, and each recipe held against IGRPOConfig."""

import json
from pathlib import Path
from typing import Any

import pytest

from igrpo_kit.analysis.cost import DEVICES, SHAPES, update_bytes
from igrpo_kit.scale.recipes import Recipe, fits, load_recipe, problem_set, recipe_names
from igrpo_kit.tasks.sets.hub import HUB_SETS

NAMES = recipe_names()
# Table S.2, line by line; since transformers 5 warmup_ratio is warmup_steps below 1, and the attention kernel
# is an argument of the model.
TABLE_S2 = {
    "bf16": True,
    "model_init_kwargs": {"attn_implementation": "flash_attention_2"},
    "use_vllm": True,
    "gradient_checkpointing": True,
    "learning_rate": 1e-6,
    "lr_scheduler_type": "cosine_with_min_lr",
    "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
    "warmup_steps": 0.1,
    "num_train_epochs": 1,
    "max_completion_length": 4096,
    "num_generations": 4,
    "temperature": 0.7,
}
# What a recipe changes against the 7B run, by hand from Section 5, Tables 2, 3, S.4 and appendix C.
CHANGES: dict[str, dict[str, Any]] = {
    "r1-7b-as-printed": {"per_device_train_batch_size": 16},
    "r1-7b-grpo": {"num_drafts": 0, "num_generations": 8},
    "openmath-7b": {},
    "r1-14b": {"per_device_train_batch_size": 4},
    "openmath-14b": {"per_device_train_batch_size": 4},
    "acereason-7b": {},
    "beta-0.0001": {"beta": 0.0001},
    "beta-0.001": {"beta": 0.001},
    "beta-0.01": {"beta": 0.01},
    "completions-4": {"num_drafts": 2, "num_generations": 2},
    "completions-16": {"num_drafts": 8, "num_generations": 8},
    "completions-32": {"num_drafts": 16, "num_generations": 16},
    "dapo": {"loss_type": "dapo", "epsilon_high": 0.28},
    "dapo-base": {"loss_type": "dapo", "epsilon_high": 0.28, "num_drafts": 0, "num_generations": 8},
    "gspo": {"importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4},
    "gspo-base": {
        "importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4,
        "num_drafts": 0, "num_generations": 8,
    },
    "judge": {},
}  # fmt: skip


def test_the_7b_recipe_is_table_s2_but_for_its_batch() -> None:
    recipe = load_recipe("r1-7b")
    assert recipe.model == "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"
    assert {name: recipe.trainer[name] for name in TABLE_S2} == TABLE_S2
    assert recipe.server["gpu_memory_utilization"] == 0.85
    assert recipe.rewards == {"accuracy": 1.0, "format": 1.0}
    assert recipe.trainer["num_drafts"] == 4 and recipe.trainer["beta"] == 0.0
    assert recipe.run["max_problems"] == 7500 and recipe.run["problems"] == "math-train"
    assert recipe.machines["training_gpus"] == recipe.machines["server_gpus"] == 8
    assert recipe.decoding == {"temperature": 0.6, "top_p": 0.95, "max_new_tokens": 65000}
    assert recipe.evaluation == {
        "aime24": 64, "aime25": 64, "math500": 8, "amc23": 8, "gsm8k": 8, "minerva": 8,
    }  # fmt: skip


def test_the_recipe_as_printed_has_the_batch_of_table_s2() -> None:
    """16 per device x 8 GPUs = 128 (Appendix C), x accumulation 8 = 1,024 (Section 4.1): 256 groups of 4."""
    recipe, should = load_recipe("r1-7b-as-printed"), load_recipe("r1-7b")
    assert recipe.trainer["per_device_train_batch_size"] == 16
    assert recipe.accumulation(8) == 8
    assert recipe.run == {**should.run, "prompts_per_update": 256}
    assert {**recipe.trainer, "per_device_train_batch_size": 8} == should.trainer
    assert (recipe.rewards, recipe.machines) == (should.rewards, should.machines)


def test_the_others_change_what_the_paper_changes_and_nothing_else() -> None:
    base = load_recipe("r1-7b")
    assert set(NAMES) == {"r1-7b", *CHANGES, "one-gpu", "smoke"}
    for name, changes in CHANGES.items():
        assert load_recipe(name).trainer == {**base.trainer, **changes}, name
    models = {name: load_recipe(name).model for name in CHANGES}
    assert models.pop("openmath-7b") == "nvidia/OpenMath-Nemotron-7B"
    assert models.pop("openmath-14b") == "nvidia/OpenMath-Nemotron-14B"
    assert models.pop("r1-14b") == "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B"
    assert models.pop("acereason-7b") == "nvidia/OpenReasoning-Nemotron-7B"
    assert set(models.values()) == {base.model}
    assert load_recipe("acereason-7b").run["problems"] == "acereason-math"
    assert load_recipe("acereason-7b").run["max_problems"] == 9400
    assert load_recipe("r1-14b").machines["training_gpus"] == 32
    assert load_recipe("judge").rewards == {"accuracy": 0.0, "format": 1.0, "judge": 1.0}


def test_every_other_update_has_128_prompts_whatever_group_and_machine() -> None:
    """1,024 completions are sampled for them where N + G = 8."""
    names = [name for name in NAMES if "14b" not in name and name not in ("smoke", "r1-7b-as-printed")]
    assert {name: load_recipe(name).accumulation(8) for name in names} == {
        "r1-7b": 8, "r1-7b-grpo": 16, "openmath-7b": 8, "acereason-7b": 8, "beta-0.0001": 8, "beta-0.001": 8,
        "beta-0.01": 8, "completions-4": 4, "completions-16": 16, "completions-32": 32, "dapo": 8,
        "dapo-base": 16, "gspo": 8, "gspo-base": 16, "judge": 8, "one-gpu": 16,
    }  # fmt: skip
    assert load_recipe("r1-14b").accumulation(32) == 4
    assert load_recipe("one-gpu").accumulation(1) == 128


def estimated_gb(recipe: Recipe, question: int) -> float:
    """Of an update, with the longest draft and the longest completion of the recipe."""
    trainer = recipe.trainer
    draft = trainer["max_draft_tokens"] if trainer["num_drafts"] else 0
    size = update_bytes(
        SHAPES[recipe.machines["shape"]],
        micro_batch=trainer["per_device_train_batch_size"],
        prompt=question + draft,
        completion=trainer["max_completion_length"],
        shards=recipe.machines["training_gpus"],
    )
    return float(size) / 1e9


def test_the_papers_runs_fit_their_gpus_by_the_cost_model() -> None:
    """With the longest question and 512 tokens of template; what vLLM takes beside it counts."""
    for name in NAMES:
        recipe = load_recipe(name)
        total = DEVICES[recipe.machines["device"]].memory / 1e9
        vllm = recipe.trainer.get("vllm_gpu_memory_utilization", 0) * total
        fits_it = estimated_gb(recipe, 1024 + 512) + vllm < total
        assert fits_it == (name != "r1-7b-as-printed"), name


def test_the_memory_in_the_sources_is_the_cost_models() -> None:
    """By hand: 7.62 * (2 + 14/8) + b (250 + 2 * 4096) * 28 * 3584 * 2 / 1e9 + b * 4096 * 152064 * 4 / 1e9."""
    assert estimated_gb(load_recipe("r1-7b"), 250) == pytest.approx(62.06, abs=0.01)
    assert estimated_gb(load_recipe("r1-7b-as-printed"), 250) == pytest.approx(95.55, abs=0.01)
    source = load_recipe("r1-7b").sources["trainer.per_device_train_batch_size"]
    assert "95.5 GB" in source and "62.1 GB for 8" in source


def test_machines_on_which_the_prompts_do_not_divide_are_refused() -> None:
    with pytest.raises(
        ValueError, match="recipe r1-7b: 512 completions per update do not divide over 6 processes"
    ):
        load_recipe("r1-7b").accumulation(6)
    with pytest.raises(ValueError, match="over 0 processes"):
        load_recipe("r1-7b").accumulation(0)


def test_every_value_has_its_source_and_readings_are_marked() -> None:
    for name in NAMES:
        assert all(source.strip() for source in load_recipe(name).sources.values())
    sources = load_recipe("r1-7b").sources
    assert sources["run.prompts_per_update"].startswith("Reading:")
    assert all(x in sources["run.prompts_per_update"] for x in ("Open:", "r1-7b-as-printed", "29.3", "56.2"))
    assert "Reading:" in sources["run.max_question_tokens"]
    assert sources["trainer.num_generations"] == "Table S.2"
    assert all(
        s.startswith("ours") for k, s in load_recipe("smoke").sources.items() if k.startswith("machines.t")
    )


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_is_a_valid_configuration(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    host = "n0" if recipe.trainer["vllm_mode"] == "server" else ""
    config = recipe.config(tmp_path, vllm_host=host, use_cpu=True)
    for field, value in recipe.trainer.items():
        assert getattr(config, field) == value, field
    assert (
        config.generation_batch_size == recipe.run["prompts_per_update"] * recipe.trainer["num_generations"]
    )
    assert config.reward_weights == list(recipe.rewards.values())
    assert config.vllm_server_host == (host or "0.0.0.0")


def test_trls_own_parser_takes_every_field_as_a_flag(tmp_path: Path) -> None:
    from trl import TrlParser

    from igrpo_kit.scale.trainer import IGRPOConfig

    for name in ("r1-7b", "gspo", "one-gpu"):
        recipe = load_recipe(name)
        flags = ["--output_dir", str(tmp_path), "--use_cpu", "true"]
        for field, value in recipe.trainer.items():
            flags += [f"--{field}", json.dumps(value) if isinstance(value, dict) else str(value)]
        read = vars(TrlParser((IGRPOConfig,)).parse_args(flags))
        values = {
            f: json.loads(read[f]) if isinstance(v, dict) else read[f] for f, v in recipe.trainer.items()
        }
        assert values == recipe.trainer


def test_a_recipe_that_needs_a_server_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"recipe r1-7b: completions come from a vLLM server, .*vllm_host"):
        load_recipe("r1-7b").config(tmp_path, use_cpu=True)
    config = load_recipe("one-gpu").config(tmp_path, vllm_host="n7", use_cpu=True)
    assert (config.vllm_mode, config.vllm_server_host) == ("server", "n7")


def test_a_field_the_trainer_does_not_have_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="recipe smoke: IGRPOConfig has no field warmup_ratio"):
        load_recipe("smoke").config(tmp_path, warmup_ratio=0.1)


def test_rewards_come_in_the_order_of_their_weights() -> None:
    assert [r.__name__ for r in load_recipe("r1-7b").reward_functions()] == ["accuracy", "format"]
    judged = load_recipe("judge").reward_functions()
    assert [r.__name__ for r in judged] == ["accuracy", "format", "judge"]
    assert judged[2].url == "https://api.openai.com/v1/chat/completions" and judged[2].model == "gpt-5"


def test_every_problem_set_of_a_recipe_is_known() -> None:
    for name in NAMES:
        recipe = load_recipe(name)
        for known in (recipe.run["problems"], *(b for b, runs in recipe.evaluation.items() if runs)):
            assert known in HUB_SETS or problem_set(known), known


def test_the_smoke_recipe_needs_no_network() -> None:
    problems = load_recipe("smoke").problems()
    assert len(problems) == 64 and {p.source for p in problems} == {"countdown"}
    with pytest.raises(ValueError, match=r"'countdown' is no set of the hub .* and no file"):
        problem_set("countdown")


def test_long_questions_are_left_out_whole(tiny_policy: Any) -> None:
    problems = load_recipe("smoke").problems()
    lengths = [len(p.question) for p in problems]  # one token a character
    assert fits(problems, tiny_policy.tokenizer, 7) == [
        p for p, n in zip(problems, lengths, strict=True) if n <= 7
    ]
    assert 0 < len(fits(problems, tiny_policy.tokenizer, 7)) < 64


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"base": "r2"}, "no recipe 'r2'"),
        ({"base": "mine"}, "mine <- mine: a recipe cannot be its own base"),
        ({"base": "smoke", "trainr": {}}, "recipe mine: no section 'trainr'"),
        ({"base": "smoke", "run": {"modle": ["x", "s"]}}, r"recipe mine, run\.modle: no such key"),
        ({"base": "smoke", "run": {"model": "x"}}, r"run\.model: expected \[value, source\], got 'x'"),
        ({"base": "smoke", "run": {"model": ["x", " "]}}, r"run\.model: expected \[value, source\]"),
        ({"base": "smoke", "run": {"model": [7, "s"]}}, r"run\.model: expected str, got 7"),
        (
            {"base": "smoke", "run": {"max_problems": [True, "s"]}},
            r"run\.max_problems: expected int, got True",
        ),
        (
            {"base": "smoke", "evaluation": {"gsm8k": [0.5, "s"]}},
            r"evaluation\.gsm8k: expected int, got 0\.5",
        ),
        ({"base": "smoke", "rewards": {"judge": [1, "s"]}}, r"recipe mine: run\.judge_\w+ is missing"),
        ({"title": "no base"}, "recipe mine: run\\.\\w+ is missing"),
        ([1], "expected an object"),
    ],
)
def test_a_broken_recipe_is_refused_with_file_recipe_and_key(tmp_path: Path, own: Any, said: str) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(own))
    with pytest.raises(ValueError, match=said) as raised:
        load_recipe(str(path))
    assert "mine.json" in str(raised.value)


def test_a_recipe_of_ones_own_changes_its_base(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    own = {
        "title": "mine",
        "base": "smoke",
        "trainer": {"num_drafts": [2, "mine"]},
        "rewards": {"format": [1, "m"]},
    }
    path.write_text(json.dumps(own))
    mine, smoke = load_recipe(str(path)), load_recipe("smoke")
    assert (mine.name, mine.title) == ("mine", "mine")
    assert mine.trainer == {**smoke.trainer, "num_drafts": 2}
    assert mine.rewards["format"] == 1.0 and type(mine.rewards["format"]) is float
    assert mine.sources["trainer.num_drafts"] == "mine" and mine.run == smoke.run
