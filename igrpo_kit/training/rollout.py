"""The two stages of iGRPO for any sampler and any reward (Algorithm 1, lines 5-15), without gradients.

Stage 1 samples N drafts per problem, scores them and selects one. Stage 2 samples G refinements from the
refinement prompt q' and scores them. GRPO is the case N = 0: Stage 2 alone, from q. The wording of q and q'
is a property of the sampler's policy (`Policy.prompt_format`).

Algorithm and equations: https://arxiv.org/abs/2602.09000.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from igrpo_kit.core.prompts import Messages
from igrpo_kit.core.selection import NO_DRAFT, Selector, select_drafts
from igrpo_kit.policies.samplers.sampler import Sampler, Samples
from igrpo_kit.tasks.problem import Problem
from igrpo_kit.tasks.rewards import RewardLike, Scores, as_reward

NOT_SAMPLED = "not_sampled"
"""Status of a draft that early stopping skipped. Its reward is NaN, so no selector can choose it."""


@dataclass(frozen=True)
class Stage:
    """One stage's samples and their rewards; `samples` and `scores` hold the rows of `rewards` flattened."""

    samples: Samples
    scores: Scores
    rewards: Float[Tensor, "P n"]
    seconds_sampling: float
    seconds_scoring: float
    full_reward: float

    @property
    def correct(self) -> Bool[Tensor, "P n"]:
        """True for completions that reached the full reward; False for those that could not be scored."""
        return self.rewards >= self.full_reward


@dataclass(frozen=True)
class Rollout:
    """The result of both stages. `refinements` is the trained group, sampled from q' (GRPO: from q)."""

    problems: list[Problem]
    drafts: Stage | None
    """None for GRPO"""
    selected: Int[Tensor, " P"] | None
    """index of the draft in each problem's q', NO_DRAFT if there is none; None for GRPO"""
    refinements: Stage

    @property
    def shown_rewards(self) -> Float[Tensor, " P"] | None:
        """Reward of the draft in each problem's q', NaN if there is none; None for GRPO."""
        if self.drafts is None or self.selected is None:
            return None
        picked = self.drafts.rewards.gather(1, self.selected.clamp(min=0)[:, None]).squeeze(1)
        return picked.masked_fill(self.selected == NO_DRAFT, torch.nan)

    def draft_text(self, problem: int) -> str | None:
        """Full text of the draft selected for this problem (q' may hold only its end); None without one."""
        if self.drafts is None or self.selected is None or self.selected[problem] == NO_DRAFT:
            return None
        return self.drafts.samples.texts[problem * self.drafts.rewards.shape[1] + int(self.selected[problem])]


def score_stage(
    samples: Samples, reward: RewardLike, problems: Sequence[Problem], seconds_sampling: float
) -> Stage:
    """Score completions against their problems. This is always R(q, o): the reward is never given q'.

    Args:
        samples: n completions per problem, consecutive rows.
        reward: scores each completion.
        problems: the P problems, in the order of the prompts.
        seconds_sampling: time spent on sampling, recorded in the stage.

    Returns:
        The stage, with rewards [P, n].
    """
    start, reward = perf_counter(), as_reward(reward)
    rows = [problem for problem in problems for _ in range(samples.num_samples)]
    scores = reward.score(rows, samples.texts)
    rewards = torch.tensor(scores.values, dtype=torch.float32).view(len(problems), samples.num_samples)
    return Stage(samples, scores, rewards, seconds_sampling, perf_counter() - start, reward.full_reward)


def sample_stage(
    sampler: Sampler,
    reward: RewardLike,
    problems: Sequence[Problem],
    *,
    prompts: Sequence[Messages],
    num_samples: int,
) -> Stage:
    """Sample `num_samples` completions per prompt and score each against its problem.

    Args:
        sampler: samples the completions.
        reward: scores them.
        problems: one per prompt.
        prompts: q or q' of each problem.
        num_samples: completions per prompt, n.

    Returns:
        The stage, with rewards [P, n].
    """
    start = perf_counter()
    samples = sampler.sample(prompts, num_samples)
    return score_stage(samples, reward, problems, perf_counter() - start)


def question_prompts(sampler: Sampler, problems: Sequence[Problem]) -> list[Messages]:
    """q of each problem, in the prompt format of the sampler's policy."""
    return [sampler.policy.prompt_format.problem_messages(problem.question) for problem in problems]


