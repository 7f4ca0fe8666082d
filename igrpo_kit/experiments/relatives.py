"""Relatives of iGRPO as variants of our training step, and objectives that control the size of the step.

GDPO and SGPO change the advantages of the completions, and MGRPO trains a second layer that corrects the
answers of the first. They are simplified implementations with our components, not the authors' systems; each
docstring lists what was left out, and says where only the abstract was read. iGRPO:
https://arxiv.org/abs/2602.09000.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from igrpo_kit.core.advantages import dead_groups, gdpo_advantages, sgpo_rewards
from igrpo_kit.core.losses import GRPO, Objective
from igrpo_kit.core.selection import Selector
from igrpo_kit.policies.samplers.sampler import Sampler
from igrpo_kit.tasks.problem import Problem
from igrpo_kit.tasks.rewards import RewardLike
from igrpo_kit.training.config import Variant
from igrpo_kit.training.rollout import Rollout, Stage, question_prompts, sample_stage
from igrpo_kit.training.update import Trained, trained_stages


@dataclass(frozen=True)
class HalvedGRPO(GRPO):
    """GRPO with half the gradient. AdamW divides it by its recent size, so only gradient clipping notices."""

    def advantages(self, rewards: Float[Tensor, "P G"]) -> Float[Tensor, "P G"]:
        """Half of GRPO's; see `group_advantages`."""
        return super().advantages(rewards) / 2


@dataclass(frozen=True)
class LiveGroupsGRPO(GRPO):
    """GRPO with the mean over the live groups of a step, so that dead groups do not shrink the gradient."""

    def advantages(self, rewards: Float[Tensor, "P G"]) -> Float[Tensor, "P G"]:
        """GRPO's times P / (number of live groups), so that a mean over P becomes one over live groups."""
        dead = dead_groups(rewards)
        return super().advantages(rewards) * (len(dead) / max(1, int((~dead).sum())))


def gdpo_trained(rollout: Rollout, objective: Objective, *, train_drafts: bool = False) -> list[Trained]:
    """iGRPO's trained completions with `gdpo_advantages` of the rewards that a `WeightedSum` adds up.

    GDPO, https://arxiv.org/abs/2601.05242, with GRPO's or iGRPO's rollout. The objective gives ratio, clip,
    and reduction; its own advantages are not used. The batch over which GDPO divides is one stage of a step.

    Args:
        rollout: both stages of one step.
        objective: any objective.
        train_drafts: also train the drafts.

    Raises:
        ValueError: the reward is not a `WeightedSum`.
    """
    stages = [rollout.refinements]
    if train_drafts:
        assert rollout.drafts is not None
        stages.append(rollout.drafts)
    return [Trained(stage.samples, _gdpo_advantages(stage), objective) for stage in stages]


def _gdpo_advantages(stage: Stage) -> Float[Tensor, "P G"]:
    if not stage.scores.parts:
        raise ValueError("reward: GDPO normalizes each reward of a sum, use a WeightedSum")
    rewards = [torch.tensor(values).view_as(stage.rewards) for _, values in stage.scores.parts]
    return gdpo_advantages(torch.stack(rewards), [weight for weight, _ in stage.scores.parts])


def prefix_score(completion: str, answer: str) -> float:
    """Fraction of the longer of two texts up to the first character in which they differ, from 0 to 1."""
    differ = [a != b for a, b in zip(completion, answer, strict=False)]
    agreed = differ.index(True) if any(differ) else len(differ)
    return agreed / max(len(completion), len(answer))


def sgpo_trained(rollout: Rollout, objective: Objective, *, train_drafts: bool = False) -> list[Trained]:
    """iGRPO's trained completions, with `sgpo_rewards` in the groups that have no correct completion.

    SGPO, https://arxiv.org/abs/2505.11595, with GRPO's or iGRPO's rollout. There, a language model judges one
    reasoning step after another. Here, a step is a character, and it is correct as long as the completion
    agrees with the reference answer (`prefix_score`): another way to a correct answer counts as incorrect
    from where it departs. See `sgpo_rewards` for what else was left out.

    Args:
        rollout: both stages of one step.
        objective: computes the advantages.
        train_drafts: also train the drafts.
    """

    def colored(stage: Stage, answers: list[str]) -> Tensor:
        scores = [prefix_score(*pair) for pair in zip(stage.samples.texts, answers, strict=True)]
        return sgpo_rewards(stage.rewards, stage.correct, torch.tensor(scores).view_as(stage.rewards))

    return trained_stages(with_rewards(rollout, colored), objective, train_drafts=train_drafts)


