"""The committed evidence: complete, small, matched, and still that of its presets."""

import hashlib
import json
import re
import statistics
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest

from benchmarks._record import LIMITS
from igrpo_kit.analysis.compare import COLUMNS
from igrpo_kit.analysis.evaluation import fingerprint, read_evaluation
from igrpo_kit.analysis.stats.passk import majority_curve, pass_at_k_curve
from igrpo_kit.core.rows import read_rows
from igrpo_kit.experiments.ablations import best_learning_rates
from igrpo_kit.experiments.experiment import record_folders
from igrpo_kit.experiments.presets import committed, load_experiment
from igrpo_kit.experiments.regimes.revision import CHOSEN, best_rate
from igrpo_kit.experiments.runner import is_complete
from igrpo_kit.policies.load import load_policy
from igrpo_kit.tasks.rewards import AccuracyReward
from igrpo_kit.training.records import RunLog, read_config, read_run

ROOT = Path(__file__).parents[2]
RECORDS = ROOT / "data" / "runs"
COMMITTED = ["countdown-cpu", "addition-cpu", "graded-cpu"]
ALL = sorted(folder.name for folder in RECORDS.iterdir())


def test_the_committed_experiments():
    assert ALL == [
        "ablation-beta", "ablation-completions", "ablation-lr-addition", "ablation-lr-countdown",
        "ablation-objective", "ablation-step-size", "addition-cpu", "baselines-cpu", "best-lr-addition",
        "best-lr-countdown", "countdown-cpu", "graded-cpu", "natural-results-first-4x3",
        "natural-results-first-4x3-low",
        "revision-12", "revision-12-lr", "revision-15", "revision-15-after", "revision-15-fresh",
        "revision-15-lr", "revision-15-shared", "revision-15-shifted",
        "revision-19", "revision-19-controls", "revision-19-fresh", "revision-19-lr", "revision-19-prefix",
        "revision-19-rates", "revision-19-shifted",
        "revision-8", "revision-8-lr", "smollm2-cpu", "template-after-cpu",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ALL)
def test_every_committed_run_is_still_complete_for_its_preset(name):
    """Settings that are newer than the run count as their defaults, and renamed ones are found."""
    experiment = load_experiment(name)
    for method, seed in record_folders(experiment):
        assert is_complete(experiment, method, seed, RECORDS / name), (method, seed)


@pytest.mark.parametrize("name", ALL)
def test_no_run_is_committed_that_its_preset_does_not_ask_for(name):
    runs = {path.parent.relative_to(RECORDS / name).as_posix() for path in (RECORDS / name).rglob("*.json")}
    assert runs == {"base", *record_folders(load_experiment(name)).values()}


@pytest.mark.parametrize("task", ["countdown", "addition"])
def test_learning_rates_are_chosen_on_seeds_that_are_reported_nowhere(task):
    """The rates of the results are those the tuning runs chose, and no result has a tuning seed."""
    tuning, records, _ = committed(f"ablation-lr-{task}")
    results = load_experiment(f"best-lr-{task}")
    chosen = {method: settings["learning_rate"] for method, settings in results.methods.items()}
    assert best_learning_rates(tuning, records) == chosen
    assert min(tuning.seeds) >= 100
    for name in ALL:
        if not (name.startswith("ablation-lr-") or name.endswith("-lr")):
            assert not set(load_experiment(name).seeds) & set(tuning.seeds), name


@pytest.mark.parametrize("name", [n for n in ALL if n != "smollm2-cpu" and n != "ablation-beta"])
def test_live_tokens_are_counted_in_every_record(name):
    """At most all tokens of the trained groups; equal to them only if no group of the run was dead."""
    for record in committed(name)[1]:
        counts = [(row["tokens_live"], row["tokens_trained"]) for row in record.metrics]
        assert all(0 <= live <= trained for live, trained in counts)
        assert [live for live, _ in counts] == sorted(live for live, _ in counts)
        dead = any(row["dead_groups"] for row in record.metrics)
        assert (counts[-1][0] < counts[-1][1]) is dead


@pytest.mark.parametrize("name", COMMITTED)
def test_every_run_is_there_whole_and_as_its_preset_says(name):
    experiment, records, _ = committed(name)
    assert len(experiment.seeds) >= 3
    for record in records:
        assert [row["step"] for row in record.metrics] == list(range(1, experiment.steps + 1))
        folder = RECORDS / name / record_folders(experiment)[record.method, record.seed]
        config = read_config(folder)
        expected = experiment.config(record.method, record.seed).to_row()
        assert {key: config[key] for key in expected} == expected
        assert config["versions"]["torch"]
        assert len(record.final("q")["correct"]) == experiment.held_out_problems


