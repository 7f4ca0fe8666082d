"""Relatives of iGRPO: what they sample, which advantages they give, and their names in a YAML experiment."""

import copy
import re
from dataclasses import replace

import nbformat
import pytest
import torch

from igrpo_kit import core, tasks
from igrpo_kit.core.data import lessons_path
from igrpo_kit.core.losses import ABCGRPO, GRPO
from igrpo_kit.core.prompts import PromptFormat
from igrpo_kit.core.selection import select_first_draft
from igrpo_kit.experiments.experiment import OBJECTIVES, VARIANTS, read_experiment
from igrpo_kit.experiments.relatives import (
    GDPO,
    MGRPO,
    SGPO,
    HalvedGRPO,
    LiveGroupsGRPO,
    gdpo_trained,
    mgrpo_rollout,
    mgrpo_trained,
    prefix_score,
    sgpo_trained,
)
from igrpo_kit.policies.samplers.hf import HFSampler
from igrpo_kit.policies.samplers.sampler import SamplingSettings
from igrpo_kit.policies.samplers.scripted import ScriptedSampler
from igrpo_kit.tasks.problem import Problem
from igrpo_kit.tasks.rewards import AccuracyReward, WeightedSum, as_reward
from igrpo_kit.tasks.sets.generated import countdown_problems
from igrpo_kit.training.config import TrainConfig
from igrpo_kit.training.loop import train
from igrpo_kit.training.metrics import rollout_metrics
from igrpo_kit.training.rollout import igrpo_rollout
from igrpo_kit.training.update import trained_stages, update

FORMAT = PromptFormat(system=None, refinement="{question}[{draft}]")
PROBLEM = Problem("a", "3,7,5:26", "3*7+5", "countdown")
COUNTDOWN = countdown_problems(64, seed=0)
SHORT = as_reward(lambda problems, texts: [float(len(text) < 3) for text in texts])
TWO_GROUPS = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])


def scripted(texts, *, rollout=igrpo_rollout, reward=None, problems=(PROBLEM,), **budget):
    sampler = ScriptedSampler(texts, None, prompt_format=FORMAT)
    return rollout(sampler, reward or AccuracyReward(), list(problems), **budget)


def asked(stage):
    return ["".join(map(chr, ids)) for ids in stage.samples.prompt_ids]


def sampler_of(policy, seed=0):
    policy = replace(policy, model=copy.deepcopy(policy.model))
    return HFSampler(policy, SamplingSettings(12), seed=seed)


# --- controls of the step size


def test_halved_grpo_by_hand():
    """One right of four: mean .25, sample std .5, so 1.5 and -.5; half of it."""
    got = HalvedGRPO().advantages(TWO_GROUPS)
    assert got.tolist() == [[0.75, -0.25, -0.25, -0.25], [0.0, 0.0, 0.0, 0.0]]


def test_live_groups_grpo_by_hand():
    """One of two groups is live: twice GRPO's advantages; with none live, or all, as GRPO."""
    got = LiveGroupsGRPO().advantages(TWO_GROUPS)
    assert got.tolist() == [[3.0, -1.0, -1.0, -1.0], [0.0, 0.0, 0.0, 0.0]]
    assert LiveGroupsGRPO().advantages(TWO_GROUPS[1:]).tolist() == [[0.0, 0.0, 0.0, 0.0]]
    assert LiveGroupsGRPO().advantages(TWO_GROUPS[:1]).tolist() == [[1.5, -0.5, -0.5, -0.5]]


def test_the_controls_scale_the_gradient_and_nothing_else(tiny_policy):
    """Half of it, and 1 / (live share) of it."""
    sampler = sampler_of(tiny_policy)
    rollout = igrpo_rollout(
        sampler, AccuracyReward(), COUNTDOWN[:16], num_drafts=0, num_refinements=8, select=select_first_draft
    )
    live = (rollout.refinements.rewards.std(dim=1) > 0).sum().item()
    assert 0 < live < 16
    norms = {}
    for kind in (GRPO, HalvedGRPO, LiveGroupsGRPO):
        model = copy.deepcopy(tiny_policy.model)
        row = update(
            model, torch.optim.SGD(model.parameters(), 0.0), trained_stages(rollout, kind()),
            temperature=1.0, max_grad_norm=1e9,
        )  # fmt: skip
        norms[kind] = row["grad_norm"]
    assert norms[HalvedGRPO] / norms[GRPO] == pytest.approx(0.5, rel=1e-5)
    assert norms[LiveGroupsGRPO] / norms[GRPO] == pytest.approx(16 / live, rel=1e-5)


