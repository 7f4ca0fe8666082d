from itertools import combinations

import numpy as np
import pytest

from igrpo_kit.analysis.stats.intervals import bootstrap_interval, bootstrap_means
from igrpo_kit.analysis.stats.passk import majority_at_k, majority_curve, pass_at_1_over_runs, pass_at_k_curve
from igrpo_kit.core.passk import pass_at_k


@pytest.mark.parametrize(
    ("n", "c", "k", "expected"),
    [
        (4, 1, 4, 1.0),  # certain; sampling the four with replacement would say 1 - (3/4)^4 = 0.684
        (4, 1, 1, 0.25),
        (4, 1, 2, 0.5),
        (4, 2, 2, 5 / 6),
        (10, 0, 5, 0.0),
        (10, 10, 1, 1.0),
        (5, 3, 3, 1.0),
    ],
)
def test_by_hand(n, c, k, expected):
    assert pass_at_k(n, c, k) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("n", [1, 2, 5, 7])
def test_equals_counting_every_subset(n):
    for c in range(n + 1):
        for k in range(1, n + 1):
            subsets = list(combinations([True] * c + [False] * (n - c), k))
            assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-12)


@pytest.mark.parametrize(
    ("c", "k", "expected"),
    [
        (1, 1, 1e-5),
        (1, 50_000, 0.5),  # k / n
        (37, 1, 37e-5),  # c / n
        (50_000, 2, 1 - 49_999 / 199_998),  # the second miss is drawn from one fewer
        (2, 50_000, 1 - 49_999 / 199_998),
        (2, 3, 599_988 / 9_999_900_000),  # 1 - 99,997 * 99,996 / (100,000 * 99,999)
        (99_000, 1000, 1.0),  # a miss has one chance in C(100000, 1000)
    ],
)
def test_exact_for_a_hundred_thousand_samples(c, k, expected):
    assert pass_at_k(100_000, c, k) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(("c", "k"), [(37, 1000), (5, 20_000), (900, 1100)])
def test_correct_samples_and_those_looked_at_change_places(c, k):
    """c correct ones among n and k looked at: whether they meet is the same question from either side."""
    assert pass_at_k(100_000, c, k) == pytest.approx(float(pass_at_k(100_000, k, c)), rel=1e-10)
    assert 0.3 < pass_at_k(100_000, c, k) < 1


def test_vectorized_over_problems_with_different_numbers_of_samples():
    got = pass_at_k(np.array([4, 4, 10]), np.array([1, 2, 0]), 2)
    np.testing.assert_allclose(got, [0.5, 5 / 6, 0.0])


def test_unbiased():
    """The mean over draws is 1 - (1-p)^k; the plug-in 1 - (1 - c/n)^k is not."""
    rng = np.random.default_rng(0)
    c = rng.binomial(8, 0.3, size=200_000)
    expected = 1 - 0.7**4
    assert abs(pass_at_k(8, c, 4).mean() - expected) < 0.003
    assert abs((1 - (1 - c / 8) ** 4).mean() - expected) > 0.02


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ((4, 1, 5), "k"),
        ((4, 1, 0), "k"),
        ((4, 5, 1), "num_correct"),
        ((4, -1, 1), "num_correct"),
        ((4.0, 1, 1), "num_samples"),
    ],
)
def test_bad_counts_are_named(arguments, name):
    with pytest.raises(ValueError, match=f"^{name}"):
        pass_at_k(*(np.asarray(a) if isinstance(a, float) else a for a in arguments[:2]), arguments[2])


def test_interval_holds_the_mean_and_narrows_with_problems():
    rng = np.random.default_rng(0)
    few = pass_at_k_curve(8, rng.binomial(8, 0.4, size=20), [2], rng=np.random.default_rng(1))
    many = pass_at_k_curve(8, rng.binomial(8, 0.4, size=2000), [2], rng=np.random.default_rng(1))
    assert few.low[0] < few.estimate[0] < few.high[0]
    assert many.high[0] - many.low[0] < 0.2 * (few.high[0] - few.low[0])


