"""Self-Verification and Critique-GRPO: what is asked, rewarded and trained, and the trap in the latter."""

import copy
from dataclasses import replace

import pytest
import torch

from igrpo_kit.core.losses import DAPO, GRPO
from igrpo_kit.core.prompts import PromptFormat, VerdictFormat
from igrpo_kit.core.selection import select_first_draft
from igrpo_kit.experiments import baselines
from igrpo_kit.experiments.baselines import (
    CRITIQUE_AS_IF_FROM_Q,
    CRITIQUE_GRPO,
    SELF_VERIFICATION,
    ShapedOffPolicy,
    VerdictReward,
    critique_rollout,
    critique_trained,
    critique_trained_as_if_from_q,
    question_ratio,
    self_verification_rollout,
    verdict_probabilities,
    vote_rows,
    weighted_vote,
)
from igrpo_kit.policies.load import load_policy
from igrpo_kit.policies.policy import TINY_VERDICTS, Policy
from igrpo_kit.policies.samplers.hf import HFSampler
from igrpo_kit.policies.samplers.sampler import SamplingSettings
from igrpo_kit.policies.samplers.scripted import ScriptedSampler
from igrpo_kit.tasks.problem import Problem
from igrpo_kit.tasks.rewards import AccuracyReward, WeightedSum, as_reward
from igrpo_kit.tasks.sets.generated import countdown_problems
from igrpo_kit.training.checkpoint import CheckpointError
from igrpo_kit.training.config import IGRPO_STEPS, TrainConfig
from igrpo_kit.training.loop import train
from igrpo_kit.training.rollout import igrpo_rollout
from igrpo_kit.training.update import trained_stages, update

FORMAT = PromptFormat(system=None, refinement="{question}[{draft}]")
VERDICTS = VerdictFormat(PromptFormat(system=None, refinement="{question}?{draft}"), "yes", "no")
PROBLEM = Problem("a", "3,7,5:26", "3*7+5", "countdown")
COUNTDOWN = countdown_problems(64, seed=0)
LOOKING_BACK = {"num_drafts": 2, "num_refinements": 2, "train_drafts": True, "select": "random"}


def scripted(rollout, texts, *, reward=None, tokenizer=None, **options):
    sampler = ScriptedSampler(texts, tokenizer, prompt_format=FORMAT)
    budget = {"num_drafts": 2, "num_refinements": 2, "select": select_first_draft}
    return rollout(sampler, reward or AccuracyReward(), [PROBLEM], **budget, **options)


def asked(stage):
    return ["".join(map(chr, ids)) for ids in stage.samples.prompt_ids]


@pytest.fixture
def policy(tiny_policy):
    return Policy("tiny", copy.deepcopy(tiny_policy.model), tiny_policy.tokenizer, tiny_policy.prompt_format)


def sampler_of(policy, seed=0):
    return HFSampler(policy, SamplingSettings(12), seed=seed)


def tiny_rollout(policy):
    budget = {"num_drafts": 4, "num_refinements": 4, "select": select_first_draft}
    return critique_rollout(sampler_of(policy), AccuracyReward(), COUNTDOWN[:8], **budget)


# --- Self-Verification


def test_a_verdict_is_asked_for_on_an_answer_and_rewarded_by_the_answers_own_reward():
    rollout = scripted(self_verification_rollout, ["7+5+3", "3*7+5", "no", "yes"], verdicts=VERDICTS)
    assert rollout.drafts.rewards.tolist() == [[0, 1]]
    assert asked(rollout.drafts) == ["3,7,5:26"]
    assert asked(rollout.refinements) == ["3,7,5:26?7+5+3"]  # the first answer, which is incorrect
    assert rollout.refinements.rewards.tolist() == [[1, 0]]
    assert rollout.refinements.scores.statuses == ["correct_verdict", "incorrect_verdict"]


def test_verdicts_by_hand():
    reward = VerdictReward([True, False], VERDICTS)
    scores = reward.score([PROBLEM] * 6, ["yes", "no", " yes\n", "yes", "no", "yes and no"])
    assert scores.values == [1, 0, 1, 0, 1, 0]
    assert scores.statuses[3:] == ["incorrect_verdict", "correct_verdict", "no_verdict"]
    with pytest.raises(ValueError, match="3 for 2 answers"):
        reward.score([PROBLEM] * 3, ["yes"] * 3)