def sample_drafts(
    sampler: Sampler,
    reward: RewardLike,
    problems: Sequence[Problem],
    *,
    num_drafts: int,
    stop_at: float | None = None,
) -> Stage:
    """Stage 1: N drafts per problem from q (Eq. 8).

    With `stop_at`, drafts are sampled one at a time, in up to N rounds instead of one, until a draft of the
    problem has this reward. The distribution of the best draft's reward is the same, with fewer tokens
    sampled. Of several drafts with full reward the first is kept, as in the default tie rule. Selectors other
    than "best" and "first" then choose from a different set of drafts.

    Args:
        sampler: samples the drafts.
        reward: scores them.
        problems: P problems.
        num_drafts: N.
        stop_at: the highest possible reward; None samples all drafts at once.

    Returns:
        The stage, with rewards [P, N]. Drafts that were not sampled have reward NaN and status `NOT_SAMPLED`.
    """
    prompts = question_prompts(sampler, problems)
    if stop_at is None:
        return sample_stage(sampler, reward, problems, prompts=prompts, num_samples=num_drafts)
    open_problems, rounds = list(range(len(problems))), []
    for _ in range(num_drafts):
        part, asked = [problems[i] for i in open_problems], [prompts[i] for i in open_problems]
        stage = sample_stage(sampler, reward, part, prompts=asked, num_samples=1)
        rounds.append((open_problems, stage))
        open_problems = [
            i
            for i, value in zip(open_problems, stage.scores.values, strict=True)
            if not value >= stop_at  # NaN, a draft that could not be scored, does not stop
        ]
        if not open_problems:
            break
    return _gather_rounds(rounds, len(problems), num_drafts)


def _gather_rounds(rounds: list[tuple[list[int], Stage]], P: int, N: int) -> Stage:
    """Combine rounds of one draft each into one [P, N] stage; drafts that were not sampled are empty rows."""
    rows = [i * N + n for n, (problems, _) in enumerate(rounds) for i in problems]
    stages = [stage for _, stage in rounds]

    def tensor(name: str, fill: float) -> Tensor:
        sampled = [row for stage in stages for row in getattr(stage.samples, name)]
        padded = pad_sequence(sampled, batch_first=True, padding_value=fill)
        out = padded.new_full((P * N, padded.shape[1]), fill)
        out[rows] = padded
        return out

    def listed(values: list, fill: float | str) -> list:
        found = dict(zip(rows, values, strict=True))
        return [found.get(row, fill) for row in range(P * N)]

    first = stages[0].samples
    scores = Scores(
        listed([v for s in stages for v in s.scores.values], float("nan")),
        listed([v for s in stages for v in s.scores.statuses], NOT_SAMPLED),
    )
    return Stage(
        Samples(
            prompt_ids=first.prompt_ids,
            completion_ids=tensor("completion_ids", 0),
            mask=tensor("mask", False),
            log_probs=tensor("log_probs", 0.0),
            entropies=None if first.entropies is None else tensor("entropies", 0.0),
            texts=listed([t for s in stages for t in s.samples.texts], ""),
            finish_reasons=listed([r for s in stages for r in s.samples.finish_reasons], NOT_SAMPLED),
        ),
        scores,
        torch.tensor(scores.values, dtype=torch.float32).view(P, N),
        sum(stage.seconds_sampling for stage in stages),
        sum(stage.seconds_scoring for stage in stages),
        stages[0].full_reward,
    )


def igrpo_rollout(
    sampler: Sampler,
    reward: RewardLike,
    problems: Sequence[Problem],
    *,
    num_drafts: int,
    num_refinements: int,
    select: str | Selector = "best",
    max_draft_tokens: int | None = None,
    stop_at: float | None = None,
) -> Rollout:
    """Both stages for P problems: N drafts, one selected (Eq. 2), G refinements of it (Eqs. 3 and 11).

    N = 0 is GRPO with groups of G from q. The question is never truncated. To sample both stages in one
    batch, see `rollout_with_next_drafts`.

    Args:
        sampler: samples drafts and refinements.
        reward: scores both.
        problems: P problems.
        num_drafts: N.
        num_refinements: G.
        select: name of a selector, or a callable.
        max_draft_tokens: q' holds at most the last `max_draft_tokens` tokens of the draft; None holds all.
        stop_at: see `sample_drafts`.

    Raises:
        ValueError: num_drafts < 0, num_refinements < 1, or an unknown selector.
    """
    problems = list(problems)
    if num_drafts < 0 or num_refinements < 1:
        raise ValueError(f"num_drafts >= 0 and num_refinements >= 1, got {num_drafts}, {num_refinements}")
    drafts = selected = None
    prompts = question_prompts(sampler, problems)
    if num_drafts:
        drafts = sample_drafts(sampler, reward, problems, num_drafts=num_drafts, stop_at=stop_at)
        selected = select_drafts(drafts.rewards, select)
        prompts = _refinement_prompts(sampler, problems, drafts, selected, max_draft_tokens)
    refinements = sample_stage(sampler, reward, problems, prompts=prompts, num_samples=num_refinements)
    return Rollout(problems, drafts, selected, refinements)


