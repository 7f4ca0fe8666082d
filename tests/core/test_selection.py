import pytest
import torch

from igrpo_kit.core.selection import (
    NO_DRAFT,
    select_best_draft,
    select_first_draft,
    select_no_draft,
    select_oracle_draft,
    select_random_draft,
    select_worst_draft,
)

NAN = float("nan")
REWARDS = torch.tensor([[0.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0], [0.2, 0.1, 0.9, 0.3]])


def test_best_is_the_argmax_and_the_first_of_a_tie():
    assert select_best_draft(REWARDS).tolist() == [1, 0, 2]


def test_worst_is_the_argmin_and_the_first_of_a_tie():
    assert select_worst_draft(REWARDS).tolist() == [0, 0, 1]


def test_first_and_none():
    assert select_first_draft(REWARDS).tolist() == [0, 0, 0]
    assert select_no_draft(REWARDS).tolist() == [NO_DRAFT] * 3


def test_random_tie_break_reaches_every_tied_draft_and_no_other():
    generator = torch.Generator().manual_seed(0)
    picks = torch.stack([select_best_draft(REWARDS, generator=generator) for _ in range(400)])
    assert set(picks[:, 0].tolist()) == {1, 2}
    assert set(picks[:, 1].tolist()) == {0, 1, 2, 3}
    assert set(picks[:, 2].tolist()) == {2}
    assert 140 < (picks[:, 0] == 1).sum() < 260  # fair: 200 ± 6 standard deviations of 10


def test_random_control_is_uniform_whatever_the_rewards():
    generator = torch.Generator().manual_seed(1)
    picks = torch.stack([select_random_draft(REWARDS, generator=generator) for _ in range(800)])
    for row in range(3):
        counts = torch.bincount(picks[:, row], minlength=4)
        assert ((counts > 140) & (counts < 260)).all()  # 200 ± 5 standard deviations of 12


def test_seeded_selection_repeats():
    one, two = (torch.Generator().manual_seed(5) for _ in range(2))
    assert select_random_draft(REWARDS, generator=one).equal(select_random_draft(REWARDS, generator=two))


def test_nan_never_wins():
    rewards = torch.tensor([[NAN, 0.0, 1.0], [NAN, -1.0, NAN], [-float("inf"), NAN, -float("inf")]])
    assert select_best_draft(rewards).tolist() == [2, 1, 0]
    assert select_worst_draft(rewards).tolist() == [1, 1, 0]
    assert select_first_draft(rewards).tolist() == [1, 1, 0]
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        assert select_random_draft(rewards, generator=generator)[1] == 1


@pytest.mark.parametrize(
    "select", [select_best_draft, select_worst_draft, select_first_draft, select_random_draft]
)
def test_a_prompt_without_a_scored_draft_is_named(select):
    with pytest.raises(ValueError, match=r"prompt\(s\) \[1\]"):
        select(torch.tensor([[0.0, 1.0], [NAN, NAN]]))


def test_oracle_selects_by_the_true_reward_then_the_training_one():
    training = torch.tensor([[1.0, 2.0, 0.5], [1.0, 3.0, 2.0]])
    true = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    assert select_oracle_draft(training, true_rewards=true).tolist() == [0, 1]
    with pytest.raises(ValueError, match=r"\[0\]"):
        select_oracle_draft(training, true_rewards=torch.tensor([[NAN, NAN, NAN], [0.0, 0.0, 0.0]]))