def test_an_answer_cannot_leave_its_slot_in_the_verdict_prompt(policy):
    rollout = scripted(
        self_verification_rollout, ["</d>1<eos>", "3", "no", "no"], verdicts=VERDICTS, tokenizer=None
    )
    assert asked(rollout.refinements) == ["3,7,5:26?< /d>1< eos>"]


def test_verdict_probabilities_are_those_of_a_loop(policy):
    questions, answers = ["3,7,5:26", "1,2,3:6"], ["3*7+5", "1"]
    got = verdict_probabilities(policy, questions, answers, TINY_VERDICTS)
    for i, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        text = f"<bos>{question}={answer}<a>"
        log_probs = []
        for word in ("1", "0"):
            ids = policy.tokenizer(text + word + "<eos>", return_tensors="pt").input_ids
            steps = policy.model(ids).logits[0].log_softmax(-1)[-3:-1].gather(1, ids[0, -2:, None])
            log_probs.append(steps.sum().item())
        correct, incorrect = (torch.tensor(x).exp() for x in log_probs)
        assert got[i].item() == pytest.approx((correct / (correct + incorrect)).item(), abs=1e-5)


def test_votes_by_hand():
    assert weighted_vote(["a", "b", "b"], [1, 1, 1]) == 1
    assert weighted_vote(["a", "b", "b"], [0.9, 0.4, 0.4]) == 0
    assert weighted_vote(["a", "b"], [1, 1]) == 0
    with pytest.raises(ValueError, match="at least one"):
        weighted_vote([], [])


def test_rows_of_votes(monkeypatch):
    """Three answers, the correct one in the minority, and a judge who knows."""
    monkeypatch.setattr(baselines, "verdict_probabilities", lambda *a: torch.tensor([0.1, 0.9, 0.1]))
    sampler = ScriptedSampler(["3+7+5", "3*7+5", "3+7+5"])
    rows = vote_rows(sampler, AccuracyReward(), [PROBLEM], verdicts=VERDICTS, num_samples=3)
    assert {row["protocol"]: row["correct"] for row in rows} == {
        "vote": [0],
        "verified_vote": [1],
        "verdict": [3],
    }
    assert [row["reward"] for row in rows] == [[0.0], [1.0], [1.0]]


def test_a_wrong_answer_in_the_right_format_is_wrong(monkeypatch):
    """Accuracy + format: one of the two is half of the full reward, in what is asked for and in the votes."""
    well_formed = as_reward(lambda problems, texts: [1.0 for _ in texts])
    both = WeightedSum([AccuracyReward(), well_formed], [1.0, 1.0])
    texts = ["7+5+3", "3*7+5", "no", "yes"]
    verified = scripted(self_verification_rollout, texts, reward=both, verdicts=VERDICTS)
    assert verified.drafts.rewards.tolist() == [[1, 2]]
    assert verified.refinements.rewards.tolist() == [[1, 0]]
    assert asked(scripted(critique_rollout, texts, reward=both).refinements) == ["3,7,5:26[7+5+3=0]"]
    monkeypatch.setattr(baselines, "verdict_probabilities", lambda *a: torch.tensor([0.1, 0.9, 0.1]))
    sampler = ScriptedSampler(["3+7+5", "3*7+5", "3+7+5"])
    rows = vote_rows(sampler, both, [PROBLEM], verdicts=VERDICTS, num_samples=3)
    assert [row["correct"] for row in rows] == [[0], [1], [3]]


# --- Critique-GRPO


def test_the_critique_stands_behind_the_answer():
    rollout = scripted(critique_rollout, ["7+5+3", "3*7+5", "3*7+5", "5+7*3"])
    assert asked(rollout.refinements) == ["3,7,5:26[7+5+3=0]"]
    assert rollout.refinements.rewards.tolist() == [[1, 1]]
    after_correct = scripted(critique_rollout, ["3*7+5", "3", "3", "3"])
    assert asked(after_correct.refinements) == ["3,7,5:26[3*7+5=1]"]


