"""The meter by name, its file, and its judgment."""

import json

import pytest

from igrpo_kit.analysis.compare import accuracy
from igrpo_kit.analysis.evaluation import fingerprint
from igrpo_kit.analysis.meter import predict
from igrpo_kit.analysis.meter.prediction import BOTH_STAGES, DRAFTS_FIRST, GRPO, WARM_UP
from igrpo_kit.cli import main
from igrpo_kit.core.data import data_path
from igrpo_kit.experiments.meter import (
    CLAIMS,
    COMMAND,
    FILE,
    JUDGED,
    PROBLEMS_MEASURED,
    committed_measurements,
    judge,
    measurement_from_row,
    measurement_row,
    measurement_text,
    problems_for_meter,
)
from igrpo_kit.experiments.presets import committed, load_experiment
from igrpo_kit.policies.load import load_policy
from igrpo_kit.tasks.problem import Problem
from igrpo_kit.tasks.sets.files import save_problems

REVISION = [name for name in JUDGED if name.startswith("revision-")]
SINGLE = [name for name in JUDGED if name not in REVISION]


def test_the_committed_readings_are_of_the_bases_and_batches_of_their_experiments():
    assert set(committed_measurements()) == set(JUDGED)
    for name in SINGLE:
        (measured,) = committed_measurements()[name]
        experiment = load_experiment(name)
        config = experiment.config("iGRPO 4+4", 0)
        r = measured.reading
        assert measured.policy == experiment.policy_of(0)
        assert measured.weights == fingerprint(load_policy(measured.policy, device="cpu").model)
        assert (measured.problems, r.problems) == (experiment.problems, PROBLEMS_MEASURED)
        assert (r.prompts_per_step, r.num_drafts, r.num_refinements) == (config.prompts_per_step, 4, 4)
        assert not r.exact and r.p.low < r.p.estimate < r.p.high


@pytest.mark.parametrize("name", REVISION)
def test_every_block_of_the_revision_cipher_is_read_exactly(name):
    experiment, records, _ = committed(name)
    blocks = committed_measurements()[name]
    seeds = range(min(6, len(experiment.seeds)))
    assert [m.policy for m in blocks] == [experiment.policy_of(seed) for seed in seeds]
    assert [m.problems for m in blocks] == [experiment.problems_of(seed) for seed in seeds]
    for block, measured in enumerate(blocks):
        assert measured.reading.exact
        # The start of a run on this base, on other held-out questions: the same order of magnitude.
        (start,) = [r.exact[0]["p"] for r in records if (r.method, r.seed) == ("GRPO-8", block)]
        assert 1 / 4 < measured.reading.p.estimate / start < 4


def test_a_committed_reading_agrees_with_the_recorded_evaluation():
    """p of `tiny` on the same kind of problems: the record has 512 of them, with 32 samples each."""
    (measured,) = committed_measurements()["countdown-cpu"]
    recorded = accuracy(committed("countdown-cpu")[2])
    assert measured.reading.p.low < recorded < measured.reading.p.high


@pytest.mark.parametrize("preset", SINGLE)
def test_the_meter_is_judged(preset):
    """All four say GRPO, and GRPO-8 is ahead in all four records: a constant guess would hit as well."""
    judged = judge(preset)
    assert (judged.verdict, judged.possible, judged.outcome, judged.hit) == (GRPO, (GRPO,), -1, True)


def test_the_meter_is_judged_where_a_draft_pays():
    """Only with 19 digits is iGRPO ahead at the end, and only there does the meter say so."""
    rare, rarer = judge("revision-15"), judge("revision-19")
    assert (rarer.verdict, rarer.outcome, rarer.hit) == (DRAFTS_FIRST, 1, True)
    assert (rare.verdict, rare.outcome, rare.hit) == (BOTH_STAGES, 0, True)


def test_the_meter_misses_where_transfer_does_not_last():
    """Without repair it says that nothing starts, and nothing does; with a shifted question it is wrong."""
    fresh, shifted = judge("revision-19-fresh"), judge("revision-19-shifted")
    assert (fresh.verdict, fresh.outcome, fresh.hit) == (WARM_UP, 0, True)
    assert (shifted.verdict, shifted.outcome, shifted.hit) == (DRAFTS_FIRST, 0, False)


