"""The file an experiment is written in: what it gives, what comes back from it, and what is refused."""

from dataclasses import replace

import pytest
import yaml

from igrpo_kit.cli import main
from igrpo_kit.core.losses import ABCGRPO, CISPO, DAPO, GRPO, GSPO, DrGRPO
from igrpo_kit.experiments.baselines import CRITIQUE_GRPO
from igrpo_kit.experiments.experiment import GRPO_8, IGRPO, Experiment, read_experiment
from igrpo_kit.experiments.presets import load_experiment, preset_names
from igrpo_kit.policies.policy import DRAFT_AFTER
from igrpo_kit.training.config import IGRPO_STEPS, TrainConfig

MINE = """\
name: mine
title: "Typed by hand: é"
policy: tiny
problems: countdown
max_new_tokens: 12
steps: 5
seeds: [3, 4]
baseline: plain
against: {shaped: plain}
settings: {learning_rate: 0.001, select: worst}
methods:
  plain: {num_drafts: 0, num_refinements: 8}
  shaped:
    num_drafts: 4
    num_refinements: 4
    select: random
    train_drafts: true
    max_draft_tokens: 6
    prompt_format: draft-after
    variant: critique-grpo
    objective: {name: GRPO, beta: 1, clip_high: 0.28}
"""


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(MINE, encoding="utf-8")
    return path


def test_a_file_gives_the_experiment_it_says(mine):
    e = read_experiment(mine)
    assert (e.title, e.steps, e.seeds, e.baseline) == ("Typed by hand: é", 5, (3, 4), "plain")
    assert (e.reward, e.metric, e.held_out_problems, e.verdicts) == ("accuracy", "accuracy", 512, False)
    assert e.config("plain", 3) == TrainConfig(
        steps=5, seed=3, num_drafts=0, num_refinements=8, select="worst", learning_rate=0.001
    )
    assert e.config("shaped", 4) == TrainConfig(
        steps=5, seed=4, num_drafts=4, num_refinements=4, select="random", learning_rate=0.001,
        train_drafts=True, max_draft_tokens=6, objective=GRPO(beta=1.0, clip_high=0.28),
    )  # fmt: skip
    assert (e.variant("plain"), e.variant("shaped")) == (IGRPO_STEPS, CRITIQUE_GRPO)
    assert (e.prompt_format("plain"), e.prompt_format("shaped")) == (None, DRAFT_AFTER)


@pytest.mark.parametrize("kind", [GRPO, DAPO, GSPO, CISPO, ABCGRPO])
def test_every_objective_goes_by_its_name(mine, kind):
    e = replace(
        read_experiment(mine), methods={"plain": {**GRPO_8, "objective": {"name": kind.__name__}}}, against={}
    )
    assert e.config("plain", 0).objective == kind()


def test_an_objective_has_its_own_settings(mine):
    method = {**GRPO_8, "objective": {"name": "DrGRPO", "max_length": 12}}
    e = replace(read_experiment(mine), methods={"plain": method}, against={})
    assert e.config("plain", 0).objective == DrGRPO(max_length=12)


@pytest.mark.parametrize("name", preset_names())
def test_what_is_written_is_read_back(name, tmp_path):
    e = load_experiment(name)
    path = tmp_path / "again.yaml"
    path.write_text(e.to_yaml(), encoding="utf-8")
    again = read_experiment(path)
    assert again == e
    assert load_experiment(path) == load_experiment(str(path)) == e
    assert [again.config(method, 7).to_row() for method in e.methods] == [
        e.config(method, 7).to_row() for method in e.methods
    ]


def test_small_numbers_and_letters_survive(mine, tmp_path):
    e = replace(read_experiment(mine), settings={"learning_rate": 1e-06}, title="naïve: 'a', \"b\"\n")
    (tmp_path / "again.yaml").write_text(e.to_yaml(), encoding="utf-8")
    assert read_experiment(tmp_path / "again.yaml") == e


