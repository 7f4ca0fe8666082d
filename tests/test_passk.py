from itertools import combinations
from math import comb

import numpy as np
import pytest

from igrpo_kit.analysis.passk import pass_at_k, pass_at_k_interval


@pytest.mark.parametrize(
    ("n", "c", "k", "expected"),
    [
        (4, 1, 4, 1.0),
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


def test_one_right_of_four_at_four_is_certain_not_068():
    """Sampling the four with replacement would say 1 - (3/4)^4 = 0.684."""
    assert pass_at_k(4, 1, 4) == 1.0


@pytest.mark.parametrize("n", [1, 2, 5, 7])
def test_equals_counting_every_subset(n):
    for c in range(n + 1):
        for k in range(1, n + 1):
            subsets = list(combinations([True] * c + [False] * (n - c), k))
            assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-12)


def test_stable_for_a_hundred_thousand_samples():
    n = 100_000
    for c, k in [(1, 1), (1, 50_000), (37, 1000), (99_000, 1000), (50_000, 2)]:
        exact = 1 - comb(n - c, k) / comb(n, k) if k < 3 or c < 3 else None
        got = float(pass_at_k(n, c, k))
        assert 0 <= got <= 1
        if exact is not None:
            assert got == pytest.approx(exact, rel=1e-10)
    assert pass_at_k(n, 1, 1) == pytest.approx(1e-5, rel=1e-12)


def test_vectorised_over_problems_with_different_numbers_of_samples():
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
    few = pass_at_k_interval(8, rng.binomial(8, 0.4, size=20), 2, rng=np.random.default_rng(1))
    many = pass_at_k_interval(8, rng.binomial(8, 0.4, size=2000), 2, rng=np.random.default_rng(1))
    assert few.low < few.estimate < few.high
    assert many.high - many.low < 0.2 * (few.high - few.low)