def test_the_p_keep_of_lesson_05_is_the_recorded_one():
    """Its default is Countdown's share of correct drafts that a refinement keeps, over all runs of iGRPO."""
    kept = regressed = 0
    for path in sorted((RECORDS / "countdown-cpu" / "igrpo-4-4").glob("seed-*")):
        for row in read_run(path)[1]:
            kept += row.get("transitions/kept") or 0
            regressed += row.get("transitions/regressed") or 0
    cells = json.loads(
        (ROOT / "notebooks" / "solutions" / "05_two_stages.ipynb").read_text(encoding="utf-8")
    )["cells"]
    (parameters,) = ["".join(c["source"]) for c in cells if "parameters" in c["metadata"].get("tags", [])]
    p_keep = float(re.search(r"^p_keep: float = ([\d.]+)", parameters, re.MULTILINE)[1])
    assert kept + regressed > 10_000
    assert abs(kept / (kept + regressed) - p_keep) < 0.02


@pytest.mark.parametrize("name", COMMITTED)
def test_methods_sampled_the_same_number_of_completions(name):
    """The budget that is matched is rollouts; GRPO-4, a control, samples half."""
    _, records, _ = committed(name)
    for record in records:
        for row in record.metrics:
            sampled = sum(v for k, v in row.items() if k.startswith(("status/", "stage1/status/")))
            assert sampled == (128 if record.method == "GRPO-4" else 256)


@pytest.mark.parametrize("name", COMMITTED)
def test_what_any_honest_record_satisfies(name):
    experiment, records, base = committed(name)
    for summary in experiment.summarize(records, base):
        for column, interval in summary.numbers.items():
            assert interval.low <= interval.estimate <= interval.high, column
        assert set(summary.numbers) <= set(COLUMNS)
        assert 0 <= summary.numbers["greedy"].estimate <= 1
        assert summary.numbers["pass_at_8"].estimate <= summary.numbers["pass_at_32"].estimate
    for record in records:
        for row in record.metrics:
            assert 0 <= row["dead_groups"] <= 1
            assert row["ratio_max"] is None or abs(row["ratio_max"] - 1) < 1e-4  # one iteration
            assert row["sampler_gap"] is None or row["sampler_gap"] < 1e-5


def test_preregistrations_and_addenda_are_as_they_were_written():
    """Each is listed with its hash when it is committed; a changed word shows here."""
    folder = ROOT / "data" / "preregistrations"
    listed = dict(line.split()[::-1] for line in (folder / "SHA256SUMS").read_text().splitlines())
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.md")}
    assert found == listed


REVISION = [name for name in ALL if name.startswith("revision-")]


