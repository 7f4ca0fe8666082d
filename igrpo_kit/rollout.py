"""The two stages of iGRPO over any sampler and any reward (Algorithm 1, lines 5-15); no gradients here.

Stage 1 draws N drafts per problem, scores them and selects one. Stage 2 draws G refinements from the
refinement prompt q' and scores them. GRPO is the case N = 0: Stage 2 alone, from q.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from igrpo_kit.problems import Problem
from igrpo_kit.prompts import PAPER_FORMAT, PromptFormat
from igrpo_kit.rewards import Reward, Scores, as_reward
from igrpo_kit.samplers import Messages, Sampler, Samples
from igrpo_kit.selection import NO_DRAFT, select_best_draft

RewardFunction = Callable[[Sequence[Problem], Sequence[str]], Sequence[float]]
"""A user's own reward: rows of problems and completions -> one number each."""

Selector = Callable[[Tensor], Tensor]
"""Rewards [P, N] -> the index of each problem's draft, or NO_DRAFT."""

NOT_DRAWN = "not_drawn"
"""Status of a draft that early stopping saved; its reward is NaN, so no selector can pick it."""


@dataclass(frozen=True)
class Stage:
    """What one stage drew and what it scored; rows of `samples` and `scores` are those of `rewards`, flat."""

    samples: Samples
    scores: Scores
    rewards: Float[Tensor, "P n"]
    seconds_sampling: float
    seconds_scoring: float


@dataclass(frozen=True)
class Rollout:
    """One step's experience. `refinements` is the group that is trained, drafted from q' or, for GRPO, q."""

    problems: list[Problem]
    drafts: Stage | None
    """None for GRPO"""
    selected: Int[Tensor, " P"] | None
    """index of the draft each problem's Stage 2 was shown, NO_DRAFT where none; None for GRPO"""
    refinements: Stage

    def draft_text(self, problem: int) -> str | None:
        """The draft selected for this problem as it was drawn; q' may hold only its end. None without one."""
        if self.drafts is None or self.selected is None or self.selected[problem] == NO_DRAFT:
            return None
        return self.drafts.samples.texts[problem * self.drafts.rewards.shape[1] + int(self.selected[problem])]


def score_stage(
    samples: Samples, reward: Reward | RewardFunction, problems: Sequence[Problem], seconds_sampling: float
) -> Stage:
    """Score completions against their problems: always R(q, o), the reward never sees a refinement prompt."""
    start = perf_counter()
    rows = [problem for problem in problems for _ in range(samples.num_samples)]
    scores = as_reward(reward).score(rows, samples.texts)
    rewards = torch.tensor(scores.values, dtype=torch.float32).view(len(problems), samples.num_samples)
    return Stage(samples, scores, rewards, seconds_sampling, perf_counter() - start)


def sample_stage(
    sampler: Sampler,
    reward: Reward | RewardFunction,
    problems: Sequence[Problem],
    prompts: Sequence[Messages],
    num_samples: int,
) -> Stage:
    """Draw `num_samples` completions per prompt and score each against its problem."""
    start = perf_counter()
    samples = sampler.sample(prompts, num_samples)
    return score_stage(samples, reward, problems, perf_counter() - start)


def sample_drafts(
    sampler: Sampler,
    reward: Reward | RewardFunction,
    problems: Sequence[Problem],
    *,
    num_drafts: int,
    prompt_format: PromptFormat = PAPER_FORMAT,
    stop_at: float | None = None,
) -> Stage:
    """Stage 1: N drafts per problem from q (Eq. 8).

    `stop_at`, the highest reward there is, draws the drafts one by one and stops each problem at its first
    that has it. The best draft's reward is distributed as before, with fewer tokens drawn, in N rounds
    instead of one; of several full-reward drafts the first is always kept, as in the default tie rule. Other
    selectors would choose among other drafts than before. Drafts never drawn have reward NaN and status
    `NOT_DRAWN`.
    """
    prompts = [prompt_format.problem_messages(p.question) for p in problems]
    if stop_at is None:
        return sample_stage(sampler, reward, problems, prompts, num_drafts)
    open_problems, rounds = list(range(len(problems))), []
    for _ in range(num_drafts):
        part = [problems[i] for i in open_problems]
        stage = sample_stage(sampler, reward, part, [prompts[i] for i in open_problems], 1)
        rounds.append((open_problems, stage))
        open_problems = [
            i
            for i, value in zip(open_problems, stage.scores.values, strict=True)
            if not value >= stop_at  # a NaN, a draft that could not be scored, does not stop
        ]
        if not open_problems:
            break
    return _gather_rounds(rounds, len(problems), num_drafts)


def _gather_rounds(rounds: list[tuple[list[int], Stage]], P: int, N: int) -> Stage:
    """One rectangular stage from rounds of one draft each; what was not drawn is an empty row."""
    samples = [stage.samples for _, stage in rounds]
    T = max(s.completion_ids.shape[1] for s in samples)

    def gather(name: str, fill: float) -> Tensor:
        first = getattr(samples[0], name)
        out = torch.full((P * N, T), fill, dtype=first.dtype, device=first.device)
        for n, (where, stage) in enumerate(rounds):
            part = getattr(stage.samples, name)
            out[torch.tensor(where) * N + n, : part.shape[1]] = part
        return out

    texts, reasons = [""] * (P * N), [NOT_DRAWN] * (P * N)
    values, statuses = [float("nan")] * (P * N), [NOT_DRAWN] * (P * N)
    for n, (where, stage) in enumerate(rounds):
        for row, i in enumerate(where):
            texts[i * N + n], reasons[i * N + n] = (
                stage.samples.texts[row],
                stage.samples.finish_reasons[row],
            )
            values[i * N + n], statuses[i * N + n] = stage.scores.values[row], stage.scores.statuses[row]
    return Stage(
        Samples(
            prompt_ids=samples[0].prompt_ids,
            completion_ids=gather("completion_ids", 0),
            mask=gather("mask", False),
            log_probs=gather("log_probs", 0.0),
            entropies=None if samples[0].entropies is None else gather("entropies", 0.0),
            texts=texts,
            finish_reasons=reasons,
        ),
        Scores(values, statuses),
        torch.tensor(values, dtype=torch.float32).view(P, N),
        sum(stage.seconds_sampling for _, stage in rounds),
        sum(stage.seconds_scoring for _, stage in rounds),
    )


