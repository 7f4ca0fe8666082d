import numpy as np
import pytest

from igrpo_kit.analysis.compare import (
    Record,
    accuracy,
    mean_reward,
    pass_at,
    score_at,
    summarise,
    table,
    verdicts,
)


def evaluation(step, right, *, protocol="q", temperature=1.0, final=False, draft_right=None, samples=4):
    return {
        "step": step,
        "final": final,
        "protocol": protocol,
        "temperature": temperature,
        "num_samples": samples,
        "right": right,
        "reward": [r / samples for r in right],
        "draft_right": draft_right,
        "entropy": 0.5,
        "length": 3.0,
    }


def record(method, seed, final, *, tokens, seconds):
    """Two steps, an evaluation after each; `final` is how many of four samples are right on two problems."""
    metrics = [
        {
            "step": s,
            "tokens_trained": tokens * s,
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
        evaluation(2, [2, 2], protocol="own_draft", final=True, draft_right=[1, 1]),
        evaluation(2, [4, 2], protocol="best_of_n", final=True, draft_right=[4, 4]),
    ]
    return Record(method, seed, metrics, evaluations)


BASE = evaluation(0, [0, 0])


def test_an_entropy_nobody_measured_is_left_blank(monkeypatch):
    """An engine that gives no full-vocabulary entropy writes null; that is neither 0 nor an error."""
    monkeypatch.setattr("igrpo_kit.analysis.compare.pass_at", lambda row, k: 0.0)  # 8 and 32 of 4 samples
    records = [record("grpo", seed, [2, 2], tokens=10, seconds=1.0) for seed in (0, 1)]
    for row in records[1].evaluations:
        row["entropy"] = None
    summaries = summarise(records, BASE | {"entropy": None}, baseline="grpo")
    assert "entropy" not in summaries[0].numbers
    rows = table(summaries, BASE | {"entropy": None}, ["entropy", "length"]).splitlines()
    assert rows[2:] == ["| before training |  |  |  |", "| grpo | 2 |  | 3.000 [3.000, 3.000] |"]


def test_numbers_of_one_evaluation_by_hand():
    row = evaluation(2, [1, 3])
    assert accuracy(row) == mean_reward(row) == 0.5
    # pass@2 of 1 in 4: 1/2; of 3 in 4: 1
    assert pass_at(row, 2) == pytest.approx(0.75)


def test_scores_are_read_off_at_a_budget():
    r = record("a", 0, [3, 3], tokens=100, seconds=1.0)
    assert score_at(r, BASE, "tokens_trained", 50) == pytest.approx(0.125)  # half way from 0 to 1/4
    assert score_at(r, BASE, "tokens_trained", 150) == pytest.approx(0.5)  # half way from 1/4 to 3/4
    assert score_at(r, BASE, "seconds/cpu_total", 2.0) == pytest.approx(0.75)


@pytest.fixture
def summaries(monkeypatch):
    monkeypatch.setattr("igrpo_kit.analysis.compare.pass_at", lambda row, k: 0.0)  # 8 and 32 of 4 samples
    runs = [record("GRPO", s, [3, 2 + s], tokens=100, seconds=2.0) for s in (0, 1)]
    runs += [record("iGRPO", s, [2, s], tokens=50, seconds=1.0) for s in (0, 1)]
    return summarise(runs, BASE, baseline="GRPO")


def test_a_summary_by_hand(summaries):
    grpo, igrpo = summaries
    # accuracies 5/8 and 6/8; 2/8 and 3/8
    assert grpo.numbers["accuracy"].estimate == pytest.approx(0.6875)
    assert igrpo.numbers["accuracy"].estimate == pytest.approx(0.3125)
    # half width t(1, .975) * s / sqrt(2) = 12.7062 * .0883883 / 1.414214 = .794137
    assert grpo.numbers["accuracy"].high == pytest.approx(0.6875 + 0.794137, abs=1e-5)
    # paired by seed the difference is -3/8 both times
    d = igrpo.differences["accuracy"]
    assert (d.low, d.estimate, d.high) == pytest.approx((-0.375, -0.375, -0.375))
    assert igrpo.numbers["gain over own draft"].estimate == pytest.approx(0.25)
    assert igrpo.numbers["best of 4, refined"].estimate == pytest.approx(0.75)
    # at iGRPO's 100 gradient tokens GRPO has made one step, to 1/4
    assert grpo.numbers["at equal gradient tokens"].estimate == pytest.approx(0.25)
    assert grpo.numbers["at equal seconds"].estimate == pytest.approx(0.25)
    assert grpo.differences == {}
    assert "copy rate, end" not in igrpo.numbers


def test_the_verdict_follows_the_interval(summaries):
    (sentence,) = verdicts(summaries[1], "GRPO", ["accuracy"])
    assert sentence == "iGRPO: accuracy is lower than GRPO's (-0.375 [-0.375, -0.375], 2 seeds)."
    (sentence,) = verdicts(summaries[1], "GRPO", ["greedy"])
    assert "not distinguishable" in sentence


def test_the_table_holds_every_method_and_difference(summaries):
    lines = table(summaries, BASE, ["accuracy", "copy rate, end"]).splitlines()
    assert lines[2].startswith("| before training |  | 0.000 |")
    assert lines[3].startswith("| GRPO | 2 | 0.688 [")
    assert lines[5] == "| difference: iGRPO |  | -0.375 [-0.375, -0.375] |  |"
    assert len({line.count("|") for line in lines}) == 1


def test_a_missing_baseline_or_evaluation_is_named():
    runs = [record("iGRPO", s, [1, 1], tokens=1, seconds=1.0) for s in (0, 1)]
    with pytest.raises(ValueError, match="GRPO-8"):
        summarise(runs, BASE, baseline="GRPO-8")
    unfinished = Record("iGRPO", 3, runs[0].metrics, runs[0].evaluations[:1])
    with pytest.raises(LookupError, match="iGRPO, seed 3"):
        unfinished.final("q")
    assert np.isnan(unfinished.at_end("copy_rate"))
