from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from igrpo_kit.core.advantages import (
    dead_groups,
    gdpo_advantages,
    group_advantages,
    leave_one_out_advantages,
    sgpo_rewards,
)

groups = st.integers(2, 8).flatmap(
    lambda G: st.lists(
        st.lists(st.floats(-100, 100, width=32), min_size=G, max_size=G), min_size=1, max_size=4
    )
)


def test_sample_std_by_hand():
    # mean .5, sample std sqrt(1/3) = .57735: ±.5/.57735 = ±.866025 (a population std would give ±1)
    got = group_advantages(torch.tensor([[1.0, 1.0, 0.0, 0.0]]))
    torch.testing.assert_close(got, torch.tensor([[0.8660254, 0.8660254, -0.8660254, -0.8660254]]))


def test_one_right_of_four_by_hand():
    # mean .25, sample std .5
    got = group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]]))
    torch.testing.assert_close(got, torch.tensor([[1.5, -0.5, -0.5, -0.5]]))


def test_without_std_by_hand():
    got = group_advantages(torch.tensor([[3.0, 1.0, 0.0, 0.0]]), scale_by_std=False)
    torch.testing.assert_close(got, torch.tensor([[2.0, 0.0, -1.0, -1.0]]))


def test_leave_one_out_by_hand():
    # 3 - (1+0+0)/3 = 2.6667; 1 - 1 = 0; 0 - 4/3
    got = leave_one_out_advantages(torch.tensor([[3.0, 1.0, 0.0, 0.0]]))
    torch.testing.assert_close(got, torch.tensor([[8 / 3, 0.0, -4 / 3, -4 / 3]]))


@pytest.mark.parametrize(
    ("correct", "up", "down"),  # sqrt(7/8) sqrt((1-p)/p) and -sqrt(7/8) sqrt(p/(1-p)) for p = correct / 8
    [
        (1, 2.4748737342, -0.3535533906),  # sqrt(7/8 * 7), -sqrt(7/8 / 7)
        (2, 1.6201851746, -0.5400617249),
        (3, 1.2076147288, -0.7245688373),
        (4, 0.9354143467, -0.9354143467),
        (5, 0.7245688373, -1.2076147288),
        (6, 0.5400617249, -1.6201851746),
        (7, 0.3535533906, -2.4748737342),
    ],
)
def test_binary_closed_form(correct, up, down):
    rewards = torch.tensor([[1.0] * correct + [0.0] * (8 - correct)], dtype=torch.float64)
    expected = torch.tensor([[up] * correct + [down] * (8 - correct)], dtype=torch.float64)
    torch.testing.assert_close(group_advantages(rewards), expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.7, 0.1, -3.3, 1e30])
@pytest.mark.parametrize("G", [2, 3, 8])
def test_dead_groups_are_exactly_zero(value, G):
    rewards = torch.full((2, G), value)
    assert dead_groups(rewards).tolist() == [True, True]
    for got in (group_advantages(rewards), leave_one_out_advantages(rewards)):
        assert (got == 0).all()


def test_a_group_is_dead_by_comparison_not_by_a_small_std():
    """Eight times 0.7 has a float32 std of 6e-8, and one 1e-9 among zeros 3.5e-10: no threshold would do."""
    rewards = torch.tensor([[0.7] * 8, [0.0] * 7 + [1e-9]])
    assert dead_groups(rewards).tolist() == [True, False]
    expected = torch.tensor([[0.0] * 8, [-0.35355339] * 7 + [2.47487373]])
    torch.testing.assert_close(group_advantages(rewards), expected)


def test_nearly_equal_rewards_do_not_blow_up():
    rewards = torch.tensor([[0.7, 0.7, 0.7, 0.70000005]])
    assert dead_groups(rewards).tolist() == [False]
    torch.testing.assert_close(group_advantages(rewards), torch.tensor([[-0.5, -0.5, -0.5, 1.5]]))


def naive(rewards):
    out = []
    for group in rewards.tolist():
        mean = sum(group) / len(group)
        std = (sum((r - mean) ** 2 for r in group) / (len(group) - 1)) ** 0.5
        out.append([0.0] * len(group) if max(group) == min(group) else [(r - mean) / std for r in group])
    return torch.tensor(out, dtype=torch.float64)


@given(groups)
@settings(max_examples=200, deadline=None)
def test_equals_a_naive_loop(rows):
    rewards = torch.tensor(rows, dtype=torch.float64)
    torch.testing.assert_close(group_advantages(rewards), naive(rewards), rtol=1e-6, atol=1e-6)