# --- GDPO


def test_gdpo_normalizes_each_reward_of_the_sum():
    """Accuracy 1, 0, 0, 0: 1.5, -.5, -.5, -.5. Brevity 0, 1, 1, 0: -.8660, .8660, .8660, -.8660, weight .5.

    The sum is 1.0670, -.0670, -.0670, -.9330, its sum of squares 2.0179, its std .82015. GRPO normalizes the
    sum of the rewards, 1, .5, .5, 0: 1.2247, 0, 0, -1.2247.
    """
    both = WeightedSum([AccuracyReward(), SHORT], [1.0, 0.5])
    rollout = scripted(["3*7+5", "26", "5", "3+7+5"], reward=both, num_drafts=0, num_refinements=4)
    assert rollout.refinements.rewards.tolist() == [[1.0, 0.5, 0.5, 0.0]]
    [trained] = gdpo_trained(rollout, GRPO())
    expected = torch.tensor([[1.300960, -0.081677, -0.081677, -1.137608]])
    torch.testing.assert_close(trained.advantages, expected, atol=1e-5, rtol=0)
    [summed] = trained_stages(rollout, GRPO())
    torch.testing.assert_close(summed.advantages, torch.tensor([[1.2247449, 0.0, 0.0, -1.2247449]]))


def test_gdpo_needs_rewards_to_keep_apart():
    rollout = scripted(["3*7+5", "26"], num_drafts=0, num_refinements=2)
    with pytest.raises(ValueError, match="WeightedSum"):
        gdpo_trained(rollout, GRPO())
    both = WeightedSum([AccuracyReward(), SHORT], [1.0, 1.0])
    rollout = scripted(["3*7+5", "26", "5", "3*7+5"], reward=both, num_drafts=2, num_refinements=2)
    assert len(gdpo_trained(rollout, GRPO())) == 1
    assert len(gdpo_trained(rollout, GRPO(), train_drafts=True)) == 2


# --- SGPO


@pytest.mark.parametrize(
    ("completion", "score"),
    [("3*7+5", 1.0), ("3*7-5", 0.6), ("3", 0.2), ("7*3+5", 0.0), ("", 0.0), ("3*7+5+5+5+", 0.5)],
)
def test_prefix_score_by_hand(completion, score):
    """The answer is 3*7+5. The fourth is correct in another way: the comparison does not see it."""
    assert prefix_score(completion, "3*7+5") == score


def test_sgpo_makes_a_group_of_incorrect_completions_live():
    """Scores .6, 0 and 0, 0: mean .15, std .3; the group with a correct one is GRPO's: .5, .5, .5, -1.5."""
    texts = ["3*7-5", "5", "7", "7-5", "3*7+5", "5+3*7", "7*3+5", "3*7-5"]
    rollout = scripted(texts, problems=[PROBLEM, PROBLEM], num_drafts=0, num_refinements=4)
    [plain] = trained_stages(rollout, GRPO())
    assert plain.advantages.tolist() == [[0.0] * 4, [0.5, 0.5, 0.5, -1.5]]
    [trained] = sgpo_trained(rollout, GRPO())
    torch.testing.assert_close(
        trained.advantages, torch.tensor([[1.5, -0.5, -0.5, -0.5], [0.5, 0.5, 0.5, -1.5]])
    )
    assert trained.samples is rollout.refinements.samples
    assert rollout.refinements.rewards[0].tolist() == [0.0] * 4  # what is recorded stays the reward


def test_sgpo_colors_the_drafts_that_are_trained():
    texts = ["3*7-5", "5", "3*7+5", "7"]
    rollout = scripted(texts, num_drafts=2, num_refinements=2)
    refinements, drafts = sgpo_trained(rollout, GRPO(), train_drafts=True)
    for trained in (refinements, drafts):
        torch.testing.assert_close(trained.advantages, torch.tensor([[0.70710678, -0.70710678]]))


# --- MGRPO


