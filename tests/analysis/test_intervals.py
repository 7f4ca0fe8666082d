import numpy as np
import pytest
from scipy.stats import ttest_ind

from igrpo_kit.analysis.stats.intervals import (
    bootstrap_interval,
    paired_difference,
    student_interval,
    welch_interval,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    # 26 to 29 of 30: the values behind 86.67, 90, 93.33 and 96.67 in the paper's Fig. S.1
    [(26, 30, 0.7032, 0.9469), (28, 30, 0.7868, 0.9815), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0)],
)
def test_wilson_against_published_values(successes, trials, low, high):
    interval = wilson_interval(successes, trials)
    assert interval.estimate == successes / trials
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-5)


def test_student_by_hand():
    """1, 2, 3: mean 2, s = 1, t(2, .975) = 4.302653; half width 4.302653 / sqrt(3) = 2.484138."""
    interval = student_interval([1.0, 2.0, 3.0])
    assert (interval.low, interval.high) == pytest.approx((2 - 2.484138, 2 + 2.484138), abs=1e-6)


def test_bootstrap_of_a_constant_has_no_width():
    interval = bootstrap_interval([0.4] * 7, rng=np.random.default_rng(0))
    assert (interval.low, interval.estimate, interval.high) == pytest.approx((0.4, 0.4, 0.4))


def test_bootstrap_covers_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(300):
        interval = bootstrap_interval(rng.normal(1.0, 2.0, size=40), rng=rng, resamples=400)
        hits += interval.low <= 1.0 <= interval.high
    assert 0.90 <= hits / 300 <= 0.98  # 0.95 ± 4 standard errors of 0.0126


def test_same_seed_same_interval():
    values = np.random.default_rng(3).random(50)
    one, two = (bootstrap_interval(values, rng=np.random.default_rng(1)) for _ in range(2))
    assert one == two


def test_pairing_sees_a_difference_separate_intervals_hide():
    rng = np.random.default_rng(0)
    difficulty = rng.random(200)
    a = difficulty + 0.02 + 0.01 * rng.standard_normal(200)
    b = difficulty + 0.01 * rng.standard_normal(200)
    difference = paired_difference(a, b, rng=rng)
    assert difference.low > 0
    assert bootstrap_interval(a, rng=rng).low < bootstrap_interval(b, rng=rng).high


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda rng: wilson_interval(5, 4), "successes"),
        (lambda rng: wilson_interval(0, 0), "successes"),
        (lambda rng: wilson_interval(1, 2, confidence=1.0), "confidence"),
        (lambda rng: student_interval([1.0]), "values"),
        (lambda rng: welch_interval([1.0, 2.0], [1.0]), "second"),
        (lambda rng: bootstrap_interval([], rng=rng), "values"),
        (lambda rng: bootstrap_interval([0.1, float("nan")], rng=rng), r"values.*\[1\]"),
        (lambda rng: paired_difference([0.1], [0.1, 0.2], rng=rng), "second"),
    ],
)
def test_bad_input_is_named(call, name):
    with pytest.raises(ValueError, match=name):
        call(np.random.default_rng(0))


def test_welch_by_hand_and_by_scipy():
    """Means 2 and 5; variances of the means 1/3 and 13/3: (14/3)^2 / ((1/9 + 169/9) / 2) = 2.305882."""
    found = welch_interval([1.0, 2.0, 3.0], [2.0, 4.0, 9.0])
    assert found.estimate == -3.0
    oracle = ttest_ind([1, 2, 3], [2, 4, 9], equal_var=False)
    assert oracle.df == pytest.approx(2.305882, abs=1e-6)
    assert (found.low, found.high) == pytest.approx(tuple(oracle.confidence_interval(0.95)), abs=1e-12)
    constant = welch_interval([1.0, 1.0], [0.5, 0.5])
    assert (constant.low, constant.estimate, constant.high) == (0.5, 0.5, 0.5)


def test_pairing_helps_where_runs_of_a_seed_go_together_and_costs_where_they_do_not():
    together = [0.1, 0.3, 0.5], [0.0, 0.2, 0.4]
    opposed = [0.1, 0.3, 0.5], [0.4, 0.2, 0.0]
    for (first, second), narrower in ((together, True), (opposed, False)):
        paired = student_interval([a - b for a, b in zip(first, second, strict=True)])
        welch = welch_interval(first, second)
        assert (paired.high - paired.low < welch.high - welch.low) is narrower
