from pathlib import Path

import numpy as np
import pytest

from igrpo_kit.analysis.compare import Record, load_records
from igrpo_kit.analysis.dynamics import (
    Curve,
    Transitions,
    band,
    bands,
    check_best_draft,
    held_out_curve,
    thin,
    training_curve,
    transition_table,
    transitions_in_metrics,
    transitions_in_samples,
    value_at,
)
from igrpo_kit.core.rows import read_rows
from igrpo_kit.experiments.experiment import record_folders
from igrpo_kit.experiments.presets import load_experiment
from igrpo_kit.training.records import TRANSITIONS, upgraded

RECORDS = Path(__file__).parents[2] / "data" / "runs"


def evaluation(step, reward, **more):
    row = {
        "step": step, "final": False, "protocol": "q", "temperature": 1.0, "num_samples": 4,
        "correct": [0, 4], "reward": [reward, reward], "entropy": 1.0 - reward, "length": 3.0,
    }  # fmt: skip
    return row | more


def record(metrics, evaluations=(), method="m", seed=0):
    rows = [{"step": i, "tokens_sampled": 10 * i, **row} for i, row in enumerate(metrics, start=1)]
    return Record(method, seed, rows, list(evaluations))


BASE = evaluation(0, 0.2)


# ---------------------------------------------------------------- curves


def test_a_metric_against_steps_and_tokens_by_hand():
    r = record([{"entropy": 0.9}, {"entropy": None}, {"entropy": 0.5}])
    np.testing.assert_array_equal(training_curve(r, "entropy").x, [1, 2, 3])
    np.testing.assert_array_equal(training_curve(r, "entropy").y, [0.9, np.nan, 0.5])
    np.testing.assert_array_equal(training_curve(r, "entropy", "tokens_sampled").x, [10, 20, 30])


def test_smoothing_is_a_trailing_mean_that_leaves_out_what_is_missing():
    r = record([{"a": v} for v in (1.0, 3.0, None, 5.0, None, None)])
    smoothed = training_curve(r, "a", smooth=2).y
    np.testing.assert_allclose(smoothed, [1.0, 2.0, 3.0, 5.0, 5.0, np.nan])
    with pytest.raises(ValueError, match="smooth"):
        training_curve(r, "a", smooth=0)


def test_on_q_takes_the_drafts_where_there_are_any():
    drafted = record([{"entropy": 0.3, "stage1/entropy": 0.7}])
    assert training_curve(drafted, "entropy", on_q=True).y == [0.7]
    assert training_curve(drafted, "entropy").y == [0.3]
    assert training_curve(record([{"entropy": 0.3}]), "entropy", on_q=True).y == [0.3]


def test_at_equal_accuracy_a_point_counts_when_the_reward_is_new():
    """Evaluations at steps 2, 4 and 6: .4, .2, .6. Interpolated: .3, .4, .3, .2, .4, .6 from base .2."""
    evaluations = [evaluation(2, 0.4), evaluation(4, 0.2), evaluation(6, 0.6)]
    r = record([{"entropy": e} for e in (9.0, 8.0, 7.0, 6.0, 5.0, 4.0)], evaluations)
    curve = training_curve(r, "entropy", "held_out_reward", base=BASE)
    np.testing.assert_allclose(curve.x, [0.3, 0.4, 0.6])
    np.testing.assert_array_equal(curve.y, [9.0, 8.0, 4.0])
    with pytest.raises(ValueError, match="base"):
        training_curve(r, "entropy", "held_out_reward")


def test_held_out_numbers_start_at_the_untrained_policy():
    r = record([{}, {}], [evaluation(2, 0.4), evaluation(2, 0.9, protocol="own_draft")])
    for name, expected in {"reward": [0.2, 0.4], "accuracy": [0.5, 0.5], "entropy": [0.8, 0.6]}.items():
        curve = held_out_curve(r, BASE, name, "tokens_sampled")
        np.testing.assert_array_equal(curve.x, [0, 20])
        np.testing.assert_allclose(curve.y, expected)
    np.testing.assert_allclose(held_out_curve(r, BASE, "length", "held_out_reward").x, [0.2, 0.4])
    with pytest.raises(ValueError, match="name: one of"):
        held_out_curve(r, BASE, "speed")


def test_a_metric_that_is_not_there_is_named():
    r = record([{"entropy": 1.0}])
    with pytest.raises(LookupError, match="m, seed 0: no step has the metric 'copyrate'"):
        training_curve(r, "copyrate")