TEXTS = ["7+5+3", "3*7+5", "3*7+5", "3", "3", "5", "7+3*5", "3*7+5"]
"""two answers, of which the second is correct, and three corrections of each: one right, one right"""


def test_every_answer_is_corrected_by_a_group_of_its_own():
    rollout = scripted(TEXTS, rollout=mgrpo_rollout, num_drafts=2, num_refinements=3)
    assert asked(rollout.drafts) == ["3,7,5:26"] * 2
    assert asked(rollout.refinements) == ["3,7,5:26[7+5+3]", "3,7,5:26[3*7+5]"]
    assert rollout.drafts.rewards.tolist() == [[0], [1]]
    assert rollout.refinements.rewards.tolist() == [[1, 0, 0], [0, 0, 1]]
    row = rollout_metrics(rollout, num_drafts=2)
    assert (row["transitions/repaired"], row["transitions/regressed"]) == (1, 2)
    assert row["copy_rate"] == pytest.approx(1 / 6)


def test_both_layers_are_groups():
    """Corrections 1, 0, 0: mean 1/3, std .57735. Answers 0, 1 are one group: +-.7071, in one column."""
    rollout = scripted(TEXTS, rollout=mgrpo_rollout, num_drafts=2, num_refinements=3)
    corrections, answers = mgrpo_trained(rollout, GRPO(), train_drafts=True)
    high, low = 1.1547005, -0.5773503
    torch.testing.assert_close(corrections.advantages, torch.tensor([[high, low, low], [low, low, high]]))
    torch.testing.assert_close(answers.advantages, torch.tensor([[-0.70710678], [0.70710678]]))
    assert answers.samples is rollout.drafts.samples
    assert corrections.samples is rollout.refinements.samples


def test_the_gradient_of_mgrpo_is_the_mean_over_both_layers(tiny_policy):
    """Each layer alone is GRPO on its own prompts; N of N + N * G completions are answers."""
    sampler = sampler_of(tiny_policy)
    rollout = mgrpo_rollout(sampler, AccuracyReward(), COUNTDOWN[:8], num_drafts=4, num_refinements=3)

    def gradient(trained):
        model = copy.deepcopy(tiny_policy.model)
        optimizer = torch.optim.SGD(model.parameters(), 0.0)
        update(model, optimizer, trained, temperature=1.0, max_grad_norm=1e9, micro_batches=3)
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    corrections, answers = mgrpo_trained(rollout, GRPO(), train_drafts=True)
    samples = answers.samples
    as_groups = replace(answers, samples=replace(samples, prompt_ids=samples.prompt_ids[::4]),
                        advantages=answers.advantages.view(8, 4))  # fmt: skip
    expected = 0.75 * gradient([corrections]) + 0.25 * gradient([as_groups])
    assert expected.norm() > 1e-2
    torch.testing.assert_close(gradient([corrections, answers]), expected, rtol=1e-4, atol=1e-5)


def test_what_mgrpo_cannot_do_is_refused():
    budget = {"num_refinements": 3, "rollout": mgrpo_rollout}
    with pytest.raises(ValueError, match="num_drafts"):
        scripted(TEXTS, num_drafts=1, **budget)
    with pytest.raises(ValueError, match="stop_at"):
        scripted(TEXTS, num_drafts=2, stop_at=1.0, **budget)
    with pytest.raises(ValueError, match="train_drafts"):
        mgrpo_trained(scripted(TEXTS, num_drafts=2, **budget), GRPO())
    with pytest.raises(ValueError, match="train_drafts"):
        mgrpo_trained(scripted(TEXTS, num_drafts=2, num_refinements=2), GRPO(), train_drafts=True)


# --- in experiments


EXPERIMENT = """
name: relatives
title: Relatives
policy: tiny
problems: countdown
reward: accuracy+format
baseline: GRPO-8
max_new_tokens: 12
steps: 2
settings: {prompts_per_step: 8, warmup_steps: 1}
methods:
  GRPO-8: {num_drafts: 0, num_refinements: 8}
  GDPO-8: {num_drafts: 0, num_refinements: 8, variant: gdpo}
  SGPO-8: {num_drafts: 0, num_refinements: 8, variant: sgpo}
  MGRPO 2+2*3: {num_drafts: 2, num_refinements: 3, train_drafts: true, variant: mgrpo}
  ABC-GRPO-8:
    {num_drafts: 0, num_refinements: 8, num_iterations: 2,
     objective: {name: ABCGRPO, negative_clip_high: .inf}}
"""


