"""The capstone of lesson 05: one whole step of iGRPO (Algorithm 1), written by the learner.

The step is run on scripted completions. Its log-probs depend on the prompt they are asked for, so log-probs
given q, or of another row's prompt, give another loss; P, N, and G differ, so a wrong axis does, too.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from igrpo_kit.classroom.exercise import Arguments, Exercise, FunctionCheck
from igrpo_kit.core.advantages import group_advantages
from igrpo_kit.core.losses import GRPO
from igrpo_kit.core.prompts import Messages, PromptFormat
from igrpo_kit.core.selection import select_best_draft
from igrpo_kit.policies.samplers.sampler import Sampler, Samples
from igrpo_kit.policies.samplers.scripted import ScriptedSampler
from igrpo_kit.tasks.problem import Problem

Reward = Callable[[Sequence[Problem], Sequence[str]], list[float]]
LogProbsOf = Callable[[Sequence[Messages], Samples], Tensor]

_FORMAT = PromptFormat(system=None, refinement="{question}[{draft}]")


class _Recorded(ScriptedSampler):
    """A scripted sampler that notes what it was asked; it samples from a slightly older policy."""

    def __init__(self, texts: list[str], log_probs_of: LogProbsOf) -> None:
        super().__init__(texts, prompt_format=_FORMAT)
        self.asked: list[list[Any]] = []
        self._log_probs_of = log_probs_of

    def sample(self, prompts: Sequence[Messages], num_samples: int) -> Samples:
        """The next texts; see `ScriptedSampler`."""
        samples = super().sample(prompts, num_samples)
        self.asked.append([num_samples, [messages[-1]["content"] for messages in prompts]])
        # Not the same policy: at ratio 1 every loss is 0, whatever its sign.
        samples.log_probs.copy_(0.98 * self._log_probs_of(prompts, samples).detach())
        return samples


def step_on_a_script(step: Callable[..., Any]) -> Callable[..., Any]:
    """A step as a function of plain data, that returns what was asked, the loss, and its gradient."""

    def probe(
        questions: list[str], answers: list[str], texts: list[str], num_drafts: int, num_refinements: int
    ) -> Any:
        weight = torch.ones((), dtype=torch.float64, requires_grad=True)

        def log_probs_of(prompts: Sequence[Messages], samples: Samples) -> Tensor:
            codes = [sum(map(ord, messages[-1]["content"])) % 17 for messages in prompts]
            row = torch.tensor(codes, dtype=torch.float64).repeat_interleave(samples.num_samples)
            tokens = samples.completion_ids.double() % 7
            return (-weight * (1 + row[:, None] / 8 + tokens / 5)).masked_fill(~samples.mask, 0.0)

        def reward(problems: Sequence[Problem], completions: Sequence[str]) -> list[float]:
            return [float(p.answer == text) for p, text in zip(problems, completions, strict=True)]

        sampler = _Recorded(texts, log_probs_of)
        problems = [
            Problem(str(i), q, a, "script") for i, (q, a) in enumerate(zip(questions, answers, strict=True))
        ]
        loss = step(sampler, reward, problems, num_drafts, num_refinements, log_probs_of)
        if not isinstance(loss, Tensor) or loss.ndim:
            return loss
        gradient = None
        if loss.requires_grad:
            (gradient,) = torch.autograd.grad(loss, weight, allow_unused=True)
        return {
            "asked": sampler.asked,
            "loss": float(loss.detach()),
            "gradient": 0.0 if gradient is None else float(gradient),
        }

    return probe


def _repeated(problems: Sequence[Problem], n: int) -> list[Problem]:
    """The problem of each row, row-major: n rows of the first, then n of the second."""
    return [problem for problem in problems for _ in range(n)]


def _step(
    sampler: Sampler, reward: Reward, problems: Sequence[Problem], N: int, G: int, log_probs_of: LogProbsOf,
    *, choose: Callable[[Tensor], Tensor] = select_best_draft,
    rows_of: Callable[[Sequence[Problem], int], list[Problem]] = _repeated,
    advantages_of: Callable[[Tensor], Tensor] = group_advantages,
    reshape: Callable[[Tensor, int], Tensor] = lambda rewards, n: rewards.view(-1, n),
    ask_with_draft: bool = True, score_given_draft: bool = True, whole_mask: bool = False,
    also_drafts: bool = False, sign: float = 1.0,
) -> Tensor:  # fmt: skip
    """Algorithm 1, lines 5 to 16, with a switch for each mistake."""
    form = sampler.policy.prompt_format
    q = [form.problem_messages(p.question) for p in problems]
    drafts = sampler.sample(q, N)
    draft_rewards = reshape(torch.tensor(reward(rows_of(problems, N), drafts.texts)), N)
    best = choose(draft_rewards)
    q_prime = [
        form.refinement_messages(p.question, drafts.texts[i * N + int(best[i])])
        for i, p in enumerate(problems)
    ]
    refinements = sampler.sample(q_prime if ask_with_draft else q, G)
    advantages = advantages_of(reshape(torch.tensor(reward(rows_of(problems, G), refinements.texts)), G))
    log_probs = log_probs_of(q_prime if score_given_draft else q, refinements)
    mask = torch.ones_like(refinements.mask) if whole_mask else refinements.mask
    loss = GRPO().loss(log_probs, refinements.log_probs, advantages.flatten(), mask)[0]
    if also_drafts:
        of_drafts = group_advantages(draft_rewards).flatten()
        loss = (loss + GRPO().loss(log_probs_of(q, drafts), drafts.log_probs, of_drafts, drafts.mask)[0]) / 2
    return sign * loss


def igrpo_step(
    sampler: Sampler, reward: Reward, problems: Sequence[Problem], num_drafts: int, num_refinements: int,
    log_probs_of: LogProbsOf,
) -> Tensor:  # fmt: skip
    """The loss of one step of iGRPO."""
    return _step(sampler, reward, problems, num_drafts, num_refinements, log_probs_of)


def _given_q(*arguments: Any) -> Tensor:
    """The log-probs of the refinements are given q. Both sides of the ratio are given q', as sampled."""
    return _step(*arguments, score_given_draft=False)