def test_a_band_of_two_runs_by_hand():
    a, b = (Curve(np.array([0.0, 2.0]), np.array(y)) for y in ([1.0, 3.0], [3.0, 5.0]))
    result = band([a, b])
    np.testing.assert_array_equal(result.x, [0.0, 2.0])
    np.testing.assert_array_equal(result.mean, [2.0, 4.0])
    # t(1, .975) * s / sqrt(2) = 12.7062 * 1.414214 / 1.414214
    np.testing.assert_allclose(result.high, [14.7062, 16.7062], atol=1e-4)
    single = band([a])
    assert np.isnan(single.low).all()


def test_a_band_over_different_clocks_covers_what_all_cover():
    a = Curve(np.array([0.0, 10.0]), np.array([0.0, 10.0]))
    b = Curve(np.array([2.0, 4.0, 6.0, 20.0]), np.array([1.0, np.nan, 3.0, 17.0]))
    result = band([a, b], points=3)
    np.testing.assert_allclose(result.x, [2.0, 6.0, 10.0])
    np.testing.assert_allclose(result.runs, [[2.0, 6.0, 10.0], [1.0, 3.0, 7.0]])
    with pytest.raises(ValueError, match="no x is covered by all"):
        band([a, Curve(np.array([11.0]), np.array([1.0]))])
    with pytest.raises(ValueError, match="at least one"):
        band([a, Curve(np.array([1.0]), np.array([np.nan]))])


def test_a_value_is_read_off_inside_the_curve_only():
    curve = Curve(np.array([0.0, 4.0]), np.array([1.0, 3.0]))
    assert value_at(curve, 1.0) == 1.5
    with pytest.raises(ValueError, match="outside"):
        value_at(curve, 4.1)


# ---------------------------------------------------------------- transitions


def transition_row(step, counts):
    """A metric row of schema 1 made from four counts, rounded as a packed record is."""
    kept, regressed, repaired, still = counts
    row = {
        "step": step,
        "right": float(f"{(kept + repaired) / sum(counts):.6g}"),
        "right_to_wrong": float(f"{regressed / (kept + regressed):.6g}") if kept + regressed else None,
        "wrong_to_right": float(f"{repaired / (repaired + still):.6g}") if repaired + still else None,
        "status/correct": float(kept + repaired),
        "status/incorrect": float(regressed + still),
    }
    return {k: v for k, v in row.items() if v != 0 or not k.startswith("status")}


def test_counts_come_back_exactly_from_old_shares():
    rng = np.random.default_rng(0)
    expected, rows, undetermined = [], [], 0
    for step in range(1, 400):
        of_correct = 4 * rng.integers(0, 33)
        kept, repaired = rng.integers(0, of_correct + 1), rng.integers(0, 128 - of_correct + 1)
        counts = [int(kept), int(of_correct - kept), int(repaired), int(128 - of_correct - repaired)]
        rows.append(transition_row(step, counts))
        shares = rows[-1]["right_to_wrong"], rows[-1]["wrong_to_right"]
        if None not in shares and abs(1 - sum(shares)) < 1e-3:
            undetermined += 1
        else:
            expected.append(counts)
    rows.append(transition_row(400, [2, 2, 2, 2]))  # half of either kind ends correct: any mix fits
    found = transitions_in_metrics(map(upgraded, rows))
    np.testing.assert_array_equal(found.counts, expected)
    assert (found.unit, found.left_out) == ("step", undetermined + 1)


def logged(*counts):
    return {f"transitions/{name}": n for name, n in zip(TRANSITIONS, counts, strict=True)}


def test_logged_counts_are_taken_as_they_are():
    assert TRANSITIONS == ("kept", "regressed", "repaired", "still_incorrect")
    rows = [logged(3, 1, 2, 2), logged(None, None, None, None), logged(0, 0, 0, 8)]
    found = transitions_in_metrics(rows)
    np.testing.assert_array_equal(found.counts, [[3, 1, 2, 2], [0, 0, 0, 8]])
    assert (found.unit, found.left_out) == ("step", 1)