def test_the_curve_is_pass_at_k_for_every_k():
    c = np.array([0, 1, 3, 4])
    curve = pass_at_k_curve(4, c, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(curve.n, [1, 2, 3, 4])
    # by problem: 0; 1/4, 1/2, 3/4, 1; 3/4, 1, 1, 1; 1
    np.testing.assert_allclose(curve.estimate, [0.5, 0.625, 0.6875, 0.75])
    assert (curve.low <= curve.estimate).all()
    assert (curve.estimate <= curve.high).all()
    # m_2 - m_1 = .125 over 4 problems; no pass@6 of 4 samples
    np.testing.assert_allclose(curve.redraw_std, [(0.125 / 4) ** 0.5, (0.125 / 4) ** 0.5, np.nan, np.nan])
    np.testing.assert_allclose(curve.single_draw_std[0], (0.25 / 4) ** 0.5)
    np.testing.assert_array_equal(pass_at_k_curve(4, c, [2, 3], rng=np.random.default_rng(0)).n, [2, 3])
    with pytest.raises(ValueError, match="k: 1 <= k <= num_samples"):
        pass_at_k_curve(4, c, [5], rng=np.random.default_rng(0))


def test_the_curves_interval_is_that_of_one_k():
    c = np.random.default_rng(0).binomial(16, 0.3, size=50)
    curve = pass_at_k_curve(16, c, [4], rng=np.random.default_rng(1), resamples=20_000)
    plus_four = [*pass_at_k(16, c, 4), 0.0, 0.0, 1.0, 1.0]
    one = bootstrap_interval(plus_four, rng=np.random.default_rng(2))
    assert curve.low[0] == pytest.approx(one.low, abs=0.004)
    assert curve.high[0] == pytest.approx(one.high, abs=0.004)


def test_the_spread_of_single_draws_is_what_drawing_again_shows():
    """30 problems of known p; "did one of 4 succeed?" asked 4,000 times, of the same and of new problems."""
    rng = np.random.default_rng(0)
    p = rng.beta(0.5, 0.5, size=30)
    again = (rng.random((4000, 30, 4)) < p[:, None]).any(axis=2).mean(axis=1)
    anew = (rng.random((4000, 30, 4)) < rng.beta(0.5, 0.5, size=(4000, 30, 1))).any(axis=2).mean(axis=1)
    samples = rng.random((400, 30, 64)) < p[:, None]
    curves = [pass_at_k_curve(64, s.sum(axis=1), [4], rng=rng, resamples=1) for s in samples]
    assert np.mean([c.redraw_std[0] ** 2 for c in curves]) == pytest.approx(again.var(), rel=0.1)
    assert np.mean([c.single_draw_std[0] for c in curves]) == pytest.approx(anew.std(), rel=0.1)
    assert again.std() < 0.6 * anew.std()


def test_many_means_are_bootstrapped_as_one_is():
    values = np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    means = bootstrap_means(values, rng=np.random.default_rng(0), resamples=5000)
    assert means.shape == (5000, 2)
    np.testing.assert_allclose(means.sum(axis=1), 1)  # the columns are resampled together
    assert set(np.round(means[:, 0] * 3).astype(int)) == {0, 1, 2, 3}
    assert means[:, 0].mean() == pytest.approx(2 / 3, abs=0.02)
    with pytest.raises(ValueError, match="at least one"):
        bootstrap_means(np.empty((0, 2)), rng=np.random.default_rng(0))


def test_runs_are_averaged_as_in_section_4_1():
    correct = np.array([[True, False, True], [False, False, True]])
    average = pass_at_1_over_runs(correct, rng=np.random.default_rng(0))
    np.testing.assert_allclose(average.runs, [0.5, 0.0, 1.0])
    assert average.over_runs.estimate == average.over_problems.estimate == pytest.approx(0.5)
    # t(2, .975) * .5 / sqrt(3) = 4.302653 * .288675
    assert average.over_runs.high - 0.5 == pytest.approx(1.242069, abs=1e-5)
    assert average.over_problems.low == pytest.approx(1 / 3)


def naive_majority(answers, correct, k):
    """Every subset; a tie counts as the fraction of correct ones among the leaders."""
    results = []
    for subset in combinations(range(len(answers)), k):
        votes = {}
        for i in subset:
            if answers[i] is not None:
                votes.setdefault(answers[i], []).append(correct[i])
        most = max(map(len, votes.values()), default=0)
        leaders = [v[0] for v in votes.values() if len(v) == most]
        results.append(sum(leaders) / len(leaders) if leaders else 0.0)
    return sum(results) / len(results)


@pytest.mark.parametrize(
    "answers",
    [["7", "7", "8", "9", None], [None] * 4, ["7"] * 3, ["8", "9", "8", "7", "7", "8"], [None, "7"]],
)
def test_majority_equals_counting_every_subset(answers):
    correct = [a == "7" for a in answers]
    ks = list(range(1, len(answers) + 1))
    got = majority_at_k(answers, correct, ks, rng=np.random.default_rng(0), draws=20_000)
    expected = [naive_majority(answers, correct, k) for k in ks]
    np.testing.assert_allclose(got, expected, atol=0.01)
    np.testing.assert_allclose(got[[0, -1]], [expected[0], expected[-1]], atol=1e-12)  # exact, not sampled


def test_majority_by_hand():
    def of(answers, k):
        return majority_at_k(answers, [a == "7" for a in answers], [k], rng=np.random.default_rng(0))[0]

    assert of(["7", "7", "8"], 3) == 1
    assert of(["7", "8", "8"], 3) == 0
    assert of(["7", "8", "9"], 3) == pytest.approx(1 / 3)  # a tie, broken at random
    assert of(["7", None, None], 3) == 1  # a sample without an answer has no vote
    assert of(["7", "8", "8", "8"], 1) == 0.25


def test_more_votes_help_where_the_correct_answer_leads_and_hurt_where_it_does_not():
    leads, trails = ["7"] * 40 + [str(i) for i in range(100, 160)], ["7"] * 40 + ["8"] * 60
    correct = np.array([[a == "7" for a in answers] for answers in (leads, trails)])
    rng = np.random.default_rng(0)
    up, down = (
        majority_at_k(a, r, [1, 5, 100], rng=rng) for a, r in zip((leads, trails), correct, strict=True)
    )
    assert up[0] == down[0] == pytest.approx(0.4)
    assert up[0] < up[1] < up[2] == 1
    assert down[0] > down[1] > down[2] == 0
    curve = majority_curve([leads, trails], correct, [1, 100], rng=rng)
    np.testing.assert_allclose(curve.estimate, [0.4, 0.5])
    # plus four: six values, three of them 1; all six resampled as 0 has probability 1/64 < .025, five 7/64
    np.testing.assert_allclose([curve.low[1], curve.high[1]], [1 / 6, 5 / 6])


def test_bad_votes_are_named():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="correct: one entry per answer, 2, got 1"):
        majority_at_k(["7", "8"], [True], [1], rng=rng)
    for k in (0, 3):
        with pytest.raises(ValueError, match="ks: from 1 to 2"):
            majority_at_k(["7", "8"], [True, False], [k], rng=rng)


def test_the_band_has_a_width_where_every_problem_is_solved():
    """40 of 40 solved: the bootstrap of the 40 alone would be 1 to 1. Wilson's interval is .912 to 1."""
    for correct, inside in ((np.full(40, 4), 1.0), (np.zeros(40, dtype=int), 0.0)):
        curve = pass_at_k_curve(4, correct, [1, 4], rng=np.random.default_rng(0))
        assert (curve.estimate == inside).all()
        assert ((curve.low <= inside) & (inside <= curve.high)).all()
        assert ((curve.high - curve.low > 0.08) & (curve.high - curve.low < 0.16)).all()


@pytest.mark.parametrize("p", [0.02, 0.5, 0.98])
def test_the_band_covers_as_often_as_it_says(p):
    """300 evaluations of 60 problems; the plain percentile bootstrap covers .02 and .98 in about 70%."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(300):
        curve = pass_at_k_curve(1, rng.binomial(1, p, size=60), [1], rng=rng, resamples=400)
        hits += curve.low[0] <= p <= curve.high[0]
    assert hits / 300 >= 0.91