def _without_the_draft(*arguments: Any) -> Tensor:
    """Stage 2 reads q: the draft is missing from its prompt. Ask with `refinement_messages`."""
    return _step(*arguments, ask_with_draft=False)


def _all_from_q(*arguments: Any) -> Tensor:
    """Stage 2 samples and scores given q: no draft is ever shown. That is GRPO with groups of G."""
    return _step(*arguments, ask_with_draft=False, score_given_draft=False)


def _first_draft(*arguments: Any) -> Tensor:
    """You show the first draft of each problem; show the one with the highest reward."""
    return _step(*arguments, choose=lambda rewards: torch.zeros(len(rewards), dtype=torch.int64))


def _worst_draft(*arguments: Any) -> Tensor:
    """You show a draft with the *lowest* reward."""
    return _step(*arguments, choose=lambda rewards: rewards.argmin(dim=1))


def _last_of_a_tie(*arguments: Any) -> Tensor:
    """Of several best drafts you show the last; the kit's rule, and this exercise's, is the first."""
    return _step(*arguments, choose=lambda rewards: rewards.shape[1] - 1 - select_best_draft(rewards.flip(1)))


def _tiled(*arguments: Any) -> Tensor:
    """Completions are row-major by prompt: repeat each problem n times, not the list of problems."""
    return _step(*arguments, rows_of=lambda problems, n: list(problems) * n)


def _wrong_axis(*arguments: Any) -> Tensor:
    """The rewards have the wrong shape: rows i * n to i * n + n - 1 belong to problem i, so [P, n]."""
    return _step(*arguments, reshape=lambda rewards, n: rewards.view(n, -1).T)


def _over_the_batch(*arguments: Any) -> Tensor:
    """The advantages compare refinements of different problems; compare within each group."""

    def whole(rewards: Tensor) -> Tensor:
        return group_advantages(rewards.reshape(1, -1)).view_as(rewards)

    return _step(*arguments, advantages_of=whole)


def _raw_rewards(*arguments: Any) -> Tensor:
    """The rewards are not turned into advantages: subtract the mean of each group, divide by its std."""
    return _step(*arguments, advantages_of=lambda rewards: rewards)


def _padding_trained(*arguments: Any) -> Tensor:
    """The mask is not used: train the tokens in `samples.mask` alone."""
    return _step(*arguments, whole_mask=True)


def _drafts_trained(*arguments: Any) -> Tensor:
    """The loss contains the drafts, too. Stage 1 only selects (both stages trained is another method)."""
    return _step(*arguments, also_drafts=True)


def _negated(*arguments: Any) -> Tensor:
    """The sign is reversed: return the loss, which is minus the objective."""
    return _step(*arguments, sign=-1.0)


def _a_script(rng: np.random.Generator) -> Arguments:
    """P = 3 problems, N = 2 drafts, G = 4 refinements, with a tie, a repair, and texts of several lengths."""
    answers = [str(n) for n in rng.integers(10, 99, 3)]
    wrong = [str(n) for n in rng.integers(100, 9999, 40)]
    drafts = [[wrong[0], answers[0]], [wrong[1], wrong[2]], [answers[2], wrong[21]]]
    refined = [
        [answers[i] if rng.random() < 0.5 else wrong[4 * i + k + 3] for k in range(4)] for i in range(3)
    ]
    refined[0][:2] = [answers[0], wrong[20]]  # at least one group is live
    texts = [text for group in (*drafts, *refined) for text in group]
    return [f"{a}?" for a in ("1+2", "3*4", "5-6")], answers, texts, 2, 4


_IGRPO_STEP = FunctionCheck(
    reference=igrpo_step,
    typed=[],
    random=lambda rng: [_a_script(rng) for _ in range(4)],
    mistakes=[
        _given_q,
        _without_the_draft,
        _all_from_q,
        _first_draft,
        _worst_draft,
        _last_of_a_tie,
        _tiled,
        _wrong_axis,
        _over_the_batch,
        _raw_rewards,
        _padding_trained,
        _drafts_trained,
        _negated,
    ],
    probe=step_on_a_script,
)

EXERCISES = [Exercise("igrpo_step", "05", "code", difficulty=3, minutes=25, verify=_IGRPO_STEP)]