def test_runs_without_drafts_have_no_transitions():
    rows = [
        {"step": 1, "correct": 0.5},
        upgraded({"step": 1, "right": 0.5, "right_to_wrong": None, "wrong_to_right": None}),
        {"step": 1, "correct": 0.5, "regressed": None, "repaired": None, **logged(0, 0, 0, 0)},
    ]
    found = transitions_in_metrics(rows)
    assert (found.counts.shape, found.left_out) == ((0, 4), 0)
    with pytest.raises(ValueError, match="no refinement"):
        transition_table(found, rng=np.random.default_rng(0))


def test_shares_that_fit_no_counts_are_an_error():
    row = transition_row(7, [4, 4, 2, 6]) | {"right_to_wrong": 0.47}
    with pytest.raises(ValueError, match=r"step 7: .* no whole numbers"):
        transitions_in_metrics(map(upgraded, [row]))


def completions(*rewards):
    return [{"text": "", "reward": reward, "status": ""} for reward in rewards]


def test_transitions_from_full_samples_by_hand():
    rows = [
        {"drafts": completions(0.0, 1.0), "selected": 1, "completions": completions(1.0, 1.0, 0.0, None)},
        {"drafts": completions(0.0, None), "selected": 0, "completions": completions(1.0, 0.0, 0.0, 0.0)},
        {"drafts": completions(0.0), "selected": -1, "completions": completions(1.0)},  # shown none
        {"completions": completions(1.0, 0.0)},  # GRPO
    ]
    found = transitions_in_samples(rows)
    np.testing.assert_array_equal(found.counts, [[2, 2, 0, 0], [0, 0, 1, 3]])
    graded = transitions_in_samples(rows, full_reward=2.0)
    np.testing.assert_array_equal(graded.counts, [[0, 0, 0, 4], [0, 0, 0, 4]])


def test_the_table_by_hand_and_its_intervals():
    both = Transitions(np.array([[3, 1, 0, 0]]), "step") + Transitions(np.array([[0, 0, 1, 3]]), "step", 2)
    assert both.left_out == 2
    table = transition_table(both, rng=np.random.default_rng(0))
    assert {name: (count, share.estimate) for name, (count, share) in table.items()} == {
        "kept": (3, 0.75),
        "regressed": (1, 0.25),
        "repaired": (1, 0.25),
        "still_incorrect": (3, 0.75),
    }
    with pytest.raises(ValueError, match="units: steps cannot be added to problems"):
        both + Transitions(both.counts, "problem")


def test_a_share_of_none_is_not_sure_and_a_kind_that_never_came_is_left_out():
    table = transition_table(Transitions(np.array([[4, 0, 0, 0]] * 5), "step"), rng=np.random.default_rng(0))
    assert list(table) == ["kept", "regressed"]
    # Wilson for 0 of 5 steps: z^2 / (5 + z^2) = 3.8415 / 8.8415
    assert table["regressed"][1].high == pytest.approx(0.43448, abs=1e-5)


def test_units_that_move_together_widen_the_interval():
    """100 steps all kept or all regressed, against 100 steps of both: the same counts."""
    alone = np.array([[4, 0, 0, 0], [0, 4, 0, 0]] * 50)
    mixed = np.array([[2, 2, 0, 0]] * 100)
    widths = []
    for counts in (alone, mixed):
        interval = transition_table(Transitions(counts, "step"), rng=np.random.default_rng(0))["kept"][1]
        assert interval.estimate == 0.5
        widths.append(interval.high - interval.low)
    assert widths[0] > 0.15
    assert widths[1] == 0


# ---------------------------------------------------------------- best of N


def test_held_out_prediction_by_hand():
    """p = 0 and 1: the mean says 1 - (1/2)^2 = 3/4 for N = 2, each problem's own says 1/2."""
    q = evaluation(1, 0.5, final=True, correct=[0, 4])
    refined = evaluation(1, 0.5, final=True, protocol="best_of_n", num_samples=8, draft_correct=[0, 8])
    check = check_best_draft(record([{}], [q, refined]), 2, rng=np.random.default_rng(0))
    assert (check.measured, check.from_mean_p, check.per_prompt.estimate) == (0.5, 0.75, 0.5)
    assert (check.error.estimate, check.error.low, check.error.high) == (0, 0, 0)
    assert check.mean_p_bias.estimate == 0.25
    assert check.mean_p_bias.low == 0  # both problems alike in a resample
    with pytest.raises(LookupError, match="best_of_n"):
        check_best_draft(record([{}], [q]), rng=np.random.default_rng(0))
    short = refined | {"draft_correct": [1]}
    with pytest.raises(ValueError, match="1 problems, q has 2"):
        check_best_draft(record([{}], [q, short]), rng=np.random.default_rng(0))


