import numpy as np
import pytest

from igrpo_kit.core.toy import (
    best_of_n_probability,
    dead_group_probability,
    simulate_best_of_n,
    simulate_igrpo,
)


@pytest.mark.parametrize(
    ("p", "n", "expected"),
    [
        (0.25, 4, 0.68359375),
        (0.5, 1, 0.5),
        (0.5, 2, 0.75),
        (0.1, 8, 0.56953279),
        (0.0, 4, 0.0),
        (1.0, 4, 1.0),
    ],
)
def test_best_of_n_by_hand(p, n, expected):
    assert best_of_n_probability(p, n) == pytest.approx(expected, abs=1e-15)


def test_best_of_n_keeps_its_digits_where_the_naive_formula_has_none():
    assert 1 - (1 - 1e-18) ** 4 == 0.0
    assert best_of_n_probability(1e-18, 4) == pytest.approx(4e-18, rel=1e-12)


@pytest.mark.parametrize(
    ("p", "group_size", "expected"),
    [(0.5, 4, 0.125), (0.5, 8, 0.0078125), (0.2, 4, 0.4112), (0.0, 4, 1.0), (1.0, 8, 1.0), (0.3, 1, 1.0)],
)
def test_dead_groups_by_hand(p, group_size, expected):
    assert dead_group_probability(p, group_size) == pytest.approx(expected, abs=1e-12)


def test_broadcasting():
    grid = best_of_n_probability(np.array([[0.0], [0.5], [1.0]]), np.array([1, 2]))
    np.testing.assert_allclose(grid, [[0, 0], [0.5, 0.75], [1, 1]])


@pytest.mark.parametrize("p", [0.03, 0.3, 0.9])
@pytest.mark.parametrize("n", [1, 4, 16])
def test_simulation_agrees_with_the_closed_form_within_four_standard_errors(p, n):
    trials = 200_000
    x = 1 - (1 - p) ** n
    got = simulate_best_of_n(p, n, trials, np.random.default_rng(0))
    assert abs(got - x) <= 4 * (x * (1 - x) / trials) ** 0.5


def test_ten_million_trials_and_the_chunk_border():
    got = simulate_best_of_n(0.25, 8, 10_000_000, np.random.default_rng(1))
    x = 0.8998870849609375
    assert abs(got - x) <= 4 * (x * (1 - x) / 1e7) ** 0.5
    assert simulate_best_of_n(1.0, 3, 5_000_001, np.random.default_rng(2)) == 1.0


def toy(**changes):
    settings = {
        "p_mean": 0.5,
        "p_concentration": 1e9,  # every prompt has p = 0.5
        "p_fix": None,
        "p_keep": 0.95,
        "num_drafts": 4,
        "num_refinements": 4,
        "prompts": 400_000,
        "rng": np.random.default_rng(0),
    }
    return simulate_igrpo(**settings | changes)


def test_igrpo_toy_against_the_table_computed_by_hand():
    """p = .5, N = G = 4, P(correct | correct draft) = .95: best draft .9375; mixed .9922, .875, .229."""
    result = toy()
    for got, expected in [
        (result.draft_reward, 0.5),
        (result.best_draft_reward, 0.9375),
        (result.mixed_grpo_full, 0.9921875),
        (result.mixed_grpo_small, 0.875),
        # correct draft: 1 - .95^4 - .05^4 = .18548750; incorrect draft: .875
        (result.mixed_igrpo, 0.9375 * 0.1854875 + 0.0625 * 0.875),
        (result.refinement_reward, 0.9375 * 0.95 + 0.0625 * 0.5),
    ]:
        assert abs(got - expected) <= 4 * (max(expected * (1 - expected), 1e-3) / 400_000) ** 0.5


def test_igrpo_toy_spread_lowers_the_best_draft_below_the_formula_for_the_mean():
    spread = toy(p_concentration=1.0)  # Beta(.5, .5): E[(1-p)^4] = 35/128
    assert abs(spread.best_draft_reward - (1 - 35 / 128)) <= 4 * (0.2 / 400_000) ** 0.5
    assert spread.best_draft_reward < 0.75 < 0.9375


def test_an_incorrect_draft_that_is_always_fixed():
    result = toy(p_fix=1.0, p_keep=1.0)
    assert result.refinement_reward == 1.0
    assert result.mixed_igrpo == 0.0


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan"), [0.5, 2.0]])
def test_probability_outside_the_unit_interval_is_named(p):
    with pytest.raises(ValueError, match="p must lie in"):
        best_of_n_probability(p, 4)
    with pytest.raises(ValueError, match="p must lie in"):
        dead_group_probability(p, 4)


@pytest.mark.parametrize("n", [0, -1, 2.5])
def test_counts_below_one_or_not_whole_are_named(n):
    with pytest.raises(ValueError, match="n must be a whole number"):
        best_of_n_probability(0.5, n)
    with pytest.raises(ValueError, match="group_size must be"):
        dead_group_probability(0.5, n)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("p_mean", 0.0),
        ("p_concentration", float("nan")),
        ("p_fix", 1.5),
        ("p_keep", -1.0),
        ("num_drafts", 0),
        ("num_refinements", 0),
        ("prompts", 0),
    ],
)
def test_toy_names_the_bad_argument(name, value):
    with pytest.raises(ValueError, match=name):
        toy(**{name: value})