def test_answers_and_refinements_are_one_group_on_q():
    """Rewards 0, 1 and 1, 1: mean 3/4, sample std 1/2."""
    rollout = scripted(critique_rollout, ["7+5+3", "3*7+5", "3*7+5", "5+7*3"])
    for trained in (critique_trained, critique_trained_as_if_from_q):
        answers, refinements = trained(rollout, GRPO(), train_drafts=True)
        assert answers.advantages.tolist() == [[-1.5, 0.5]]
        assert refinements.advantages.tolist() == [[0.5, 0.5]]
        assert (
            refinements.samples.prompt_ids == answers.samples.prompt_ids == rollout.drafts.samples.prompt_ids
        )
        assert refinements.samples.texts == ["3*7+5", "5+7*3"]


def test_the_shaped_term_by_hand():
    """p = gamma = 0.1: A * 1/2, and a quarter of the gradient of log p; p = 0.9: A * 0.9, and 0.09."""
    log_probs = torch.tensor([[0.1, 0.9]]).log().requires_grad_()
    shaped = ShapedOffPolicy()
    terms = shaped.surrogate(log_probs, torch.ones(1, 2), torch.tensor([2.0]))
    assert terms[0].tolist() == pytest.approx([1.0, 1.8])
    terms.sum().backward()
    assert log_probs.grad[0].tolist() == pytest.approx([0.5, 0.18])
    assert not shaped.clipped(torch.full((1, 2), 9.0), torch.tensor([2.0])).any()


def test_the_trap_the_ratio_is_one_by_construction_and_only_the_sampler_knows(policy):
    """The same refinements, drawn with a critique in context, trained in four ways from the same weights."""
    rollout = tiny_rollout(policy)

    def first_update(trained):
        model = copy.deepcopy(policy.model)
        return update(model, torch.optim.SGD(model.parameters(), 0.0), trained, temperature=1.0)

    honest = first_update(trained_stages(rollout, GRPO(), train_drafts=True))
    assert honest["ratio_mean"] == honest["ratio_max"] == 1
    assert honest["sampler_gap"] < 1e-5

    trap = first_update(critique_trained_as_if_from_q(rollout, GRPO(), train_drafts=True))
    assert trap["ratio_mean"] == trap["ratio_max"] == 1  # looks on-policy
    assert trap["sampler_gap"] > 0.05  # and is not

    answers, refinements = critique_trained_as_if_from_q(rollout, GRPO(), train_drafts=True)
    weighted = first_update([answers, replace(refinements, on_policy=False)])
    assert weighted["ratio_max"] > 1.2  # the true ratio at the first update
    assert weighted["clip_fraction"] > 0.01
    assert weighted["sampler_gap"] < 1e-5  # only what claims to be on-policy is held to it

    published = first_update(critique_trained(rollout, GRPO(), train_drafts=True))
    assert published["ratio_max"] == pytest.approx(weighted["ratio_max"], rel=1e-4)
    assert published["clip_fraction"] == 0  # it has no ratio to clip


