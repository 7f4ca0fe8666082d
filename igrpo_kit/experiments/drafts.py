"""Training steps that ask when a draft pays: each changes one thing about iGRPO or GRPO (lesson 11).

All of them sample N + G completions per problem, as iGRPO does.
"""

import random
from collections.abc import Sequence
from dataclasses import replace
from time import perf_counter
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from igrpo_kit.core.advantages import advantages_of_scored, dead_groups
from igrpo_kit.core.losses import Objective
from igrpo_kit.core.selection import NO_DRAFT, select_best_draft, select_no_draft
from igrpo_kit.experiments.baselines import critique_trained
from igrpo_kit.experiments.relatives import with_rewards
from igrpo_kit.policies.samplers.sampler import Sampler
from igrpo_kit.tasks.cipher import right_digits
from igrpo_kit.tasks.problem import Problem
from igrpo_kit.tasks.rewards import RewardLike
from igrpo_kit.training.config import Variant
from igrpo_kit.training.rollout import (
    Rollout,
    Stage,
    igrpo_rollout,
    question_prompts,
    sample_drafts,
    sample_stage,
    score_stage,
)
from igrpo_kit.training.update import Trained, trained_stages

TAKEN_OFF = 1 / 8
"""share of live groups among a step's drafts from which on no refinements are needed"""


def select_best_until_taken_off(rewards: Float[Tensor, "P N"]) -> Int[Tensor, " P"]:
    """The best draft of each problem, or no draft at all once `TAKEN_OFF` of the draft groups are live."""
    live = (~dead_groups(rewards)).float().mean()
    return select_no_draft(rewards) if live >= TAKEN_OFF else select_best_draft(rewards)


def drafts_then_grpo_rollout(
    sampler: Sampler, reward: RewardLike, problems: Sequence[Problem], **options: Any
) -> Rollout:
    """iGRPO while drafts have no gradient of their own, then N + G completions of q, as GRPO samples them.

    The rule `select_best_until_taken_off` is applied in each step anew, so it needs no hand-picked step.
    Arguments are those of `igrpo_rollout`; `select` is not used.
    """
    return igrpo_rollout(sampler, reward, problems, **{**options, "select": select_best_until_taken_off})


def drafts_then_grpo_trained(
    rollout: Rollout, objective: Objective, *, train_drafts: bool = False
) -> list[Trained]:
    """The refinements as in iGRPO; where no draft was shown, drafts and other completions as one group of q.

    Args:
        rollout: the result of `drafts_then_grpo_rollout`.
        objective: computes the advantages.
        train_drafts: not used; drafts are trained exactly where no draft was shown.
    """
    drafts, second = rollout.drafts, rollout.refinements
    assert drafts is not None and rollout.selected is not None
    if (rollout.selected != NO_DRAFT).any():
        return trained_stages(rollout, objective)
    group = torch.cat([drafts.rewards, second.rewards], dim=1)
    first, rest = advantages_of_scored(group, objective.advantages).tensor_split([drafts.rewards.shape[1]], 1)
    return [Trained(drafts.samples, first, objective), Trained(second.samples, rest, objective)]


def foreign_draft_rollout(
    sampler: Sampler, reward: RewardLike, problems: Sequence[Problem],
    *, num_drafts: int, num_refinements: int, **options: Any,
) -> Rollout:  # fmt: skip
    """The control in which each problem is shown the first draft of *another* problem, the previous one.

    Metrics that compare a refinement with its draft (copied, repaired) then mean nothing.

    Args:
        sampler: samples both stages.
        reward: scores both.
        problems: P problems, at least 2.
        num_drafts: N.
        num_refinements: G.
        options: other arguments of `igrpo_rollout`, not used.
    """
    problems, policy = list(problems), sampler.policy
    drafts = sample_drafts(sampler, reward, problems, num_drafts=num_drafts)
    firsts = drafts.samples.texts[::num_drafts]
    prompts = [
        policy.prompt_format.refinement_messages(problem.question, text, tokenizer=policy.tokenizer)
        for problem, text in zip(problems, firsts[-1:] + firsts[:-1], strict=True)
    ]
    second = sample_stage(sampler, reward, problems, prompts=prompts, num_samples=num_refinements)
    return Rollout(problems, drafts, torch.zeros(len(problems), dtype=torch.int64), second)


def prefix_rollout(
    sampler: Sampler, reward: RewardLike, problems: Sequence[Problem],
    *, num_drafts: int, num_refinements: int, **options: Any,
) -> Rollout:  # fmt: skip
    """GRPO on the rest of a correct answer whose beginning is given (PrefixRL, arXiv 2601.18795).

    The beginning is 40 to 80 % of the reference answer, always the same for one question; only the rest is
    sampled and trained. Simplifications: the method takes its prefixes from correct answers that the policy
    found earlier, which costs samples (1 / p each) that are not counted here, and tunes their length.

    Args:
        sampler: samples the rest.
        reward: scores beginning and rest together.
        problems: P problems with their reference answers.
        num_drafts: must be 0.
        num_refinements: completions per problem.
        options: other arguments of `igrpo_rollout`, not used.

    Raises:
        ValueError: there are drafts.
    """
    if num_drafts:
        raise ValueError(f"num_drafts: the prefix stands in place of drafts, use 0, got {num_drafts}")
    problems, start = list(problems), perf_counter()
    shares = [random.Random(problem.question).uniform(0.4, 0.8) for problem in problems]
    begun = [p.answer[: round(share * len(p.answer))] for p, share in zip(problems, shares, strict=True)]
    prompts = [
        [*prompt, {"role": "assistant", "content": text}]
        for prompt, text in zip(question_prompts(sampler, problems), begun, strict=True)
    ]
    rest = sampler.sample(prompts, num_refinements)
    seconds = perf_counter() - start
    whole = [begun[row // num_refinements] + text for row, text in enumerate(rest.texts)]
    return Rollout(problems, None, None, score_stage(replace(rest, texts=whole), reward, problems, seconds))


def partial_credit_trained(
    rollout: Rollout, objective: Objective, *, train_drafts: bool = False
) -> list[Trained]:
    """The trained completions with the fraction of right digits as their reward (`cipher.right_digits`).

    Metrics and evaluations keep the binary reward.

    Args:
        rollout: of problems of the revision cipher.
        objective: computes the advantages.
        train_drafts: also train the drafts.
    """

    def credited(stage: Stage, answers: list[str]) -> Tensor:
        credit = [right_digits(*pair) for pair in zip(stage.samples.texts, answers, strict=True)]
        return torch.tensor(credit).view_as(stage.rewards)

    return trained_stages(with_rewards(rollout, credited), objective, train_drafts=train_drafts)


DRAFTS_THEN_GRPO = Variant("drafts-then-grpo", drafts_then_grpo_rollout, drafts_then_grpo_trained)
FOREIGN_DRAFT = Variant("foreign-draft", foreign_draft_rollout)
PREFIX = Variant("prefix", prefix_rollout)
PARTIAL_CREDIT = Variant("partial-credit", trained=partial_credit_trained)
CONSOLIDATED = Variant("consolidated", trained=critique_trained)
"""Refinements trained as answers to q, with the capped weights of `ShapedOffPolicy`, in one group with the
drafts: after SAGE (https://arxiv.org/abs/2602.03143) and ERL (https://arxiv.org/abs/2602.13949), which refine
only problems without a correct answer and have the model write a hint or reflection first."""