def test_a_yaml_experiment_names_them_and_they_train(tmp_path, tiny_policy):
    path = tmp_path / "relatives.yaml"
    path.write_text(EXPERIMENT)
    experiment = read_experiment(path)
    variants = [experiment.variant(method) for method in experiment.methods]
    assert variants[1:4] == [GDPO, SGPO, MGRPO]
    assert experiment.config("ABC-GRPO-8", 0).objective == ABCGRPO(negative_clip_high=float("inf"))
    before = torch.cat([p.detach().flatten() for p in tiny_policy.model.parameters()])
    for method in experiment.methods:
        sampler = sampler_of(tiny_policy)
        reward = WeightedSum([AccuracyReward(), SHORT], [1.0, 1.0])
        config, variant = experiment.config(method, 0), experiment.variant(method)
        rows = list(train(sampler, reward, COUNTDOWN, config, variant=variant, progress=False))
        assert rows[-1]["tokens_trained"] == rows[-1]["tokens_sampled"] >= rows[-1]["tokens_live"] > 0
        after = torch.cat([p.detach().flatten() for p in sampler.policy.model.parameters()])
        assert not torch.equal(before, after), method


def test_mgrpo_resumes_to_the_same_bits(tiny_policy, tmp_path):
    config = TrainConfig(steps=3, prompts_per_step=4, num_drafts=2, num_refinements=3, train_drafts=True)

    def run(folder, steps):
        sampler = sampler_of(tiny_policy)
        rows = train(
            sampler, AccuracyReward(), COUNTDOWN, config, variant=MGRPO, folder=folder, resume=True,
            progress=False,
        )  # fmt: skip
        for _ in zip(range(steps), rows, strict=False):
            pass
        rows.close()
        return torch.cat([p.detach().flatten() for p in sampler.policy.model.parameters()])

    whole = run(tmp_path / "whole", 3)
    run(tmp_path / "parts", 1)
    assert torch.equal(run(tmp_path / "parts", 3), whole)


# --- the table of the family in lesson 04


FAMILY = [
    "GRPO", "Dr. GRPO", "DAPO", "GSPO", "CISPO", "RLOO", "GDPO", "ABC-GRPO", "SGPO", "MGRPO", "iGRPO",
    "Self-Verification", "Critique-GRPO", "MURPHY", "TL-GRPO",
]  # fmt: skip


def family_rows():
    cells = nbformat.read(lessons_path() / "solutions" / "04_grpo_by_hand.ipynb", as_version=4).cells
    [table] = [cell.source for cell in cells if cell.id == "the-family"]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in re.findall(r"^\|.*", table, re.M)
    ]
    assert rows[0] == ["method", "what it changes", "in the kit", "source"]
    return rows[2:]


def test_every_name_in_the_table_of_the_family_exists():
    """An objective or variant of an experiment file, or a public name of the kit."""
    tables = {"objective": OBJECTIVES, "variant": VARIANTS}
    rows, named = family_rows(), {"objective": set(), "variant": set()}
    assert [row[0] for row in rows] == FAMILY
    for method, _, in_the_kit, source in rows:
        assert re.fullmatch(r"\[(\d{4}\.\d{5})\]\(https://arxiv\.org/abs/\1\)", source), method
        names = re.findall(r"(\w+ )?`([^`]+)`", in_the_kit)
        assert bool(names) != in_the_kit.startswith("not built: it needs "), method
        for kind, name in names:
            if kind.strip() in tables:
                assert name in tables[kind.strip()], f"{method}: {name}"
                named[kind.strip()].add(name)
            else:
                assert name in {*core.__all__, *tasks.__all__}, f"{method}: {name}"
    assert OBJECTIVES.keys() - named["objective"] == {"HalvedGRPO", "LiveGroupsGRPO"}  # controls
    about_drafts = {
        "consolidated",
        "drafts-then-grpo",
        "foreign-draft",
        "partial-credit",
        "prefix",
    }  # lesson 11
    wrong_on_purpose = {"critique-as-if-from-q"}
    assert VARIANTS.keys() - named["variant"] == about_drafts | wrong_on_purpose
