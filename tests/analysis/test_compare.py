import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from igrpo_kit.analysis.compare import (
    COLUMNS,
    Difference,
    Record,
    Summary,
    accuracy,
    load_record,
    load_records,
    mean_reward,
    one_run_table,
    pass_at,
    reward_at,
    summarize,
    table,
    verdicts,
)
from igrpo_kit.analysis.stats.intervals import Interval
from igrpo_kit.core.rows import SkippedLinesWarning, read_rows, write_rows

COUNTDOWN = Path(__file__).parents[2] / "data" / "runs" / "countdown-cpu"
SEED_0 = COUNTDOWN / "grpo-4" / "seed-0"


def evaluation(step, correct, *, protocol="q", temperature=1.0, final=False, draft_correct=None, samples=4):
    return {
        "step": step,
        "final": final,
        "protocol": protocol,
        "temperature": temperature,
        "num_samples": samples,
        "correct": correct,
        "reward": [c / samples for c in correct],
        "draft_correct": draft_correct,
        "entropy": 0.5,
        "length": 3.0,
    }


def record(method, seed, final, *, tokens, seconds):
    """Two steps, an evaluation after each; `final` is how many of four are correct on two problems."""
    metrics = [
        {
            "step": s,
            "tokens_trained": tokens * s,
            "tokens_live": 8 * s,
            "tokens_sampled": 10 * s,
            "seconds/cpu_total": seconds * s,
            "dead_groups": 0.25 * s,
        }
        for s in (1, 2)
    ]
    evaluations = [
        evaluation(1, [1, 1]),
        evaluation(2, final, final=True, samples=4),
        evaluation(2, [1, 0], temperature=0.0, final=True, samples=1),
        evaluation(2, [2, 2], protocol="own_draft", final=True, draft_correct=[1, 1]),
        evaluation(2, [4, 2], protocol="best_of_n", final=True, draft_correct=[4, 4]),
    ]
    return Record(method, seed, metrics, evaluations)


BASE = evaluation(0, [0, 0])


def test_an_entropy_nobody_measured_is_left_blank():
    """An engine that gives no full-vocabulary entropy writes null; that is neither 0 nor an error."""
    records = [record("grpo", seed, [2, 2], tokens=10, seconds=1.0) for seed in (0, 1)]
    for row in records[1].evaluations:
        row["entropy"] = None
    summaries = summarize(records, BASE | {"entropy": None}, baseline="grpo")
    assert "entropy" not in summaries[0].numbers
    rows = table(summaries, BASE | {"entropy": None}, ["entropy", "length"]).splitlines()
    assert rows[2:] == ["| before training |  |  |  |", "| grpo | 2 |  | 3.000 [3.000, 3.000] |"]


def test_numbers_of_one_evaluation_by_hand():
    row = evaluation(2, [1, 3])
    assert accuracy(row) == mean_reward(row) == 0.5
    # pass@2 of 1 in 4: 1/2; of 3 in 4: 1
    assert pass_at(row, 2) == pytest.approx(0.75)
    assert pass_at(row, 4) == 1.0
    assert np.isnan(pass_at(row, 5))  # no pass@5 of 4 samples


def test_rewards_are_read_off_at_a_budget():
    r = record("a", 0, [3, 3], tokens=100, seconds=1.0)
    assert reward_at(r, BASE, "tokens_trained", 50) == pytest.approx(0.125)  # half way from 0 to 1/4
    assert reward_at(r, BASE, "tokens_trained", 150) == pytest.approx(0.5)  # half way from 1/4 to 3/4
    assert reward_at(r, BASE, "seconds/cpu_total", 2.0) == pytest.approx(0.75)


@pytest.fixture
def summaries():
    runs = [record("GRPO", s, [3, 2 + s], tokens=100, seconds=2.0) for s in (0, 1)]
    runs += [record("iGRPO", s, [2, s], tokens=50, seconds=1.0) for s in (0, 1)]
    return summarize(runs, BASE, baseline="GRPO")