@given(groups, st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_permuting_a_group_permutes_its_advantages(rows, random):
    rewards = torch.tensor(rows, dtype=torch.float64)
    order = list(range(rewards.shape[1]))
    random.shuffle(order)
    torch.testing.assert_close(
        group_advantages(rewards[:, order]), group_advantages(rewards)[:, order], rtol=1e-6, atol=1e-6
    )


@given(st.lists(st.integers(-50, 50), min_size=2, max_size=8), st.integers(-1000, 1000), st.integers(1, 100))
@settings(max_examples=100, deadline=None)
def test_shifting_changes_nothing_and_scaling_only_what_is_not_scaled_by_std(group, shift, scale):
    rewards = torch.tensor([group], dtype=torch.float64)
    torch.testing.assert_close(group_advantages(scale * rewards + shift), group_advantages(rewards))
    torch.testing.assert_close(
        group_advantages(scale * rewards + shift, scale_by_std=False),
        scale * group_advantages(rewards, scale_by_std=False),
    )


@given(groups)
@settings(max_examples=100, deadline=None)
def test_advantages_of_a_group_sum_to_zero_and_are_bounded(rows):
    rewards = torch.tensor(rows, dtype=torch.float64)
    G = rewards.shape[1]
    advantages = group_advantages(rewards)
    assert advantages.sum(dim=1).abs().max() < 1e-6
    assert advantages.abs().max() <= (G - 1) / G**0.5 + 1e-6  # one right among G - 1 wrong


@pytest.mark.parametrize(
    ("function", "bad"),
    [
        *product((group_advantages, leave_one_out_advantages), (float("nan"), float("inf"), -float("inf"))),
        *product((dead_groups,), (float("inf"), -float("inf"))),  # NaN is a reward that nobody gave
    ],
)
def test_the_group_with_a_bad_reward_is_named(function, bad):
    with pytest.raises(ValueError, match=r"group\(s\) \[1\]"):
        function(torch.tensor([[0.0, 1.0], [0.0, bad]]))


def test_a_group_of_one_is_refused():
    with pytest.raises(ValueError, match="at least 2"):
        group_advantages(torch.zeros(3, 1))


# Two groups of two; the second completion is better formatted, and in the second group correct as well.
ACCURACY = [[0.0, 0.0], [0.0, 1.0]]
FORMAT = [[0.0, 1.0], [0.0, 1.0]]


def test_gdpo_keeps_apart_what_the_sum_of_rewards_makes_equal():
    """(0, 1) and (0, 2) are +-.7071 for GRPO. Here Z is +-.7071 and +-1.4142, and std(Z) = sqrt(5 / 3)."""
    rewards = torch.tensor([ACCURACY, FORMAT])
    summed = group_advantages(rewards.sum(dim=0))
    torch.testing.assert_close(summed, torch.tensor([[-0.70710678, 0.70710678]] * 2))
    got = gdpo_advantages(rewards, [1.0, 1.0])
    torch.testing.assert_close(got, torch.tensor([[-0.54772256, 0.54772256], [-1.09544512, 1.09544512]]))


def test_gdpo_weighs_the_advantages_and_not_the_rewards():
    """Weights 1 and 2: Z is +-1.4142 and +-2.1213, sum of squares 13, std sqrt(13 / 3)."""
    rewards = torch.tensor([ACCURACY, FORMAT])
    got = gdpo_advantages(rewards, [1.0, 2.0])
    torch.testing.assert_close(got, torch.tensor([[-0.67936622, 0.67936622], [-1.01904933, 1.01904933]]))
    scaled = gdpo_advantages(rewards * torch.tensor([10.0, 1.0])[:, None, None], [1.0, 2.0])
    torch.testing.assert_close(scaled, got)


def test_gdpo_with_one_reward_only_adds_the_scale_of_the_batch():
    """A is +-.8660 in one group and 0 in the dead one: sum of squares 3 over 8, std sqrt(3 / 7)."""
    rewards = torch.tensor([[[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]])
    got = gdpo_advantages(rewards, [0.3])
    torch.testing.assert_close(got, torch.tensor([[1.3228757, 1.3228757, -1.3228757, -1.3228757], [0.0] * 4]))


def test_gdpo_of_opposite_rewards_is_exactly_zero():
    """1/3 and 2/3 are not exact: what the sum leaves over is rounding, and stays out of the division."""
    reward = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    assert gdpo_advantages(torch.stack([reward, 1 - reward]), [1.0, 1.0]).tolist() == [[0.0] * 3] * 2
    assert gdpo_advantages(torch.zeros(2, 1, 3), [1.0, 1.0]).tolist() == [[0.0] * 3]


def test_gdpo_names_what_is_wrong():
    with pytest.raises(ValueError, match="weights: 1 of them for 2 rewards"):
        gdpo_advantages(torch.tensor([ACCURACY, FORMAT]), [1.0])
    with pytest.raises(ValueError, match=r"infinite in group\(s\) \[1\]"):
        gdpo_advantages(torch.tensor([[[0.0, 1.0], [torch.inf, 1.0]]]), [1.0])


def test_gdpo_leaves_out_what_a_reward_did_not_score():
    """The second reward scored two of three; the first leaves a +1.154701, -0.577350, -0.577350 pattern."""
    first, second = [3.0, 0.0, 0.0], [1.0, 0.0, torch.nan]
    got = gdpo_advantages(torch.tensor([[first], [second]]), [1.0, 1.0])
    # 1.154701 + .707107, -.577350 - .707107, -.577350 + 0: 1.861807, -1.284457, -.577350; their std 1.650680
    assert got[0].tolist() == pytest.approx([1.127903, -0.778138, -0.349765], abs=1e-5)


def test_sgpo_scores_the_steps_of_groups_without_a_correct_completion():
    """Mean of 0, .25, .5 is .25 and their sample std .25: advantages -1, 0, 1. GRPO has 0 three times."""
    rewards = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, torch.nan, 0.0]])
    scores = torch.tensor([[0.0, 0.25, 0.5], [0.9, 0.8, 0.7], [0.2, 0.4, 0.6]])
    got = sgpo_rewards(rewards, rewards == 1, scores)
    expected = torch.tensor([[0.0, 0.25, 0.5], [1.0, 0.0, 0.0], [0.2, torch.nan, 0.6]])
    torch.testing.assert_close(got, expected, equal_nan=True)
    assert group_advantages(got[:1]).tolist() == [[-1.0, 0.0, 1.0]]
    assert group_advantages(rewards[:1]).tolist() == [[0.0, 0.0, 0.0]]
