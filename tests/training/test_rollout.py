import math
import random
from collections import Counter

import pytest
import torch

from igrpo_kit.core.advantages import advantages_of_scored, dead_groups, group_advantages
from igrpo_kit.core.prompts import PromptFormat
from igrpo_kit.core.selection import select_no_draft, select_worst_draft
from igrpo_kit.policies.samplers.scripted import ScriptedSampler
from igrpo_kit.tasks.problem import Problem
from igrpo_kit.tasks.rewards import as_reward
from igrpo_kit.training.metrics import rollout_metrics
from igrpo_kit.training.rollout import NOT_SAMPLED, igrpo_rollout, rollout_with_next_drafts, sample_drafts

PROBLEMS = [Problem("a", "1+1?", "2", "hand"), Problem("b", "2+3?", "5", "hand")]
FORMAT = PromptFormat(system=None, refinement="{question} [{draft}]")

SCRIPT = [
    *("3", "2", "2"),  # drafts of a: incorrect, correct, correct
    *("4", "6", "7"),  # drafts of b: all incorrect
    *("2", "2"),  # refinements of a
    *("5", "4"),  # refinements of b
]


class RecordingSampler(ScriptedSampler):
    """A scripted sampler that remembers what it was asked."""

    def __init__(self, texts, **options):
        super().__init__(texts, **{"prompt_format": FORMAT, **options})
        self.asked = []

    def sample(self, prompts, num_samples):
        self.asked.append(([p[-1]["content"] for p in prompts], num_samples))
        return super().sample(prompts, num_samples)


def exact(problems, completions):
    return [float(c == p.answer) for p, c in zip(problems, completions, strict=True)]


def test_both_stages_by_hand():
    sampler = RecordingSampler(SCRIPT)
    rollout = igrpo_rollout(sampler, exact, PROBLEMS, num_drafts=3, num_refinements=2)
    assert sampler.asked == [(["1+1?", "2+3?"], 3), (["1+1? [2]", "2+3? [4]"], 2)]
    assert rollout.drafts.rewards.tolist() == [[0, 1, 1], [0, 0, 0]]
    assert rollout.selected.tolist() == [1, 0]
    assert rollout.shown_rewards.tolist() == [1, 0]
    assert [rollout.draft_text(i) for i in range(2)] == ["2", "4"]
    assert rollout.refinements.rewards.tolist() == [[1, 1], [1, 0]]


def test_metrics_by_hand():
    rollout = igrpo_rollout(RecordingSampler(SCRIPT), exact, PROBLEMS, num_drafts=3, num_refinements=2)
    row = rollout_metrics(rollout, num_drafts=3)
    expected = {
        "reward": 0.75,
        "dead_groups": 0.5,  # a's refinements agree
        "all_correct_groups": 0.5,
        "stage1/reward": 1 / 3,
        "stage1/dead_groups": 0.5,  # b's drafts agree
        "best_draft_reward": 0.5,
        "best_draft_predicted_from_mean_p": 1 - (2 / 3) ** 3,
        "best_draft_correct": 0.5,
        "copy_rate": 0.75,  # "2", "2" and "4"; not "5"
        "copy_rate_of_correct": 1.0,
        "regressed": 0.0,
        "repaired": 0.5,
        "transitions/kept": 2,
        "transitions/regressed": 0,
        "transitions/repaired": 1,
        "transitions/still_incorrect": 1,
        "length": 2.0,  # a character and the end
        "tokens": 8.0,
        "stage1/tokens": 12.0,
        "truncated": 0.0,
        "unscored": 0.0,
    }
    assert {k: row[k] for k in expected} == pytest.approx(expected)
    assert "best_draft_predicted_per_prompt" not in row  # of 3 drafts it would be the measurement itself
    # of the first draft alone, from three: (2/3 + 0) / 2
    assert rollout_metrics(rollout, num_drafts=1)["best_draft_predicted_per_prompt"] == pytest.approx(1 / 3)


def naive_transitions(rollout, full_reward):
    """One refinement at a time: what its draft was, and what it became."""
    counts = dict.fromkeys(("kept", "regressed", "repaired", "still_incorrect"), 0)
    for i, shown in enumerate(rollout.selected.tolist()):
        if shown < 0:
            continue
        draft_correct = rollout.drafts.rewards[i, shown].item() >= full_reward
        for reward in rollout.refinements.rewards[i].tolist():
            if draft_correct:
                counts["kept" if reward >= full_reward else "regressed"] += 1
            else:
                counts["repaired" if reward >= full_reward else "still_incorrect"] += 1
    return counts


