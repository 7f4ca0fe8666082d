import pytest
import torch

from igrpo_kit.core.selection import (
    NO_DRAFT,
    SELECTORS,
    select_best_draft,
    select_drafts,
    select_first_draft,
    select_no_draft,
    select_oracle_draft,
    select_random_draft,
    select_worst_draft,
    selector,
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


CHOICES = {"best": [1, 0, 2], "worst": [0, 0, 1], "first": [0, 0, 0], "none": [-1, -1, -1]}


@pytest.mark.parametrize("name", CHOICES)
def test_selectors_have_names(name):
    assert selector(name)(REWARDS).tolist() == CHOICES[name]
    assert select_drafts(REWARDS, name).tolist() == CHOICES[name]


def test_every_name_is_tested_here():
    assert sorted(SELECTORS) == sorted([*CHOICES, "random"])


def test_random_by_name_repeats_with_its_generator_alone():
    one, two = (selector("random", torch.Generator().manual_seed(5)) for _ in range(2))
    torch.manual_seed(0)
    first = [one(REWARDS).tolist() for _ in range(20)]
    torch.manual_seed(1)
    assert [two(REWARDS).tolist() for _ in range(20)] == first
    assert len({tuple(choice) for choice in first}) > 10  # of 64: chance is involved
    assert selector("best", torch.Generator())(REWARDS).tolist() == [1, 0, 2]  # ties stay with the first


def test_random_by_name_without_a_generator_follows_the_global_one():
    torch.manual_seed(3)
    first = [select_drafts(REWARDS, "random").tolist() for _ in range(20)]
    torch.manual_seed(3)
    assert [select_drafts(REWARDS, "random").tolist() for _ in range(20)] == first
    assert len({tuple(choice) for choice in first}) > 10


def test_a_selector_of_ones_own_stands_where_a_name_stands():
    def last(rewards):
        return torch.full((len(rewards),), rewards.shape[1] - 1)

    assert selector(last) is last
    assert select_drafts(REWARDS, last).tolist() == [3, 3, 3]


@pytest.mark.parametrize("use", [selector, lambda name: select_drafts(REWARDS, name)])
def test_an_unknown_name_is_an_error_that_lists_the_names(use):
    message = "select: one of best, random, worst, first, none or a callable, got 'bets'"
    with pytest.raises(ValueError, match=message):
        use("bets")


@pytest.mark.parametrize(
    ("name", "choice"),
    [
        ("best", [-1, 1, 2]),
        ("worst", [-1, 0, 1]),
        ("first", [-1, 0, 1]),
        ("none", [-1, -1, -1]),
        (lambda rewards: rewards.nan_to_num(-9.0).argmax(dim=1), [-1, 1, 2]),
    ],
    ids=["best", "worst", "first", "none", "own"],
)
def test_a_prompt_without_a_scored_draft_is_shown_none(name, choice):
    rewards = torch.tensor([[NAN, NAN, NAN], [0.0, 1.0, 0.0], [NAN, 0.0, 0.5]])
    assert select_drafts(rewards, name).tolist() == choice
    assert rewards[0].isnan().all()  # what was given is left as it was
    assert select_drafts(rewards[:1], name).tolist() == [-1]


def test_random_selection_among_prompts_without_a_scored_draft():
    rewards = torch.tensor([[NAN, NAN, NAN], [NAN, 1.0, NAN]])
    assert all(select_drafts(rewards, "random").tolist() == [-1, 1] for _ in range(50))
