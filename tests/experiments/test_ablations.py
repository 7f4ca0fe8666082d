"""Ablations: one factor each, run or loaded by one call, and the committed ones quoted as they are."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from igrpo_kit.analysis.compare import Record, load_records
from igrpo_kit.core.losses import GRPO, GSPO
from igrpo_kit.core.rows import read_rows
from igrpo_kit.experiments import runner as experiments
from igrpo_kit.experiments.ablations import _OBJECTIVES, FACTORS, ablate, ablation, best_learning_rates
from igrpo_kit.experiments.experiment import GRPO_8, Experiment, record_folders
from igrpo_kit.experiments.presets import load_experiment, preset_names
from igrpo_kit.experiments.runner import is_complete, run_one
from igrpo_kit.policies.policy import DRAFT_AFTER
from igrpo_kit.policies.samplers.hf import HFSampler
from igrpo_kit.policies.samplers.sampler import SamplingSettings
from igrpo_kit.tasks.rewards import AccuracyReward
from igrpo_kit.tasks.sets.generated import countdown_problems
from igrpo_kit.training.records import pack_run
from igrpo_kit.training.rollout import igrpo_rollout
from igrpo_kit.training.update import train_step

ROOT = Path(__file__).parents[2]
SMALL = {
    "steps": 2,
    "train_problems": 40,
    "held_out_problems": 4,
    "evaluate_every": 2,
    "evaluation_samples": 2,
}


ABLATIONS = [f"ablation-{factor}" for factor in FACTORS]


def test_every_factor_is_a_preset():
    files = {"ablation-lr-countdown", "ablation-lr-addition", "ablation-step-size"}
    assert {name for name in preset_names() if name.startswith("ablation-")} == set(ABLATIONS) | files
    for factor in FACTORS:
        assert load_experiment(f"ablation-{factor}") == ablation(factor)


@pytest.mark.parametrize("factor", FACTORS)
def test_methods_differ_from_the_baseline_in_one_factor(factor):
    """All but the objective, which is crossed with Stage 1, hence two."""
    e = ablation(factor)
    allowed = {
        "beta": {"objective"},
        "completions": {"num_drafts", "num_refinements"},
        "split": {"num_drafts", "num_refinements"},
        "select": {"select"},
        "objective": {"objective", "num_drafts", "num_refinements"},
        "template": {"prompt_format"},
        "draft-length": {"max_draft_tokens"},
    }[factor]
    base = e.methods[e.baseline]
    for method, settings in e.methods.items():
        differing = {k for k in {*base, *settings} if settings.get(k) != base.get(k)}
        assert differing <= allowed, method
        assert differing or method == e.baseline or factor == "select"
    assert len({json.dumps(s, default=repr, sort_keys=True) for s in e.methods.values()}) == len(e.methods)


@pytest.mark.parametrize("name", ABLATIONS)
def test_rollouts_are_matched_except_where_they_are_what_is_varied(name):
    methods = load_experiment(name).methods.values()
    totals = [settings["num_drafts"] + settings["num_refinements"] for settings in methods]
    assert totals == ([4, 8, 16, 32] if name == "ablation-completions" else [8] * len(totals))


def test_the_papers_values():
    """Table S.4's betas and completions; Table 2's objectives, each compared with itself without Stage 1."""
    e = ablation("beta")
    betas = [e.config(method, seed=0).objective.beta for method in e.methods]
    assert betas == [0, 0.0001, 0.001, 0.01]
    against = ablation("objective").against
    assert against["DAPO 4+4"] == "DAPO-8"
    assert against["GSPO 4+4"] == "GSPO-8"


@pytest.mark.parametrize(
    ("factor", "values", "message"),
    [
        ("temperature", None, "factor: one of beta"),
        ("completions", [8, 9], "even number"),
        ("completions", [8, 2], ">= 4"),
        ("beta", [0.1], "'beta 0' is what the others are compared with"),
        ("objective", ["PPO"], "objective: one of GRPO"),
        ("template", ["sideways"], "template: one of"),
    ],
)
def test_bad_input_is_named(factor, values, message):
    with pytest.raises(ValueError, match=message):
        ablation(factor, values)


def test_a_setting_that_cannot_be_is_said_before_anything_runs():
    with pytest.raises(ValueError, match=r"'prettiest draft': select: one of best, .*'prettiest'"):
        ablation("select", ["best", "prettiest"])


def test_with_one_epoch_gspo_is_grpo_which_is_why_the_ablation_makes_two(tiny_policy):
    sampler = HFSampler(tiny_policy, SamplingSettings(12), seed=0)
    problems = countdown_problems(8, seed=0)
    rollout = igrpo_rollout(sampler, AccuracyReward(), problems, num_drafts=0, num_refinements=4)

    def weights(objective, epochs):
        model = copy.deepcopy(tiny_policy.model)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        train_step(model, optimizer, rollout, objective, temperature=1.0, num_iterations=epochs)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    torch.testing.assert_close(weights(GRPO(), 1), weights(GSPO(), 1), rtol=1e-5, atol=1e-7)
    assert (weights(GRPO(), 2) - weights(GSPO(), 2)).abs().max() > 1e-5
    assert all(s["num_iterations"] == 2 for s in ablation("objective").methods.values())
    assert set(_OBJECTIVES) == {"GRPO", "DAPO", "GSPO", "Dr. GRPO"}


def test_a_template_reaches_prompts_and_record(tmp_path):
    e = replace(ablation("template", seeds=(0,)), **SMALL)
    run_one(e, "draft after q", 0, tmp_path)
    folder = tmp_path / record_folders(e)["draft after q", 0]
    assert (
        json.loads((folder / "config.json").read_text())["prompt_format"]["refinement"]
        == DRAFT_AFTER.refinement
    )
    assert is_complete(e, "draft after q", 0, tmp_path)
    other = replace(e, methods={"draft after q": e.methods["draft before q"]}, baseline="draft after q")
    with pytest.raises(ValueError, match="another prompt_format"):
        is_complete(other, "draft after q", 0, tmp_path)


def test_an_experiment_of_ones_own_is_run_in_processes_packed_and_loaded(tmp_path, monkeypatch):
    """Not in any list, with steps of its own: what runs is what was asked for."""
    e: Experiment = replace(ablation("beta", [0, 0.1], seeds=(0, 1)), name="mine", **SMALL)
    for method, seed in [("beta 0", 0), ("beta 0", 1), ("beta 0.1", 0)]:
        run_one(e, method, seed, tmp_path)
    experiments.run_base(e, tmp_path)
    summaries, _ = ablate(e, tmp_path, jobs=1)  # one run is missing
    folders = record_folders(e).values()
    assert all(len(list(read_rows(tmp_path / name / "metrics.jsonl"))) == 2 for name in folders)
    assert [s.method for s in summaries] == ["beta 0", "beta 0.1"]
    assert summaries[0].differences == {}
    assert "accuracy" in summaries[1].differences

    for name in ["base", *folders]:
        pack_run(tmp_path / name, tmp_path / "packed" / name)
    monkeypatch.setattr(experiments, "_start", lambda *a: pytest.fail("nothing is left to run"))
    loaded, _ = ablate(e, tmp_path / "packed")
    for column in ("accuracy", "greedy", "pass_at_8"):
        assert [s.numbers[column] for s in loaded] == [s.numbers[column] for s in summaries]


# --- the committed records

RECORDS = ROOT / "data" / "runs"
COMMITTED = ["ablation-objective", "ablation-beta", "ablation-completions", "baselines-cpu"]
TRAP = "Critique-GRPO 4+4, as if from q"


def committed(name):
    e = load_experiment(name)
    records, _ = load_records(RECORDS / name, record_folders(e))
    return e, records


@pytest.mark.parametrize("name", COMMITTED)
def test_committed_runs_are_whole_and_loaded_by_the_one_call(name, monkeypatch):
    monkeypatch.setattr(experiments, "_start", lambda *a: pytest.fail("a record is missing"))
    e, records = committed(name)
    summaries, base = ablate(e, RECORDS / name)
    assert {s.seeds for s in summaries} == {3}
    assert len(base["correct"]) == e.held_out_problems
    for record in records:
        assert [row["step"] for row in record.metrics] == list(range(1, e.steps + 1))


@pytest.mark.parametrize("name", COMMITTED)
def test_committed_runs_sampled_what_their_method_says(name):
    e, records = committed(name)
    for record in records:
        settings = e.methods[record.method]
        expected = 32 * (settings["num_drafts"] + settings["num_refinements"])
        for row in record.metrics:
            assert sum(v for k, v in row.items() if k.startswith(("status/", "stage1/status/"))) == expected


@pytest.mark.parametrize("name", COMMITTED)
def test_the_sampler_gap_finds_the_trap_and_nothing_else(name):
    """The ratio does not: one epoch, and it is 1 for the trap as well."""
    for record in committed(name)[1]:
        gaps = [row["sampler_gap"] for row in record.metrics if row["sampler_gap"] is not None]
        assert (min(gaps) > 0.01) if record.method == TRAP else (max(gaps) < 1e-5), record.method
        if record.method == TRAP:
            assert all(abs(row["ratio_max"] - 1) < 1e-4 for row in record.metrics)


def test_the_clip_acts_in_the_objectives_ablation():
    """Two epochs: the ratio leaves 1, and GSPO's clip, a thousandth of GRPO's, removes far more of it."""
    clipped = {method: [] for method in ablation("objective").methods}
    for record in committed("ablation-objective")[1]:
        clipped[record.method].append(record.at_end("clip_fraction"))
    assert min(clipped["GRPO-8"]) > 0
    assert min(clipped["GSPO-8"]) > 10 * max(clipped["GRPO-8"])


def test_the_best_learning_rate_is_chosen_by_the_mean_over_seeds_and_inside_the_range():
    def record(method, seed, correct):
        row = {"final": True, "protocol": "q", "temperature": 1.0, "num_samples": 10, "correct": [correct]}
        return Record(method, seed, [], [row])

    rates = (1e-4, 3e-4, 1e-3)
    experiment = Experiment(
        name="tune", title="", policy="tiny", problems="countdown", max_new_tokens=12,
        baseline="a, b at 0.0001",
        methods={f"a, b at {rate:g}": {**GRPO_8, "learning_rate": rate} for rate in rates},
    )  # fmt: skip
    # means .30, .55, .50, though the largest single value is at the third rate
    scores = {1e-4: (3, 3), 3e-4: (5, 6), 1e-3: (9, 1)}
    records = [record(f"a, b at {rate:g}", s, c) for rate in rates for s, c in enumerate(scores[rate])]
    assert best_learning_rates(experiment, records) == {"a, b": 3e-4}
    with pytest.raises(ValueError, match="learning_rate: the best of a, b is an end of the range"):
        best_learning_rates(
            experiment, [record(r.method, r.seed, 7) if "0.001" in r.method else r for r in records]
        )