@pytest.mark.parametrize("select", ["best", "worst", "random", "none"])
@pytest.mark.parametrize("full_reward", [1.0, 2.0])
def test_transitions_are_those_a_loop_counts(select, full_reward):
    """Rewards 0, 1, 2 and unscored ("-"), so some problems have no draft to show."""
    problems = [Problem(str(i), "?", "", "hand") for i in range(8)]
    reward = as_reward(
        lambda problems, texts: [math.nan if t == "-" else float(t) for t in texts], full_reward=full_reward
    )
    seen = Counter()
    for seed in range(10):
        rng = random.Random(seed)
        sampler = RecordingSampler([rng.choice("--012") for _ in range(8 * 2 + 8 * 3)])
        rollout = igrpo_rollout(sampler, reward, problems, num_drafts=2, num_refinements=3, select=select)
        row = rollout_metrics(rollout, num_drafts=2)
        expected = naive_transitions(rollout, full_reward)
        assert {name: row[f"transitions/{name}"] for name in expected} == expected
        assert all(type(row[f"transitions/{name}"]) is int for name in expected)
        seen.update(expected)
    if select == "none":
        assert seen.total() == 0
    else:
        assert min(seen.values()) > 0  # every kind occurred
        assert seen.total() < 10 * 8 * 3  # and some problem was shown no draft


def test_no_drafts_is_grpo():
    sampler = RecordingSampler(["2", "3", "5", "5"])
    rollout = igrpo_rollout(sampler, exact, PROBLEMS, num_drafts=0, num_refinements=2)
    assert sampler.asked == [(["1+1?", "2+3?"], 2)]
    assert rollout.drafts is None
    assert rollout.shown_rewards is None
    assert rollout.draft_text(0) is None
    row = rollout_metrics(rollout, num_drafts=1)
    assert row["best_draft_reward"] == 1.0  # best of the first one: "2" and "5" are correct
    assert not {"copy_rate", "transitions/kept"} & row.keys()


def test_controls_show_another_draft_or_none():
    sampler = RecordingSampler(SCRIPT)
    igrpo_rollout(sampler, exact, PROBLEMS, num_drafts=3, num_refinements=2, select=select_worst_draft)
    assert sampler.asked[1][0] == ["1+1? [3]", "2+3? [4]"]
    sampler = RecordingSampler(SCRIPT)
    rollout = igrpo_rollout(sampler, exact, PROBLEMS, num_drafts=3, num_refinements=2, select=select_no_draft)
    assert sampler.asked[1][0] == ["1+1?", "2+3?"]
    assert math.isnan(rollout_metrics(rollout, num_drafts=3)["copy_rate"])


def test_a_long_draft_is_cut_and_the_question_is_not(tiny_policy):
    sampler = RecordingSampler(["1234567890", "2"], tokenizer=tiny_policy.tokenizer)
    igrpo_rollout(sampler, exact, PROBLEMS[:1], num_drafts=1, num_refinements=1, max_draft_tokens=4)
    assert sampler.asked[1][0] == ["1+1? [7890]"]


def test_early_stop_samples_until_the_first_correct_draft():
    # round 1: both incorrect; round 2: a correct, b incorrect; round 3: b alone
    sampler = RecordingSampler(["3", "4", "2", "6", "77"])
    drafts = sample_drafts(sampler, exact, PROBLEMS, num_drafts=3, stop_at=1.0)
    assert [asked for asked, _ in sampler.asked] == [["1+1?", "2+3?"], ["1+1?", "2+3?"], ["2+3?"]]
    assert drafts.rewards[1].tolist() == [0, 0, 0]
    assert drafts.rewards[0, :2].tolist() == [0, 1]
    assert drafts.rewards[0, 2].isnan()
    assert drafts.samples.texts == ["3", "2", "", "4", "6", "77"]
    assert drafts.scores.statuses[2] == NOT_SAMPLED
    assert drafts.samples.mask.sum(dim=1).tolist() == [2, 2, 0, 2, 2, 3]


def test_early_stop_changes_cost_not_the_best_drafts_reward():
    rollout = igrpo_rollout(
        RecordingSampler(["3", "4", "2", "6", "7", "2", "2", "5", "4"]), exact, PROBLEMS,
        num_drafts=3, num_refinements=2, stop_at=1.0,
    )  # fmt: skip
    assert rollout.selected.tolist() == [1, 0]
    row = rollout_metrics(rollout, num_drafts=3)
    assert row["best_draft_reward"] == 0.5
    assert row["stage1/tokens"] == 10.0
    assert row["stage1/unscored"] == 0.0  # not sampled is not unscored
    assert "best_draft_predicted_from_mean_p" not in row
    assert math.isnan(row["stage1/dead_groups"])