@pytest.mark.parametrize("name", [n for n in ALL if load_experiment(n).preregistration])
def test_every_record_names_the_preregistration_as_it_was_written(name):
    experiment = load_experiment(name)
    file = ROOT / "data" / "preregistrations" / experiment.preregistration
    expected = {"file": file.name, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    for folder in record_folders(experiment).values():
        assert read_config(RECORDS / name / folder)["preregistration"] == expected


@pytest.mark.parametrize("name", REVISION)
def test_exact_rates_are_measured_from_the_start_to_the_end(name):
    _, records, _ = committed(name)
    for record in records:
        steps = [row["step"] for row in record.exact]
        assert steps[0] == 0 and steps[-1] == len(record.metrics) and steps == sorted(set(steps))
        assert all(0 < row["p"] < 1 and row["log_prob"] < 0 for row in record.exact)
        sampled = record.final("q")
        n = sampled["num_samples"] * len(sampled["correct"])
        p, seen = record.exact[-1]["p"], sum(sampled["correct"]) / n
        # Sampled and exact p agree to within five standard errors of the samples.
        assert abs(seen - p) < 5 * max(p * (1 - p) / n, 1 / n**2) ** 0.5 + 1e-9


@pytest.mark.parametrize("length", sorted(CHOSEN))
def test_revision_rates_are_those_the_tuning_runs_chose(length):
    """By the rule of the preregistration; without a take-off, that of the next shorter length."""
    for method, rate in CHOSEN[length].items():
        lengths = [n for n in sorted(CHOSEN, reverse=True) if n <= length]
        found = [best_rate(committed(f"revision-{n}-lr")[1], method) for n in lengths]
        assert rate == next(r for r in found if r is not None)


def test_records_are_small():
    # 452 runs of about 33 kB, and the revision cipher: 15 MB
    size = {folder.name: sum(p.stat().st_size for p in folder.rglob("*")) for folder in RECORDS.iterdir()}
    assert sum(size[name] for name in REVISION) <= 15_000_000
    assert sum(size.values()) <= 31_000_000
    assert not list(RECORDS.rglob("*.safetensors"))


@pytest.mark.parametrize("name", LIMITS)
def test_committed_benchmarks(name):
    """The form of what was measured; its limits are in `benchmarks/`, as timing is no test."""
    row = json.loads((ROOT / "data" / "benchmarks" / f"{name}.json").read_text())
    assert set(row) >= {"name", "value", "interval", "coverage", "samples", "device", "versions"}
    assert row["name"] == name
    assert len(row["samples"]) >= (
        3 if name in ("grading_with_hostile_seconds", "million_rows_seconds") else 7
    )
    assert row["value"] == pytest.approx(statistics.median(row["samples"]), abs=1e-3)
    low, high = row["interval"]
    assert low <= row["value"] <= high and {low, high} <= set(row["samples"])


def test_the_stored_evaluation_is_of_the_committed_policy_and_problems():
    """Its head, its shape, and what it says of the three protocols; majority beats the mean here."""
    stored = read_evaluation(ROOT / "data" / "evaluations" / "tiny-addition.jsonl")
    problems = load_experiment("addition-cpu").held_out()[:128]
    model = load_policy("tiny-addition", device="cpu").model
    assert stored.identity["policy"] == f"tiny-addition {fingerprint(model)}"
    rewards = {}
    for protocol in ("q", "own_draft", "best_of_n"):
        assert [row["id"] for row in stored.rows[protocol]] == [p.id for p in problems]
        texts = [text for row in stored.rows[protocol] for text in row["texts"]]
        asked = [p for p in problems for _ in range(32)]
        rewards[protocol] = AccuracyReward().score(asked, texts).values
        assert rewards[protocol] == stored.rewards(protocol).flatten().tolist()
    correct, rng = stored.correct("q"), np.random.default_rng(0)
    votes = majority_curve(stored.answers("q"), correct, [1, 32], rng=rng)
    passes = pass_at_k_curve(32, correct.sum(axis=1), [1, 32], rng=rng)
    assert votes.estimate[0] == pytest.approx(passes.estimate[0]) == pytest.approx(fmean(rewards["q"]))
    assert votes.estimate[0] < votes.low[1] < votes.estimate[1] < passes.estimate[1]


REDUCED = "smollm2-cpu"


@pytest.fixture(scope="module")
def reduced():
    return committed(REDUCED)


def test_the_reduced_run_of_a_language_model_is_whole_matched_and_as_its_preset_says(reduced):
    experiment, records, base = reduced
    assert [record.method for record in records] == list(experiment.methods)
    assert experiment.steps >= 30
    assert len(base["correct"]) == experiment.held_out_problems
    for record in records:
        assert [row["step"] for row in record.metrics] == list(range(1, experiment.steps + 1))
        expected = experiment.config(record.method, record.seed).to_row()
        folder = RECORDS / REDUCED / record_folders(experiment)[record.method, record.seed]
        config = read_config(folder)
        assert {key: config[key] for key in expected} == expected
        assert (config["policy"], config["device"]) == ("smollm2-sums", "cpu")
        for row in record.metrics:
            sampled = sum(v for k, v in row.items() if k.startswith(("status/", "stage1/status/")))
            assert sampled == 4 * (4 if record.method == "GRPO-4" else 8)
            assert row["ratio_max"] is None or abs(row["ratio_max"] - 1) < 1e-4  # one iteration
            assert row["sampler_gap"] is None or row["sampler_gap"] < 1e-4
        assert len(record.final("q")["correct"]) == experiment.held_out_problems


def test_the_reduced_run_tells_time_memory_and_shows_drafts_beside_refinements(reduced):
    experiment, records, _ = reduced
    for record in records:
        for row in record.metrics:
            phases = row["seconds/sampling"] + row["seconds/scoring"] + row["seconds/update"]
            assert 0.9 * row["seconds/step"] < phases <= row["seconds/step"] + 1e-3
            assert min(row["memory/rollout_mb"], row["memory/update_mb"]) > 538  # 134.5 M weights in float32
        folder = RECORDS / REDUCED / record_folders(experiment)[record.method, record.seed]
        samples = list(read_rows(folder / RunLog.SAMPLES))
        assert {row["step"] for row in samples} == {15, 30}
        assert all(("drafts" in row) == ("stage1/reward" in record.metrics[0]) for row in samples)