def test_a_summary_by_hand(summaries):
    grpo, igrpo = summaries
    # accuracies 5/8 and 6/8; 2/8 and 3/8
    assert grpo.numbers["accuracy"].estimate == pytest.approx(0.6875)
    assert igrpo.numbers["accuracy"].estimate == pytest.approx(0.3125)
    # half width t(1, .975) * s / sqrt(2) = 12.7062 * .0883883 / 1.414214 = .794137
    assert grpo.numbers["accuracy"].high == pytest.approx(0.6875 + 0.794137, abs=1e-5)
    # paired by seed the difference is -3/8 both times
    d = igrpo.differences["accuracy"].paired
    assert (d.low, d.estimate, d.high) == pytest.approx((-0.375, -0.375, -0.375))
    # Welch: both have s^2 / n = .0883883^2 / 2 = .00390625, so 2 degrees of freedom, t = 4.302653
    welch = igrpo.differences["accuracy"].welch
    assert welch.high == pytest.approx(-0.375 + 4.302653 * 0.0078125**0.5, abs=1e-6)
    # at 90% t = 2.919986: the far end of the wider interval is -.375 - 2.919986 * .0883883
    assert igrpo.differences["accuracy"].equivalent_within == pytest.approx(0.633093, abs=1e-5)
    assert igrpo.numbers["own_draft_gain"].estimate == pytest.approx(0.25)
    assert igrpo.numbers["best_of_4"].estimate == pytest.approx(0.75)
    # at iGRPO's 100 tokens, dead groups included, GRPO has made one step, to 1/4; live tokens are equal
    assert grpo.numbers["at_equal_trained_tokens"].estimate == pytest.approx(0.25)
    assert grpo.numbers["at_equal_live_tokens"].estimate == pytest.approx(0.6875)
    assert grpo.numbers["at_equal_seconds"].estimate == pytest.approx(0.25)
    assert grpo.differences == {}
    assert "copy_rate_end" not in igrpo.numbers


LABELS = {
    "reward": "reward",
    "accuracy": "accuracy",
    "greedy": "greedy",
    "pass_at_8": "pass@8",
    "pass_at_32": "pass@32",
    "at_equal_live_tokens": "at equal live tokens",
    "at_equal_trained_tokens": "at equal tokens, dead groups included",
    "at_equal_seconds": "at equal seconds",
    "own_draft": "own draft, refined",
    "own_draft_gain": "gain over own draft",
    "best_of_4": "best of 4, refined",
    "vote": "vote of 8",
    "verified_vote": "vote of 8, own verdicts",
    "verdict": "verdicts correct",
    "entropy": "entropy",
    "length": "length",
    "dead_groups_start": "dead groups, start",
    "dead_groups_end": "dead groups, end",
    "copy_rate_start": "copy rate, start",
    "copy_rate_end": "copy rate, end",
    "tokens_live": "live tokens",
    "tokens_trained": "tokens, dead groups included",
    "tokens_sampled": "sampled tokens",
    "cpu_seconds": "processor seconds",
}


def test_columns_have_plain_keys_and_labels_of_their_own():
    assert {key: column.label for key, column in COLUMNS.items()} == LABELS
    assert len(set(LABELS.values())) == len(LABELS)
    of_evaluation = {key for key, column in COLUMNS.items() if column.of_evaluation}
    assert of_evaluation == {"reward", "accuracy", "pass_at_8", "pass_at_32", "entropy"}


def test_a_table_shows_labels_and_takes_no_label_for_a_key(summaries):
    head = table(summaries, BASE, list(LABELS)).splitlines()[0]
    assert head == "| " + " | ".join(["method", "seeds", *LABELS.values()]) + " |"
    with pytest.raises(KeyError, match="pass@8"):
        table(summaries, BASE, ["pass@8"])
    (sentence,) = verdicts(summaries[1], "GRPO", ["at_equal_live_tokens"])
    assert sentence.startswith("iGRPO: at equal live tokens is ")


def test_a_column_that_a_run_does_not_have_is_left_out(summaries):
    """4 samples a problem: no pass@8; no vote was evaluated, and nothing was copied."""
    for summary in summaries:
        missing = LABELS.keys() - summary.numbers.keys()
        assert missing == {
            "pass_at_8", "pass_at_32", "vote", "verified_vote", "verdict", "copy_rate_start", "copy_rate_end"
        }  # fmt: skip
    assert summaries[1].differences.keys() == summaries[1].numbers.keys()


def between(low, high, *, welch=None, within):
    """A difference with these intervals."""
    paired, other = (Interval((x + y) / 2, x, y, 0.95) for x, y in ((low, high), welch or (low, high)))
    return Difference(paired, other, within)


NEITHER = "not distinguishable from that of GRPO, nor shown to be equivalent within 0.02"