@pytest.mark.parametrize(("num_refinements", "calls"), [(3, 2), (2, 3)])
def test_the_next_drafts_ride_with_the_refinements(num_refinements, calls):
    """One batch where N = G = 3, else two; the same samples to each problem either way."""
    script = [
        *SCRIPT[:6],
        *["2", "2", "2"][:num_refinements],
        *["5", "4", "5"][:num_refinements],
        "9",
        "8",
        "2",
    ]
    sampler = RecordingSampler(script)
    early = sample_drafts(sampler, exact, PROBLEMS, num_drafts=3)
    rollout, ahead = rollout_with_next_drafts(
        sampler, exact, PROBLEMS, next_problems=PROBLEMS[:1], drafts=early, num_refinements=num_refinements
    )
    assert len(sampler.asked) == calls
    asked = [question for questions, _ in sampler.asked[1:] for question in questions]
    assert asked == ["1+1? [2]", "2+3? [4]", "1+1?"]
    assert rollout.drafts is early
    assert rollout.refinements.rewards.tolist() == [[1, 1, 1][:num_refinements], [1, 0, 1][:num_refinements]]
    assert ahead.rewards.tolist() == [[0, 0, 1]]
    assert ahead.samples.texts == ["9", "8", "2"]
    assert ahead.samples.mask.shape == ahead.samples.completion_ids.shape == (3, 2)


@pytest.mark.parametrize(("num_drafts", "num_refinements"), [(-1, 2), (2, 0)])
def test_bad_counts_are_named(num_drafts, num_refinements):
    with pytest.raises(ValueError, match="num_refinements"):
        igrpo_rollout(
            ScriptedSampler([]), exact, PROBLEMS, num_drafts=num_drafts, num_refinements=num_refinements
        )


def test_an_unscored_completion_is_neither_rewarded_nor_punished_and_changes_nothing_for_the_others():
    """1 and 0 have mean 1/2 and sample std .707107, whatever was not scored; one alone, or none, is dead."""
    nan = math.nan
    rewards = torch.tensor([[1.0, nan, 0.0, nan], [nan] * 4, [nan, 1.0, nan, nan], [1.0, 0.0, 0.0, 0.0]])
    found = advantages_of_scored(rewards, group_advantages)
    a = 0.707107
    wanted = torch.tensor([[a, 0.0, -a, 0.0], [0.0] * 4, [0.0] * 4, [1.5, -0.5, -0.5, -0.5]])
    assert torch.allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize("value", [0.9, 0.3, 0.7])
@pytest.mark.parametrize("scored", range(1, 8))
def test_an_unscored_completion_does_not_revive_a_dead_group(value, scored):
    rewards = torch.tensor([[value] * scored + [math.nan] * (8 - scored)])
    assert (advantages_of_scored(rewards, group_advantages) == 0).all()
    assert dead_groups(rewards).tolist() == [True]


def test_a_problem_without_a_scored_draft_is_asked_without_one():
    def blind(problems, completions):
        return [
            math.nan if p.id == "a" else float(c == p.answer)
            for p, c in zip(problems, completions, strict=True)
        ]

    sampler = RecordingSampler(["2", "2", "4", "5", "2", "5"])
    rollout = igrpo_rollout(sampler, blind, PROBLEMS, num_drafts=2, num_refinements=1)
    assert sampler.asked[1][0] == ["1+1?", "2+3? [5]"]
    assert rollout.draft_text(0) is None
    assert repr(rollout.shown_rewards.tolist()) == "[nan, 1.0]"


def test_a_draft_that_could_not_be_scored_is_not_selected_and_is_counted():
    def flaky(problems, completions):
        return [
            math.nan if c == "?" else float(c == p.answer) for p, c in zip(problems, completions, strict=True)
        ]

    rollout = igrpo_rollout(
        ScriptedSampler(["?", "3", "2", "?"]), flaky, PROBLEMS[:1], num_drafts=2, num_refinements=2
    )
    assert rollout.selected.tolist() == [1]
    row = rollout_metrics(rollout, num_drafts=2)
    assert row["unscored"] == row["stage1/unscored"] == 0.5
    assert row["reward"] == 1.0


def test_scores_and_rows_stay_together():
    seen = []

    class Spy:
        def __call__(self, problems, completions):
            seen.extend((p.id, c) for p, c in zip(problems, completions, strict=True))
            return [0.0] * len(completions)

    igrpo_rollout(ScriptedSampler(["w", "x", "y", "z"]), Spy(), PROBLEMS, num_drafts=0, num_refinements=2)
    assert seen == [("a", "w"), ("a", "x"), ("b", "y"), ("b", "z")]