def test_what_the_verdicts_claim():
    assert CLAIMS == {GRPO: (0, -1), DRAFTS_FIRST: (1,), BOTH_STAGES: (0, -1), WARM_UP: (0,)}


def test_a_preset_that_was_not_measured_is_named():
    with pytest.raises(LookupError, match="baselines-cpu: not in evaluations"):
        judge("baselines-cpu")


def test_a_measurement_comes_back_from_its_row():
    measured = committed_measurements()["addition-cpu"][0]
    again = measurement_from_row(json.loads(json.dumps(measurement_row(measured))))
    assert measurement_row(again) == measurement_row(measured)
    assert json.loads(data_path(FILE).read_text())["command"] == COMMAND


def test_the_table_has_a_line_for_each_quantity_and_the_verdict():
    measured = committed_measurements()["countdown-cpu"][0]
    prediction = predict(measured.reading, measured.transfer, steps=200)
    lines = measurement_text(measured, prediction).splitlines()
    assert lines[0] == "tiny on countdown: 256 problems, 8 samples per prompt; P = 32, N = 4, G = 4"
    assert [line[:20] for line in lines[2:5]] == [
        "quantity            ",
        "p, right answers on ",
        "r, own wrong drafts ",
    ]
    assert len(lines) == 3 + 14 + 3
    assert lines[-2] == f"Verdict: {prediction.verdict}"


def test_problems_by_name_or_from_a_file(tmp_path):
    held_out = problems_for_meter("cipher-8-4", 5)
    assert {p.source for p in held_out} == {"cipher-1"} and len(held_out) == 5
    path = tmp_path / "mine.jsonl"
    save_problems([Problem(str(i), f"{i}+1=", str(i + 1), "addition") for i in range(6)], path)
    assert [p.id for p in problems_for_meter(str(path), 4)] == ["0", "1", "2", "3"]
    with pytest.raises(ValueError, match=r"count: asked for 7 problems, .* has 6"):
        problems_for_meter(str(path), 7)
    with pytest.raises(ValueError, match=r"problems: one of countdown, .* or a \.jsonl file, got 'sudoku'"):
        problems_for_meter("sudoku", 4)


SMALL = ["--count", "8", "--samples", "4", "--drafts", "2", "--refinements", "2", "--prompts-per-step", "4"]


def test_the_command_prints_the_table_or_json_and_repeats_itself(capsys):
    outputs = []
    for more in ([], ["--json"], ["--json"], ["--json", "--seed", "1"]):
        assert main(["meter", "tiny", "--problems", "countdown", *SMALL, *more]) == 0
        outputs.append(capsys.readouterr().out)
    assert "tiny on countdown: 8 problems, 4 samples per prompt; P = 4, N = 2, G = 2" in outputs[0]
    assert "Verdict: " in outputs[0]
    first, second, third = map(json.loads, outputs[1:])
    assert first == second != third
    assert first["reading"]["num_drafts"] == 2
    assert first["prediction"]["possible"][0] == first["prediction"]["verdict"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tiny", "--problems", "sudoku"], "problems: one of countdown"),
        (["tiny", "--problems", "missing.jsonl"], "missing.jsonl"),
        (["tiny", "--problems", "countdown", "--samples", "7"], "samples: N + G = 8 are needed, got 7"),
        (["tiny", "--problems", "countdown", "--refinements", "1"], "num_refinements must be >= 2"),
        (["tiny", "--problems", "countdown", "--count", "700"], "count: asked for 700 countdown problems"),
        (["tiny", "--problems", "countdown", "--count", "1"], "problems: at least 2"),
        (["no/such/policy", "--problems", "countdown"], "no/such/policy"),
    ],
)
def test_errors_name_the_argument(arguments, message, capsys):
    assert main(["meter", *arguments]) == 1
    assert message in capsys.readouterr().err
