"""Each planted fault does what it says, and a case trained again gives the committed rows."""

import dataclasses

import pytest
import torch

from igrpo_kit.core.losses import GRPO
from igrpo_kit.core.prompts import PromptFormat
from igrpo_kit.core.rows import read_rows
from igrpo_kit.experiments.faults import (
    CASES,
    FAULTS,
    SYNC_EVERY,
    BatchNormalized,
    ColderSampler,
    StaleSampler,
    after_question_trained,
    length_bonus,
    padding_trained,
    read_flight,
    record_case,
    without_eos_trained,
)
from igrpo_kit.policies.load import load_policy
from igrpo_kit.policies.samplers.hf import HFSampler
from igrpo_kit.policies.samplers.sampler import SamplingSettings
from igrpo_kit.policies.samplers.scripted import ScriptedSampler
from igrpo_kit.tasks.problem import Problem
from igrpo_kit.tasks.rewards import AccuracyReward
from igrpo_kit.tasks.sets import addition_problems
from igrpo_kit.training.rollout import igrpo_rollout
from igrpo_kit.training.update import trained_stages, update

FORMAT = PromptFormat(system=None, refinement="{question}<{draft}>")
SETTINGS = SamplingSettings(max_new_tokens=24)


def rollout_of(texts):
    problems = [Problem("a", "11+22=", "33", "addition")]
    sampler = ScriptedSampler(texts, None, prompt_format=FORMAT)
    return igrpo_rollout(sampler, AccuracyReward(), problems, num_drafts=2, num_refinements=2)


ROLLOUT = rollout_of(["31", "33", "33", "5"])


def test_the_colder_sampler_reports_a_temperature_it_does_not_sample_at():
    policy, problems = load_policy("tiny-addition"), addition_problems(8, seed=0)
    prompts = [policy.prompt_format.problem_messages(problem.question) for problem in problems]
    colder = ColderSampler(policy, SETTINGS, seed=1)
    honest = HFSampler(policy, SamplingSettings(max_new_tokens=24, temperature=0.6), seed=1)
    ours, theirs = colder.sample(prompts, 4), honest.sample(prompts, 4)
    assert ours.texts == theirs.texts and torch.equal(ours.log_probs, theirs.log_probs)
    assert colder.settings == SETTINGS


def test_the_stale_sampler_holds_its_weights_until_a_sync_in_25():
    policy = load_policy("tiny-addition")
    sampler = StaleSampler(policy, SETTINGS)
    sampler.sync()  # before the first step
    weight = next(policy.model.parameters())
    held = next(sampler.model.parameters())
    for update_number in range(1, 2 * SYNC_EVERY + 1):
        with torch.no_grad():
            weight += 1
        sampler.sync()
        behind = (weight - held).mean().item()
        assert behind == pytest.approx(update_number % 25, abs=1e-3)
    assert sampler.policy is policy


def test_the_mean_of_the_batch_gives_dead_groups_an_advantage():
    rewards = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    root = 0.75**0.5  # (1 - 1/2) / (std of 1, 1, 0, 0 with ddof=1, which is sqrt(1/3))
    assert torch.allclose(BatchNormalized().advantages(rewards), torch.tensor([[root] * 2, [-root] * 2]))
    assert GRPO().advantages(rewards).abs().sum() == 0


def test_the_eos_token_of_each_completion_is_not_trained():
    (sound,), (faulty,) = trained_stages(ROLLOUT, GRPO()), without_eos_trained(ROLLOUT, GRPO())
    assert sound.samples.mask.tolist() == [[True, True, True], [True, True, False]]
    assert faulty.samples.mask.tolist() == [[True, True, False], [True, False, False]]
    cut = dataclasses.replace(ROLLOUT.refinements.samples, finish_reasons=["length", "stop"])
    stage = dataclasses.replace(ROLLOUT.refinements, samples=cut)
    (faulty,) = without_eos_trained(dataclasses.replace(ROLLOUT, refinements=stage), GRPO())
    assert faulty.samples.mask.tolist() == [[True, True, True], [True, False, False]]


def test_the_padding_is_trained():
    (faulty,) = padding_trained(ROLLOUT, GRPO())
    assert faulty.samples.mask.tolist() == [[True] * 3] * 2