def with_rewards(rollout: Rollout, score: Callable[[Stage, list[str]], Float[Tensor, "P n"]]) -> Rollout:
    """The rollout with other rewards to train on; statuses and the record keep those of the reward.

    Args:
        rollout: both stages of one step.
        score: a stage and the reference answer of each of its rows -> rewards [P, n].
    """

    def scored(stage: Stage) -> Stage:
        answers = [problem.answer for problem in rollout.problems for _ in range(stage.rewards.shape[1])]
        return replace(stage, rewards=score(stage, answers))

    drafts = None if rollout.drafts is None else scored(rollout.drafts)
    return replace(rollout, drafts=drafts, refinements=scored(rollout.refinements))


@dataclass(frozen=True)
class LayeredRollout(Rollout):
    """A rollout with one row per answer: P = problems * N, one draft per row, which is the selected one."""

    answers_per_problem: int
    """N: so many consecutive rows belong to one problem"""


def mgrpo_rollout(
    sampler: Sampler, reward: RewardLike, problems: Sequence[Problem],
    *, num_drafts: int, num_refinements: int, select: str | Selector = "best",
    stop_at: float | None = None, max_draft_tokens: int | None = None,
) -> LayeredRollout:  # fmt: skip
    """Layer 1: N answers to q. Layer 2: G corrections of *each*, conditioned on q and that answer (MGRPO).

    These are N + N * G completions per problem; N = 2 and G = 3 make 8. In the metrics of a step, transitions
    and copies are relative to the answer that was corrected, `stage1/dead_groups` is 1 by construction, and
    there is no best draft. See `mgrpo_trained`.

    Args:
        sampler: samples answers and corrections.
        reward: scores both.
        problems: P problems.
        num_drafts: N, at least 2.
        num_refinements: G.
        select: not used, because every answer is corrected.
        stop_at: must be None.
        max_draft_tokens: as in `igrpo_rollout`.

    Raises:
        ValueError: N < 2, or `stop_at` is given.
    """
    if num_drafts < 2 or stop_at is not None:
        raise ValueError("num_drafts, stop_at: MGRPO trains its first answers as a group, all of them")
    rows, policy = [problem for problem in problems for _ in range(num_drafts)], sampler.policy
    answers = sample_stage(sampler, reward, rows, prompts=question_prompts(sampler, rows), num_samples=1)
    prompts = [
        policy.prompt_format.refinement_messages(
            problem.question, text, max_draft_tokens=max_draft_tokens, tokenizer=policy.tokenizer
        )
        for problem, text in zip(rows, answers.samples.texts, strict=True)
    ]
    corrections = sample_stage(sampler, reward, rows, prompts=prompts, num_samples=num_refinements)
    return LayeredRollout(rows, answers, torch.zeros(len(rows), dtype=torch.int64), corrections, num_drafts)


def mgrpo_trained(rollout: Rollout, objective: Objective, *, train_drafts: bool = False) -> list[Trained]:
    """Both layers: the answers as groups of N on q, and the corrections as groups of G on q and their answer.

    Multi-layer GRPO, https://arxiv.org/abs/2506.04746, from its abstract. Simplifications: one update is the
    mean over the completions of both layers (there, a GRPO process for each layer); all corrections are
    trained (an unofficial implementation says that the paper keeps only verified ones); the prompt of the
    second layer is the policy's refinement prompt, without a request to find the error.

    iGRPO differs in three ways: it shows only the best draft, it does not train drafts, and it samples one
    group of refinements per problem.

    Args:
        rollout: the result of `mgrpo_rollout`.
        objective: computes the advantages of both layers.
        train_drafts: must be True.

    Raises:
        ValueError: `train_drafts` is False, or the rollout is not that of MGRPO.
    """
    if not isinstance(rollout, LayeredRollout) or rollout.drafts is None or not train_drafts:
        raise ValueError("train_drafts: MGRPO trains its first answers too, set it to True")
    first = rollout.drafts
    grouped = replace(first, rewards=first.rewards.view(-1, rollout.answers_per_problem))
    [answers] = trained_stages(replace(rollout, refinements=grouped), objective)
    # The samples have one prompt per answer, so their advantages are a column.
    return [
        *trained_stages(rollout, objective),
        Trained(first.samples, answers.advantages.view(-1, 1), objective),
    ]


GDPO = Variant("gdpo", trained=gdpo_trained)
SGPO = Variant("sgpo", trained=sgpo_trained)
MGRPO = Variant("mgrpo", mgrpo_rollout, mgrpo_trained)