@pytest.mark.parametrize(
    ("difference", "said"),
    [
        (between(-0.06, -0.03, within=0.06), "lower than that of GRPO"),
        (between(0.03, 0.06, within=0.06), "higher than that of GRPO"),
        (between(-0.015, -0.001, within=0.014), "lower than that of GRPO by less than 0.02"),
        (between(-0.01, 0.01, within=0.008), "equivalent to that of GRPO within 0.02"),
        (between(-0.05, 0.01, within=0.045), NEITHER),
        (between(-0.05, -0.01, welch=(-0.07, 0.01), within=0.06), NEITHER),  # lower only if paired
        (between(-0.07, 0.01, welch=(-0.05, -0.01), within=0.06), NEITHER),  # lower only by Welch
        (between(-0.02, 0.02, within=0.02), NEITHER),  # equivalence needs strictly less
    ],
)
def test_the_verdict_needs_evidence_for_equality_as_for_difference(difference, said):
    summary = Summary("iGRPO", 3, {}, {"accuracy": difference})
    (sentence,) = verdicts(summary, "GRPO", ["accuracy", "greedy"])
    assert sentence.startswith(f"iGRPO: accuracy is {said} (")


def test_a_verdict_shows_both_intervals_and_entropy_has_no_margin():
    d = between(-0.02, 0.06, welch=(-0.01, 0.05), within=0.05)
    assert verdicts(Summary("iGRPO", 5, {}, {"entropy": d, "greedy": d}), "GRPO", ["greedy", "entropy"]) == [
        f"iGRPO: greedy is {NEITHER} (+0.020 [-0.020, +0.060] paired, [-0.010, +0.050] Welch, 5 seeds).",
        "iGRPO: entropy is not distinguishable from that of GRPO "
        "(+0.020 [-0.020, +0.060] paired, [-0.010, +0.050] Welch, 5 seeds).",
    ]


def test_the_table_holds_every_method_and_difference(summaries):
    lines = table(summaries, BASE, ["accuracy", "copy_rate_end"]).splitlines()
    assert lines[0] == "| method | seeds | accuracy | copy rate, end |"
    assert lines[2].startswith("| before training |  | 0.000 |")
    assert lines[3].startswith("| GRPO | 2 | 0.688 [")
    assert lines[5] == "| difference: iGRPO |  | -0.375 [-0.375, -0.375] |  |"
    assert len({line.count("|") for line in lines}) == 1


def test_a_missing_baseline_or_evaluation_is_named():
    runs = [record("iGRPO", s, [1, 1], tokens=1, seconds=1.0) for s in (0, 1)]
    with pytest.raises(ValueError, match="GRPO-8"):
        summarize(runs, BASE, baseline="GRPO-8")
    unfinished = Record("iGRPO", 3, runs[0].metrics, runs[0].evaluations[:1])
    with pytest.raises(LookupError, match="iGRPO, seed 3"):
        unfinished.final("q")
    assert np.isnan(unfinished.at_end("copy_rate"))


@pytest.fixture
def folder(tmp_path):
    """A committed record, unpacked."""
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        write_rows(tmp_path / name, list(read_rows(SEED_0 / name)))
    return tmp_path


def damage(path, line, change):
    lines = path.read_text().splitlines(keepends=True)
    lines[line - 1] = change(lines[line - 1])
    path.write_text("".join(lines))


def without(name):
    def change(line):
        row = json.loads(line)
        del row[name]
        return json.dumps(row) + "\n"

    return change


def with_value(name, value):
    return lambda line: json.dumps(json.loads(line) | {name: value}) + "\n"


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("metrics", lambda line: line[:50] + "\n", "line 7: not a JSON row"),
        (
            "metrics",
            without("dead_groups"),
            "line 7: no 'dead_groups': of another program, or another version",
        ),
        ("metrics", lambda line: '{"loss": 1.0, "epoch": 3}\n', "line 7: no 'step', 'reward'"),
        ("metrics", with_value("entropy", "high"), "line 7: 'entropy' is not a number: 'high'"),
        ("metrics", with_value("step", 3), "line 7: step 3 after step 6: not one run in order"),
        ("metrics", with_value("step", 7.5), "line 7: step 7.5 after step 6"),
        ("evaluations", without("num_samples"), "line 7: no 'num_samples'"),
        ("evaluations", with_value("right", [1, 2]), "line 7: 2 counts in 'correct' for 512 rewards"),
        ("evaluations", with_value("num_samples", 1), "line 7: 'correct' holds no counts from 0 to 1"),
        ("evaluations", with_value("final", "yes"), "line 7: 'final' has a value of another kind: 'yes'"),
    ],
)
def test_a_damaged_record_is_named_by_file_and_line_and_the_rest_loads(folder, file, change, message):
    damage(folder / f"{file}.jsonl", 7, change)
    with pytest.raises(ValueError) as error:
        load_record(folder, "m", 0)
    assert f"{file}.jsonl, {message}" in str(error.value)
    with pytest.warns(SkippedLinesWarning, match="left out 1 of") as warned:
        record = load_record(folder, "m", 0, on_error="skip")
    assert len(warned) == 1
    assert message in str(warned[0].message)
    assert len(record.metrics) == 200 - (file == "metrics")
    assert len(record.evaluations) == 13 - (file == "evaluations")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("right"), "line 7: transitions that cannot be counted: KeyError('correct')"),
        (with_value("wrong_to_right", "half"), "line 7: transitions that cannot be counted: TypeError"),
        (with_value("right_to_wrong", 0.123), "line 7: step 7: ["),
    ],
)
def test_an_old_record_whose_transitions_make_no_sense_is_named_by_line(tmp_path, change, message):
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        write_rows(tmp_path / name, list(read_rows(COUNTDOWN / "igrpo-4-4" / "seed-0" / name)))
    damage(tmp_path / "metrics.jsonl", 7, change)
    with pytest.raises(ValueError) as error:
        load_record(tmp_path, "m", 0)
    assert f"metrics.jsonl, {message}" in str(error.value)
    with pytest.warns(SkippedLinesWarning, match="left out 1 of 200"):
        assert len(load_record(tmp_path, "m", 0, on_error="skip").metrics) == 199


