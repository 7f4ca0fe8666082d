"""Finite sums against enumeration by loop, autograd, and the closed forms of the binary case."""

from itertools import product

import pytest
import torch

from igrpo_kit.analysis.exact.gradient import best_draft_probabilities, expected_group_gradient
from igrpo_kit.core.advantages import group_advantages, leave_one_out_advantages
from igrpo_kit.core.selection import select_best_draft
from igrpo_kit.core.toy import best_of_n_probability

PI = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)


def test_best_draft_counted_by_hand():
    """Two drafts of a coin: the second side wins unless both show the first."""
    coin = torch.tensor([0.6, 0.4], dtype=torch.float64)
    seen = best_draft_probabilities(coin, torch.tensor([0.0, 1.0], dtype=torch.float64), 2)
    torch.testing.assert_close(seen, torch.tensor([0.36, 0.64], dtype=torch.float64))


@pytest.mark.parametrize("rewards", [[0.0, 1.0, 1.0], [0.0, 0.0, 0.0], [0.2, 0.9, 0.5], [1.0, 0.0, 1.0]])
def test_best_draft_against_every_set_of_drafts(rewards):
    rewards = torch.tensor(rewards, dtype=torch.float64)
    expected = torch.zeros(3, dtype=torch.float64)
    for drafts in product(range(3), repeat=4):
        best = select_best_draft(rewards[list(drafts)][None]).item()
        expected[drafts[best]] += PI[list(drafts)].prod()
    torch.testing.assert_close(best_draft_probabilities(PI, rewards, 4), expected)


def test_best_draft_is_proposition_3_1():
    rewards = torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64)
    right = best_draft_probabilities(PI, rewards, 8)[1:].sum().item()
    assert right == pytest.approx(best_of_n_probability(0.5, 8)) == pytest.approx(0.99609375)


def test_best_draft_carries_a_gradient():
    pi = PI.clone().requires_grad_()
    rewards = torch.tensor([0.0, 1.0, 0.5], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda p: best_draft_probabilities(p, rewards, 3), pi)


def test_best_draft_refuses():
    rewards = torch.zeros(3, dtype=torch.float64)
    with pytest.raises(ValueError, match="num_drafts"):
        best_draft_probabilities(PI, rewards, 0)
    with pytest.raises(ValueError, match="positive probabilities"):
        best_draft_probabilities(torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64), rewards, 2)


LOGITS = PI.log()
REWARDS = torch.tensor([0.0, 1.0, 0.25], dtype=torch.float64)
TRUE = PI * (REWARDS - (PI * REWARDS).sum())


def test_the_true_gradient_is_autograds():
    logits = LOGITS.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((logits.softmax(0) * REWARDS).sum(), logits)
    torch.testing.assert_close(gradient, TRUE)


@pytest.mark.parametrize("group_size", [2, 4, 8])
def test_the_groups_own_mean_shrinks_the_gradient(group_size):
    centered = expected_group_gradient(
        LOGITS, REWARDS, group_size, lambda r: group_advantages(r, scale_by_std=False)
    )
    torch.testing.assert_close(centered, TRUE * (group_size - 1) / group_size)
    unbiased = expected_group_gradient(LOGITS, REWARDS, group_size, leave_one_out_advantages)
    torch.testing.assert_close(unbiased, TRUE)


def test_dividing_by_the_std_against_a_loop():
    expected = torch.zeros(3, dtype=torch.float64)
    for group in product(range(3), repeat=3):
        A = group_advantages(REWARDS[list(group)][None])[0]
        for a, answer in zip(A, group, strict=True):
            score = torch.eye(3, dtype=torch.float64)[answer] - PI
            expected += PI[list(group)].prod() * a * score / 3
    torch.testing.assert_close(expected_group_gradient(LOGITS, REWARDS, 3), expected)


def test_two_answers_groups_of_two_by_hand():
    """A mixed pair, of chance 2 p q, has advantages +-1/sqrt 2: the right logit gets p q / sqrt 2."""
    p = 0.3
    logits = torch.tensor([1 - p, p], dtype=torch.float64).log()
    rewards = torch.tensor([0.0, 1.0], dtype=torch.float64)
    seen = expected_group_gradient(logits, rewards, 2)
    torch.testing.assert_close(seen, torch.tensor([-0.21, 0.21], dtype=torch.float64) / 2**0.5)


def test_groups_too_small_or_too_many():
    for size in (1, 40):
        with pytest.raises(ValueError, match="group_size"):
            expected_group_gradient(LOGITS, REWARDS, size)