# ---------------------------------------------------------------- thinning


def naive_thin(x, y, buckets):
    """The points M4 must keep, bucket by bucket."""
    edges = np.linspace(x[0], x[-1], buckets + 1)
    kept = set()
    for i in range(buckets):
        inside = [j for j in range(len(x)) if edges[i] <= x[j] and (x[j] < edges[i + 1] or i == buckets - 1)]
        numbers = [j for j in inside if not np.isnan(y[j])]
        if inside:
            kept |= {inside[0], inside[-1]}
        if numbers:
            kept |= {min(numbers, key=lambda j: (y[j], j)), max(numbers, key=lambda j: (y[j], j))}
        kept |= set([j for j in inside if np.isnan(y[j])][:1])
    return sorted(kept)


@pytest.mark.parametrize("seed", range(20))
def test_thinning_keeps_what_the_loop_keeps(seed):
    rng = np.random.default_rng(seed)
    x = np.sort(rng.choice([rng.random(200) * 50, rng.integers(0, 50, 200).astype(float)]))
    y = rng.normal(size=200).round(1)  # with ties
    y[rng.random(200) < 0.1] = np.nan
    got = thin(Curve(x, y), 7)
    kept = naive_thin(x, y, 7)
    np.testing.assert_array_equal(got.x, x[kept])
    np.testing.assert_array_equal(got.y, y[kept])


def test_a_single_spike_in_a_million_survives():
    y = np.zeros(1_000_000)
    y[123_457], y[900_001] = 7.0, -3.0
    got = thin(Curve(np.arange(1_000_000.0), y), 100)
    assert len(got.x) <= 500
    assert (got.y.max(), got.x[got.y.argmax()]) == (7.0, 123_457)
    assert (got.y.min(), got.x[got.y.argmin()]) == (-3.0, 900_001)
    assert (got.x[0], got.x[-1]) == (0, 999_999)


def test_short_curves_stay_as_they_are_and_bad_ones_are_refused():
    short = Curve(np.arange(5.0), np.arange(5.0))
    assert thin(short, 1) is short
    with pytest.raises(ValueError, match="buckets"):
        thin(short, 0)
    with pytest.raises(ValueError, match="goes back"):
        thin(Curve(np.array([1.0, 0.0]), np.zeros(2)))
    gaps = thin(Curve(np.arange(100.0), np.full(100, np.nan)), 2)
    assert np.isnan(gaps.y).all()


# ---------------------------------------------------------------- the committed records


@pytest.fixture(scope="module")
def countdown():
    e = load_experiment("countdown-cpu")
    runs = {key: name for key, name in record_folders(e).items() if key[0] in ("GRPO-8", "iGRPO 4+4")}
    return load_records(RECORDS / e.name, runs)


def test_every_clock_works_on_the_committed_records(countdown):
    records, base = countdown
    for clock in (
        "step",
        "tokens_sampled",
        "tokens_trained",
        "tokens_live",
        "seconds/cpu_total",
        "held_out_reward",
    ):
        by_method = bands(
            records, lambda r, c=clock: training_curve(r, "entropy", c, base=base, on_q=True, smooth=10)
        )
        assert list(by_method) == ["GRPO-8", "iGRPO 4+4"]
        for result in by_method.values():
            assert result.runs.shape[0] == 20
            assert (np.diff(result.x) > 0).all()
            assert (result.low <= result.mean).all()
            assert 0.1 < result.mean[-1] < result.mean[0] < 0.5


def test_what_the_records_say_of_transitions_and_of_proposition_3_1(countdown):
    records, _ = countdown
    for record in records[1::2]:
        assert record.method == "iGRPO 4+4"
        found = transitions_in_metrics(record.metrics)
        assert (found.counts.sum(axis=1) == 128).all()
        assert len(found.counts) + found.left_out == 200
        assert found.left_out <= 2
    for record in records:
        check = check_best_draft(record, rng=np.random.default_rng(0))
        assert abs(check.error.estimate) < 0.02
        assert check.mean_p_bias.low > 0.15
    rows = list(read_rows(RECORDS / "countdown-cpu" / "igrpo-4-4" / "seed-0" / "samples.jsonl"))
    assert transitions_in_samples(rows).counts.sum() == 64