def igrpo_rollout(
    sampler: Sampler,
    reward: Reward | RewardFunction,
    problems: Sequence[Problem],
    *,
    num_drafts: int,
    num_refinements: int,
    select: Selector = select_best_draft,
    prompt_format: PromptFormat = PAPER_FORMAT,
    max_draft_tokens: int | None = None,
    tokenizer: Any = None,
    stop_at: float | None = None,
) -> Rollout:
    """Both stages for P problems: N drafts, one selected (Eq. 2), G refinements of it (Eqs. 3 and 11).

    N = 0 is GRPO with groups of G from q. The question is never cut; a draft is, to its last
    `max_draft_tokens` by `tokenizer`. `stop_at` makes Stage 1 cheaper, see `sample_drafts`; drafting one
    step ahead makes both stages one batch, see `rollout_with_next_drafts`.

    Raises ValueError for num_drafts < 0 or num_refinements < 1.
    """
    problems = list(problems)
    if num_drafts < 0 or num_refinements < 1:
        raise ValueError(f"num_drafts >= 0 and num_refinements >= 1, got {num_drafts}, {num_refinements}")
    if num_drafts == 0:
        prompts = [prompt_format.problem_messages(p.question) for p in problems]
        return Rollout(
            problems, None, None, sample_stage(sampler, reward, problems, prompts, num_refinements)
        )
    drafts = sample_drafts(
        sampler, reward, problems, num_drafts=num_drafts, prompt_format=prompt_format, stop_at=stop_at
    )
    selected = choose_drafts(select, drafts)
    prompts = _refinement_prompts(problems, drafts, selected, prompt_format, max_draft_tokens, tokenizer)
    return Rollout(
        problems, drafts, selected, sample_stage(sampler, reward, problems, prompts, num_refinements)
    )


def choose_drafts(select: Selector, drafts: Stage) -> Int[Tensor, " P"]:
    """The selector's choice; NO_DRAFT for a problem none of whose drafts could be scored."""
    hopeless = drafts.rewards.isnan().all(dim=1)
    return select(drafts.rewards.masked_fill(hopeless[:, None], 0.0)).masked_fill(hopeless, NO_DRAFT)


def _refinement_prompts(
    problems: Sequence[Problem],
    drafts: Stage,
    selected: Tensor,
    prompt_format: PromptFormat,
    max_draft_tokens: int | None,
    tokenizer: Any,
) -> list[Messages]:
    """q' of each problem (Eq. 3), q where no draft was selected."""
    N, prompts = drafts.rewards.shape[1], []
    for i, (problem, choice) in enumerate(zip(problems, selected.tolist(), strict=True)):
        if choice == NO_DRAFT:
            prompts.append(prompt_format.problem_messages(problem.question))
        else:
            text = drafts.samples.texts[i * N + choice]
            prompts.append(
                prompt_format.refinement_messages(
                    problem.question, text, max_draft_tokens=max_draft_tokens, tokenizer=tokenizer
                )
            )
    return prompts


def rollout_with_next_drafts(
    sampler: Sampler,
    reward: Reward | RewardFunction,
    problems: Sequence[Problem],
    next_problems: Sequence[Problem],
    *,
    drafts: Stage,
    num_refinements: int,
    select: Selector = select_best_draft,
    prompt_format: PromptFormat = PAPER_FORMAT,
    max_draft_tokens: int | None = None,
    tokenizer: Any = None,
) -> tuple[Rollout, Stage | None]:
    """Stage 2 for these problems and, in the same batch, Stage 1 for the next step's.

    Nothing in the next drafts depends on these refinements, so one call to the sampler does both and the
    second wait of iGRPO's two stages is gone. The price is that drafts are one step old when they are used;
    they carry no gradient and no importance ratio, and the refinements' ratio is conditioned on whatever q'
    they were drawn from, so nothing needs correcting. The batch is one where N = G, else there are two.
    Without next problems there are no next drafts.
    """
    problems, next_problems = list(problems), list(next_problems)
    selected, N = choose_drafts(select, drafts), drafts.rewards.shape[1]
    prompts = _refinement_prompts(problems, drafts, selected, prompt_format, max_draft_tokens, tokenizer)
    next_prompts = [prompt_format.problem_messages(p.question) for p in next_problems]
    if num_refinements != N or not next_problems:
        refinements = sample_stage(sampler, reward, problems, prompts, num_refinements)
        ahead = sample_stage(sampler, reward, next_problems, next_prompts, N) if next_problems else None
    else:
        start = perf_counter()
        both = sampler.sample([*prompts, *next_prompts], N)
        seconds = perf_counter() - start
        share = len(prompts) / (len(prompts) + len(next_prompts))
        refinements = score_stage(_of_prompts(both, 0, len(prompts)), reward, problems, seconds * share)
        rest = _of_prompts(both, len(prompts), len(both.prompt_ids))
        ahead = score_stage(rest, reward, next_problems, seconds * (1 - share))
    return Rollout(problems, drafts, selected, refinements), ahead


def _of_prompts(samples: Samples, start: int, stop: int) -> Samples:
    """The rows of some prompts, cut to the longest of them."""
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