def _refinement_prompts(
    sampler: Sampler,
    problems: Sequence[Problem],
    drafts: Stage,
    selected: Tensor,
    max_draft_tokens: int | None,
) -> list[Messages]:
    """q' of each problem (Eq. 3); q if no draft was selected."""
    N, policy, prompts = drafts.rewards.shape[1], sampler.policy, question_prompts(sampler, problems)
    for i, (problem, choice) in enumerate(zip(problems, selected.tolist(), strict=True)):
        if choice != NO_DRAFT:
            prompts[i] = policy.prompt_format.refinement_messages(
                problem.question,
                drafts.samples.texts[i * N + choice],
                max_draft_tokens=max_draft_tokens,
                tokenizer=policy.tokenizer,
            )
    return prompts


def rollout_with_next_drafts(
    sampler: Sampler,
    reward: RewardLike,
    problems: Sequence[Problem],
    *,
    next_problems: Sequence[Problem],
    drafts: Stage,
    num_refinements: int,
    select: str | Selector = "best",
    max_draft_tokens: int | None = None,
) -> tuple[Rollout, Stage | None]:
    """Stage 2 for these problems and, in the same batch, Stage 1 for the problems of the next step.

    The next drafts do not depend on these refinements, so one call to the sampler can do both, and the two
    stages do not wait for each other. As a result, drafts are one update old when they are used. This needs
    no correction: drafts have no gradient and no importance ratio, and the ratio of the refinements is
    conditioned on the q' they were sampled from. If N differs from G, the two stages are separate batches.

    Args:
        sampler: samples refinements and drafts.
        reward: scores both.
        problems: P problems of this step.
        next_problems: problems of the next step; may be empty.
        drafts: Stage 1 of `problems`.
        num_refinements: G.
        select: name of a selector, or a callable.
        max_draft_tokens: as in `igrpo_rollout`.

    Returns:
        The rollout of this step, and the drafts of the next one (None without next problems).
    """
    problems, next_problems = list(problems), list(next_problems)
    selected, N = select_drafts(drafts.rewards, select), drafts.rewards.shape[1]
    prompts = _refinement_prompts(sampler, problems, drafts, selected, max_draft_tokens)
    if num_refinements != N or not next_problems:
        refinements = sample_stage(sampler, reward, problems, prompts=prompts, num_samples=num_refinements)
        ahead = sample_drafts(sampler, reward, next_problems, num_drafts=N) if next_problems else None
    else:
        start = perf_counter()
        both = sampler.sample([*prompts, *question_prompts(sampler, next_problems)], N)
        seconds = perf_counter() - start
        share = len(prompts) / len(both.prompt_ids)
        refinements = score_stage(_of_prompts(both, 0, len(prompts)), reward, problems, seconds * share)
        rest = _of_prompts(both, len(prompts), len(both.prompt_ids))
        ahead = score_stage(rest, reward, next_problems, seconds * (1 - share))
    return Rollout(problems, drafts, selected, refinements), ahead


def _of_prompts(samples: Samples, start: int, stop: int) -> Samples:
    """The rows of some prompts, truncated to the longest completion among them."""
    rows = slice(start * samples.num_samples, stop * samples.num_samples)
    width = int(samples.mask[rows].sum(dim=1).max())
    return Samples(
        prompt_ids=samples.prompt_ids[start:stop],
        completion_ids=samples.completion_ids[rows, :width].clone(),
        mask=samples.mask[rows, :width].clone(),
        log_probs=samples.log_probs[rows, :width].clone(),
        entropies=None if samples.entropies is None else samples.entropies[rows, :width].clone(),
        texts=samples.texts[rows],
        finish_reasons=samples.finish_reasons[rows],
    )