WITHOUT = object()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"stepz": 3}, "unknown keys: stepz"),
        ({"policy": WITHOUT}, "missing required field `policy`"),
        ({"steps": "200"}, r"Expected `int`, got `str` - at `\$\.steps`"),
        ({"steps": 0}, "steps must be >= 1, got 0"),
        ({"seeds": 3}, r"Expected `array`, got `int` - at `\$\.seeds`"),
        ({"verdicts": "yes"}, r"Expected `bool`, got `str` - at `\$\.verdicts`"),
        ({"problems": "sudoku"}, "problems: one of countdown, .*, cipher-19-5, .*, got 'sudoku'"),
        ({"reward": "vibes"}, r"reward: one of accuracy, accuracy\+format, got 'vibes'"),
        ({"metric": "score"}, "metric: one of reward, accuracy, .*, got 'score'"),
        ({"baseline": "GRPO-9"}, "baseline: one of GRPO-8, mine, got 'GRPO-9'"),
        ({"against": {"mine": "GRPO-9"}}, "against: no method 'GRPO-9'"),
        ({"against": {"yours": "mine"}}, "against: no method 'yours'"),
        ({"seeds": [0, 0]}, "methods, seeds: two runs would be written to one folder"),
        ({"methods": [1]}, r"Expected `object`, got `array` - at `\$\.methods`"),
        ({"methods": {"GRPO-8": None}}, r"Expected `object`, got `null` - at `\$\.methods\[\.\.\.\]`"),
        ({"settings": {"prompts": 4}}, "methods, 'GRPO-8': Object contains unknown field `prompts`"),
        # YAML 1.1 wants a point in it: this is text
        ({"settings": {"learning_rate": "1e-6"}}, r"Expected `float`, got `str` - at `\$\.learning_rate`"),
    ],
)  # fmt: skip
def test_a_broken_file_is_refused_with_its_name_and_the_key(tmp_path, changes, said):
    path = tmp_path / "broken.yaml"
    row = yaml.safe_load(load_experiment("demo").to_yaml())
    row |= {"methods": {"GRPO-8": GRPO_8, "mine": IGRPO}} | changes
    path.write_text(yaml.safe_dump({key: value for key, value in row.items() if value is not WITHOUT}))
    with pytest.raises(ValueError, match=f"^{path}: .*{said}"):
        load_experiment(path)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"selct": "best"}, "Object contains unknown field `selct`"),
        ({"seed": 3}, "Object contains unknown field `seed`"),
        ({"num_drafts": 4.5}, r"Expected `int`, got `float` - at `\$\.num_drafts`"),
        ({"num_drafts": True}, r"Expected `int`, got `bool` - at `\$\.num_drafts`"),
        ({"num_drafts": -1}, "num_drafts must be >= 0, got -1"),
        ({"select": "prettiest"}, "select: one of best, random, worst, first, none .*, got 'prettiest'"),
        ({"select": 3}, r"Expected `str`, got `int` - at `\$\.select`"),
        ({"stop_at": 1, "select": "worst"}, "stop_at leaves the controls other drafts"),
        ({"variant": "ppo"}, r"Invalid enum value 'ppo' - at `\$\.variant`"),
        ({"prompt_format": "sideways"}, r"Invalid enum value 'sideways' - at `\$\.prompt_format`"),
        ({"objective": "GRPO"}, r"Expected `object`, got `str` - at `\$\.objective`"),
        ({"objective": {"name": "PPO"}}, "objective: its name is one of GRPO, .*, CISPO, .*, got 'PPO'"),
        ({"objective": {"beta": 0.1}}, "objective: its name is one of GRPO, .*, CISPO, .*, got None"),
        ({"objective": {"name": "GRPO", "betta": 0.1}}, "objective: GRPO has no betta"),
        ({"objective": {"name": "GRPO", "beta": "high"}}, r"Expected `float`, got `str` - at `\$\.beta`"),
    ],
)  # fmt: skip
def test_a_broken_method_is_refused_with_file_method_and_key(tmp_path, settings, said):
    path = tmp_path / "broken.yaml"
    row = yaml.safe_load(load_experiment("demo").to_yaml())
    row["methods"] = {"GRPO-8": GRPO_8, "mine": {**IGRPO, **settings}}
    path.write_text(yaml.safe_dump(row))
    with pytest.raises(ValueError, match=f"^{path}: methods, 'mine': {said}"):
        load_experiment(path)


def test_two_methods_whose_names_give_one_folder_are_refused():
    with pytest.raises(ValueError, match="two runs would be written to one folder"):
        replace(load_experiment("demo"), methods={"GRPO-8": GRPO_8, "GRPO 8": IGRPO})


@pytest.mark.parametrize("text", ["", "- 1", "text", "{", "a: b: c", "!!python/object:os.system {}"])
def test_what_is_no_experiment_at_all_is_refused_with_the_files_name(tmp_path, text):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"^{path}: "):
        read_experiment(path)


def test_a_missing_file_and_an_unknown_preset(tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match=r"none\.yaml"):
        load_experiment(tmp_path / "none.yaml")
    with pytest.raises(
        ValueError, match=r"no preset 'dmo'; there is ablation-lr-addition, .*, ablation-beta, .* \.yaml"
    ):
        load_experiment("dmo")
    assert main(["compare", "--preset", "dmo", "--out", str(tmp_path / "runs")]) == 1
    assert capsys.readouterr().err.startswith("igrpo compare: no preset 'dmo'; there is ")
    assert not (tmp_path / "runs").exists()


def test_the_presets():
    assert preset_names() == [
        "ablation-lr-addition", "ablation-lr-countdown", "ablation-step-size", "addition-cpu",
        "baselines-cpu", "best-lr-addition", "best-lr-countdown", "cipher-demo", "countdown-cpu", "demo",
        "graded-cpu", "smollm2-cpu", "smollm2-gpu", "template-after-cpu",
        "ablation-beta", "ablation-completions", "ablation-split", "ablation-select", "ablation-objective",
        "ablation-template", "ablation-draft-length",
        "revision-8-lr", "revision-12-lr", "revision-15-lr", "revision-19-lr",
        "revision-19", "revision-15", "revision-12", "revision-8",
        "revision-19-controls", "revision-15-controls",
        "revision-19-rates", "revision-15-shared", "revision-19-prefix",
        "revision-15-after", "revision-15-fresh", "revision-15-shifted",
        "revision-19-fresh", "revision-19-shifted", "natural-results-first-4x3",
        "natural-results-first-4x3-low",
    ]  # fmt: skip
    assert all(load_experiment(name).name == name for name in preset_names())


def test_a_preset_of_ones_own_in_igrpo_data(tmp_path, monkeypatch):
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "mine.yaml").write_text(MINE, encoding="utf-8")
    monkeypatch.setenv("IGRPO_DATA", str(tmp_path))
    assert isinstance(load_experiment("mine"), Experiment)