def test_the_draft_in_the_prompt_is_trained():
    (faulty,) = after_question_trained(ROLLOUT, GRPO())
    samples = faulty.samples
    (own,) = ROLLOUT.refinements.samples.prompt_ids
    assert "".join(map(chr, own)) == "11+22=<33>"
    assert "".join(map(chr, samples.prompt_ids[0])) == "11+22="
    rows = [row[mask].tolist() for row, mask in zip(samples.completion_ids, samples.mask, strict=True)]
    assert ["".join(map(chr, row[:-1])) for row in rows] == ["<33>33", "<33>5"]  # and the EOS token
    assert samples.mask.sum(dim=1).tolist() == [7, 6]
    assert samples.log_probs[:, :4].tolist() == [[0.0] * 4] * 2
    assert faulty.advantages[0].tolist() == pytest.approx([0.70710678, -0.70710678])


def gradient(model, trained):
    update(model, torch.optim.SGD(model.parameters(), lr=0.0), trained, temperature=1.0, max_grad_norm=1e9)
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def test_trained_draft_tokens_cancel_where_the_completions_of_a_group_are_equally_long():
    """All G rows hold the same draft, and their advantages sum to 0: what is left is the divisor |o|."""
    policy = load_policy("tiny-addition")
    sampler = HFSampler(policy, SETTINGS, seed=3)
    problems = addition_problems(24, seed=5)
    rollout = igrpo_rollout(sampler, AccuracyReward(), problems, num_drafts=2, num_refinements=2)
    mixed = (rollout.refinements.rewards[:, 0] != rollout.refinements.rewards[:, 1]).tolist()
    lengths = rollout.refinements.samples.mask.sum(dim=1).view(-1, 2)
    equal = [i for i, row in enumerate(lengths.tolist()) if row[0] == row[1] and mixed[i]]
    assert equal
    one = igrpo_rollout_of_group(rollout, equal[0])
    (sound,), (faulty,) = trained_stages(one, GRPO()), after_question_trained(one, GRPO())
    share = int(sound.samples.mask[0].sum()) / int(faulty.samples.mask[0].sum())
    assert share < 0.6
    ours, theirs = gradient(policy.model, [sound]), gradient(policy.model, [faulty])
    assert torch.allclose(theirs, share * ours, atol=1e-6 * ours.abs().max().item() + 1e-7)


def igrpo_rollout_of_group(rollout, i):
    """The rollout with problem i alone."""
    parts = {}
    for name in ("drafts", "refinements"):
        stage = getattr(rollout, name)
        n = stage.rewards.shape[1]
        rows, s = slice(i * n, i * n + n), stage.samples
        samples = dataclasses.replace(
            s, prompt_ids=[s.prompt_ids[i]], completion_ids=s.completion_ids[rows], mask=s.mask[rows],
            log_probs=s.log_probs[rows], entropies=None, texts=s.texts[rows],
            finish_reasons=s.finish_reasons[rows],
        )  # fmt: skip
        parts[name] = dataclasses.replace(stage, samples=samples, rewards=stage.rewards[i : i + 1])
    return dataclasses.replace(
        rollout, problems=rollout.problems[i : i + 1], selected=rollout.selected[i : i + 1], **parts
    )


def test_length_is_paid_whether_the_answer_is_correct_or_not():
    problems = [Problem("a", "11+22=", "33", "addition")] * 3
    scores = length_bonus(problems, ["33", "03,03=33", "034"])
    assert scores.values == pytest.approx([1.04, 1.16, 0.06])
    assert scores.statuses[:2] == ["correct", "correct"] and scores.statuses[2] != "correct"


def test_every_case_has_a_fault_of_its_own():
    assert sorted(CASES.values()) == sorted(FAULTS)


@pytest.mark.parametrize("case", ["e", "h"])
def test_a_case_trained_again_gives_the_committed_rows(case, tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        record_case(case, tmp_path, steps=2)
    finally:
        torch.set_num_threads(threads)
    committed, samples = read_flight(case)
    for ours, theirs in zip(read_rows(tmp_path / "metrics.jsonl"), committed.metrics, strict=False):
        gap, noted = ours.pop("sampler_gap"), theirs["sampler_gap"]
        assert ours == pytest.approx({k: v for k, v in theirs.items() if k != "sampler_gap"}, rel=1e-4)
        assert gap == pytest.approx(noted, rel=1e-3, abs=1e-6)  # of a sound run it is rounding alone
    assert list(read_rows(tmp_path / "samples.jsonl")) == samples[:4]


def test_an_unknown_case_is_an_error():
    with pytest.raises(FileNotFoundError):
        read_flight("z")