def test_a_truncated_record_is_named_and_the_rest_loads(folder):
    path = folder / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 200: cut off in the middle"):
        load_record(folder, "m", 0)
    with pytest.warns(SkippedLinesWarning, match="line 200"):
        assert len(load_record(folder, "m", 0, on_error="skip").metrics) == 199


def test_a_run_that_is_not_there_is_left_out_on_request(tmp_path):
    shutil.copytree(SEED_0, tmp_path / "a")
    shutil.copytree(SEED_0.parent.parent / "base", tmp_path / "base")
    runs = {("m", 0): "a", ("m", 1): "b"}
    with pytest.raises(FileNotFoundError, match="b"):
        load_records(tmp_path, runs)
    with pytest.warns(SkippedLinesWarning, match="m, seed 1: left out"):
        records, base = load_records(tmp_path, runs, on_error="skip")
    assert [r.seed for r in records] == [0]
    assert base["num_samples"] == 32


def test_a_difference_can_be_taken_to_another_method():
    """Accuracies at the end, seeds 0 and 1: A 6/8, 6/8; B 4/8, 4/8; C 5/8, 5/8, compared with B."""
    ends = {"A": [3, 3], "B": [2, 2], "C": [3, 2]}
    runs = [record(m, s, end, tokens=100, seconds=1.0) for m, end in ends.items() for s in (0, 1)]
    a, b, c = summarize(runs, BASE, baseline="A", against={"C": "B"})
    assert (a.differences, b.against, c.against) == ({}, None, "B")
    assert b.differences["accuracy"].paired.estimate == pytest.approx(-0.25)
    assert c.differences["accuracy"].paired.estimate == pytest.approx(0.125)
    lines = table([a, b, c], BASE, ["accuracy"]).splitlines()
    assert lines[-2].startswith("| difference: B |")
    assert lines[-1].startswith("| difference: C to B |")
    with pytest.raises(ValueError, match="'D' is not among the records"):
        summarize(runs, BASE, baseline="A", against={"C": "D"})


def test_votes_are_columns_where_they_were_evaluated():
    runs = [record("A", s, [3, 3], tokens=100, seconds=1.0) for s in (0, 1)]
    assert "vote" not in summarize(runs, BASE, baseline="A")[0].numbers
    for run in runs:
        run.evaluations.append(evaluation(2, [1, 0], protocol="vote", samples=1, final=True))
    assert summarize(runs, BASE, baseline="A")[0].numbers["vote"].estimate == pytest.approx(0.5)


def test_runs_made_once_get_intervals_over_problems_only():
    """Two problems, so the bootstrap's ends are the problems themselves."""
    base = evaluation(0, [1, 0])
    lines = one_run_table([record("GRPO", 0, [3, 1], tokens=1, seconds=1.0)], base).splitlines()
    assert lines[0] == "| one run each | accuracy | change | greedy | own draft, refined |"
    assert lines[2] == "| before training | 0.125 [0.000, 0.250] |  |  |  |"
    # accuracy 3/4 and 1/4; the change 2/4 and 1/4; greedy 1 and 0; own draft 2/4 and 2/4
    expected = "| GRPO | 0.500 [0.250, 0.750] | +0.375 [+0.250, +0.500] | 0.500 [0.000, 1.000] | "
    assert lines[3] == expected + "0.500 [0.500, 0.500] |"