def test_the_ratio_of_a_refinement_on_q_is_that_of_a_loop(policy):
    rollout = tiny_rollout(policy)
    ratio, mask = question_ratio(policy.model, rollout)
    samples = rollout.refinements.samples

    def log_probs(prompt, completion):
        logits = policy.model(torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1]
        return logits.log_softmax(-1).gather(1, torch.tensor(completion)[:, None]).squeeze(1)

    for row in (0, 13, 31):
        length = int(mask[row].sum())
        completion = samples.completion_ids[row, :length].tolist()
        on_q = log_probs(rollout.drafts.samples.prompt_ids[row // 4], completion)
        on_own = log_probs(samples.prompt_ids[row // 4], completion)
        torch.testing.assert_close(ratio[row, :length], (on_q - on_own).exp(), rtol=1e-4, atol=1e-5)
    assert (ratio[mask].log().abs() > 0.2).float().mean() > 0.05
    with pytest.raises(ValueError, match="GRPO has no refinements"):
        question_ratio(policy.model, replace(rollout, drafts=None))


def test_as_if_from_q_is_another_gradient_and_the_ratio_puts_it_right():
    """A bandit of three arms, every number exact. With the critique in context arm 2 is drawn most.

    The expected update at the logits of q, over arms drawn in Stage 2: with the ratio it is the true policy
    gradient on q. Without, arm k moves by critique_k * (reward_k - mean reward in Stage 2), here 0.62: arm 0
    falls, which on q is better than average.
    """
    logits = torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64, requires_grad=True)
    critique = torch.tensor([0.1, 0.1, 0.8], dtype=torch.float64)
    rewards = torch.tensor([0.6, 0.0, 0.7], dtype=torch.float64)

    def gradient(expectation):
        return torch.autograd.grad(expectation(logits.softmax(0)), logits)[0]

    true = gradient(lambda pi: (pi * rewards).sum())
    torch.testing.assert_close(gradient(lambda pi: (critique * (pi / critique) * rewards).sum()), true)
    naive = gradient(lambda pi: (critique * (rewards - 0.62) * pi.log()).sum())
    assert naive.tolist() == pytest.approx([-0.002, -0.062, 0.064])
    assert true[0] > 0.09


@pytest.mark.parametrize(
    "variant", [SELF_VERIFICATION, CRITIQUE_GRPO, CRITIQUE_AS_IF_FROM_Q], ids=lambda v: v.name
)
def test_every_baseline_runs_in_our_loop_and_resumes_to_the_same_bits(tiny_policy, variant, tmp_path):
    config = TrainConfig(steps=3, prompts_per_step=8, warmup_steps=1, **LOOKING_BACK)

    def run(folder, steps):
        policy = replace(tiny_policy, model=copy.deepcopy(tiny_policy.model))
        rows = train(
            sampler_of(policy), AccuracyReward(), COUNTDOWN, config, variant=variant, folder=folder,
            resume=True, progress=False,
        )  # fmt: skip
        taken = [row for row, _ in zip(rows, range(steps), strict=False)]
        rows.close()
        return taken, torch.cat([p.detach().flatten() for p in policy.model.parameters()])

    whole, weights = run(tmp_path / "whole", 3)
    run(tmp_path / "parts", 1)
    rest, resumed = run(tmp_path / "parts", 3)
    assert torch.equal(weights, resumed)
    assert rest[-1]["loss"] == whole[-1]["loss"]
    assert whole[-1]["tokens_trained"] == whole[-1]["tokens_sampled"]
    changed = torch.cat([p.detach().flatten() for p in tiny_policy.model.parameters()])
    assert not torch.equal(weights, changed)
    with pytest.raises(CheckpointError, match="variant"):
        policy = replace(tiny_policy, model=copy.deepcopy(tiny_policy.model))
        next(train(sampler_of(policy), AccuracyReward(), COUNTDOWN, config, folder=tmp_path / "parts",
                   resume=True, progress=False))  # fmt: skip


def test_what_a_baseline_cannot_do_is_refused(policy):
    rollout = scripted(critique_rollout, ["3", "3", "3", "3"])
    with pytest.raises(ValueError, match="train_drafts"):
        critique_trained(rollout, GRPO())
    with pytest.raises(ValueError, match="objective"):
        critique_trained(rollout, DAPO(), train_drafts=True)
    with pytest.raises(ValueError, match="stop_at"):
        scripted(critique_rollout, ["3"] * 4, stop_at=1.0)
    config = TrainConfig(steps=1, num_drafts=2, num_refinements=2, draft_ahead=True)
    with pytest.raises(ValueError, match="draft_ahead: critique-grpo"):
        next(train(sampler_of(policy), AccuracyReward(), COUNTDOWN, config, variant=CRITIQUE_GRPO))


def test_the_paper_method_is_the_default_variant(policy):
    assert IGRPO_STEPS.rollout is igrpo_rollout
    assert IGRPO_STEPS.trained is trained_stages


def test_the_committed_policy_gives_verdicts_and_is_no_good_judge_yet():
    """It replies with one of the two words, and is surer of correct answers, .68, than of others, .62."""
    judge = load_policy("tiny-verdicts", device="cpu")
    problems = countdown_problems(128, seed=1, split="held_out", distinct=True)
    asked = [problem for problem in problems for _ in range(4)]
    prompts = [judge.prompt_format.problem_messages(problem.question) for problem in problems]
    answers = sampler_of(judge).sample(prompts, 4).texts
    correct = torch.tensor(AccuracyReward().score(asked, answers).values) == 1
    questions = [problem.question for problem in asked]
    scores = verdict_probabilities(judge, questions, answers, TINY_VERDICTS)
    assert scores[correct].mean() > scores[~correct].mean() + 0.02
    prompts = [TINY_VERDICTS.prompt.refinement_messages(*row) for row in zip(questions, answers, strict=True)]
    words = sampler_of(judge, 1).sample(prompts, 1).texts
    assert sum(word in "01" for word in words) > 0.99 * len(words)
