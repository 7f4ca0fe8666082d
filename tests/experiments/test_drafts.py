"""Controls of when a draft pays: which prompts they sample from, and what they train."""

import pytest
import torch

from igrpo_kit.core.losses import GRPO
from igrpo_kit.core.prompts import PromptFormat
from igrpo_kit.experiments.drafts import (
    drafts_then_grpo_rollout,
    drafts_then_grpo_trained,
    foreign_draft_rollout,
    partial_credit_trained,
    prefix_rollout,
    select_best_until_taken_off,
)
from igrpo_kit.experiments.regimes.revision import CHOSEN, CONTROLS, CORE, tuning
from igrpo_kit.policies.samplers.scripted import ScriptedSampler
from igrpo_kit.tasks.cipher import cipher_answer
from igrpo_kit.tasks.problem import Problem
from igrpo_kit.tasks.rewards import AccuracyReward
from igrpo_kit.training.rollout import igrpo_rollout

FORMAT = PromptFormat(system=None, refinement="{question}[{draft}]")
GOLD = cipher_answer("12", 0)
PROBLEMS = [Problem("a", "12", GOLD, "cipher-0"), Problem("b", "21", cipher_answer("21", 0), "cipher-0")]


def scripted(rollout, texts, problems, **budget):
    sampler = ScriptedSampler(texts, None, prompt_format=FORMAT)
    return rollout(sampler, AccuracyReward(), problems, **budget)


def asked(stage):
    return ["".join(map(chr, ids)) for ids in stage.samples.prompt_ids]


def test_drafts_are_shown_until_an_eighth_of_their_groups_is_live():
    dead, live = [0.0, 0.0], [0.0, 1.0]
    assert select_best_until_taken_off(torch.tensor([dead] * 8)).tolist() == [0] * 8
    assert select_best_until_taken_off(torch.tensor([dead] * 8 + [live])).tolist() == [0] * 8 + [1]
    assert select_best_until_taken_off(torch.tensor([dead] * 7 + [live])).tolist() == [-1] * 8


def test_drafts_then_grpo_is_igrpo_before_and_one_group_of_q_after():
    budget = {"num_drafts": 2, "num_refinements": 2}
    before = scripted(drafts_then_grpo_rollout, ["00", "99", GOLD, "00"], PROBLEMS[:1], **budget)
    assert asked(before.refinements) == ["12[00]"]
    [trained] = drafts_then_grpo_trained(before, GRPO())
    assert trained.samples is before.refinements.samples
    # With the drafts [1, 0] a group is live; drafts and completions are one group [1, 0, 0, 0]:
    # mean .25, sample std .5.
    after = scripted(drafts_then_grpo_rollout, [GOLD, "00", "99", "98"], PROBLEMS[:1], **budget)
    assert asked(after.refinements) == ["12"]
    first, second = drafts_then_grpo_trained(after, GRPO())
    assert first.advantages.tolist() == [[1.5, -0.5]] and second.advantages.tolist() == [[-0.5, -0.5]]
    assert asked(after.drafts) == ["12"] and first.samples is after.drafts.samples


def test_a_foreign_draft_is_the_first_one_of_the_problem_before():
    texts = ["00", "01", "10", "11", "0", "0", "0", "0"]
    rollout = scripted(foreign_draft_rollout, texts, PROBLEMS, num_drafts=2, num_refinements=2)
    assert asked(rollout.refinements) == ["12[10]", "21[00]"]


def test_a_prefix_is_given_not_trained_and_scored_with_the_rest():
    # random.Random("12").uniform(.4, .8) is .64 and that of "21" .50: of 2 digits, 1 is given
    gold = PROBLEMS[1].answer
    wrong = str((int(GOLD[1]) + 1) % 10)
    texts, budget = [GOLD[1], wrong, gold[1], ""], {"num_drafts": 0, "num_refinements": 2}
    rollout = scripted(prefix_rollout, texts, PROBLEMS, **budget)
    assert asked(rollout.refinements) == ["12" + GOLD[0], "21" + gold[0]]
    samples = rollout.refinements.samples
    assert samples.texts == [GOLD, GOLD[0] + wrong, gold, gold[0]]
    assert rollout.refinements.rewards.tolist() == [[1.0, 0.0], [1.0, 0.0]]
    assert samples.mask.sum(1).tolist() == [2, 2, 2, 1]  # the sampled digit and the end of the text
    assert rollout.drafts is None and rollout.selected is None


def test_a_prefix_is_always_the_same_for_a_question_and_holds_two_to_four_fifths_of_the_answer():
    questions = [str(n) for n in range(10**9, 10**9 + 300)]
    problems = [Problem(q, q, cipher_answer(q, 0), "cipher-0") for q in questions]
    budget = {"num_drafts": 0, "num_refinements": 1}
    asks = [asked(scripted(prefix_rollout, [""] * 300, problems, **budget).refinements) for _ in range(2)]
    assert asks[0] == asks[1]
    given = [ask.removeprefix(q) for ask, q in zip(asks[0], questions, strict=True)]
    assert {len(text) for text in given} == {4, 5, 6, 7, 8}
    assert all(p.answer.startswith(text) for p, text in zip(problems, given, strict=True))


def test_a_prefix_takes_the_place_of_drafts():
    with pytest.raises(ValueError, match="num_drafts: the prefix stands in place of drafts, use 0, got 4"):
        scripted(prefix_rollout, [], PROBLEMS, num_drafts=4, num_refinements=4)


def test_partial_credit_is_trained_and_the_record_keeps_the_binary_reward():
    half = GOLD[0] + str((int(GOLD[1]) + 1) % 10)
    rollout = scripted(igrpo_rollout, [half, GOLD], PROBLEMS[:1], num_drafts=0, num_refinements=2)
    [trained] = partial_credit_trained(rollout, GRPO())
    # Credits .5 and 1: mean .75, sample std sqrt(.125) = .353553; -.25 / .353553 = -.707107.
    assert trained.advantages.flatten().tolist() == pytest.approx([-0.707107, 0.707107], abs=1e-5)
    assert rollout.refinements.rewards.tolist() == [[0.0, 1.0]]


def test_every_method_samples_the_same_number_of_rollouts():
    for name, settings in (CORE | CONTROLS).items():
        per_problem = settings["num_drafts"] + settings["num_refinements"]
        problems = settings.get("prompts_per_step", 32) * settings.get("steps", 200)
        assert per_problem * problems == (25_600 if name == "GRPO-4" else 51_200), name


def test_tuning_tries_every_rate_of_every_core_method_on_seeds_of_its_own():
    experiment = tuning(15)
    assert len(experiment.methods) >= 12 and experiment.seeds == (100, 101)
    assert [experiment.policy_of(seed) for seed in experiment.seeds] == ["cipher-15-4", "cipher-15-5"]
    assert all(rates.keys() == CORE.keys() for rates in CHOSEN.values())
