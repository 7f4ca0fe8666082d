"""Self-Verification and Critique-GRPO, the baselines of Table 1, as variants of our training step.

Both sample N answers to q and then G completions conditioned on one of these answers. At N + G = 8, all
methods of the table therefore sample the same number of completions. The methods differ in Stage 2:

| method | Stage 2 is conditioned on | Stage 2 is rewarded for | trained |
|---|---|---|---|
| iGRPO | q, best draft | a correct answer | Stage 2, on the prompt it was sampled from |
| Self-Verification | q, an answer | a correct verdict on it | both stages, each on its own prompt |
| Critique-GRPO | q, an answer, a critique | a correct answer | both as one group, *on q alone* |

These are simplified implementations with our components, not the authors' systems; each docstring lists what
was left out. Both train Stage 1, so they require `TrainConfig.train_drafts=True`.

iGRPO: https://arxiv.org/abs/2602.09000; Self-Verification: https://arxiv.org/abs/2506.01369; Critique-GRPO:
https://arxiv.org/abs/2506.03106.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from igrpo_kit.core.advantages import advantages_of_scored
from igrpo_kit.core.losses import GRPO, Mask, Objective, PerRow, PerToken
from igrpo_kit.core.prompts import Messages, VerdictFormat
from igrpo_kit.core.rows import Row
from igrpo_kit.core.selection import Selector, select_drafts
from igrpo_kit.core.tokens import masked_mean
from igrpo_kit.policies.log_probs import completion_log_probs
from igrpo_kit.policies.policy import TINY_VERDICTS, Policy
from igrpo_kit.policies.samplers.encoding import encode_answers, encode_prompts
from igrpo_kit.policies.samplers.sampler import Sampler
from igrpo_kit.tasks.problem import Problem
from igrpo_kit.tasks.rewards import Reward, RewardLike, Scores
from igrpo_kit.training.config import Variant
from igrpo_kit.training.rollout import Rollout, Stage, question_prompts, sample_drafts, sample_stage
from igrpo_kit.training.update import Trained, trained_stages

Ask = Callable[[str, str, bool], Messages]
"""(question, selected answer, whether it is correct) -> messages of the Stage 2 prompt."""


def _look_back(
    sampler: Sampler, reward: RewardLike, problems: Sequence[Problem], ask: Ask,
    second_reward: Callable[[list[bool]], RewardLike],
    *, num_drafts: int, num_refinements: int, select: str | Selector = "random",
    stop_at: float | None = None, max_draft_tokens: int | None = None,
) -> Rollout:  # fmt: skip
    """N answers to q, of which one is selected, and G completions of the prompt that `ask` makes of it."""
    if stop_at is not None or max_draft_tokens is not None:
        raise ValueError(
            "stop_at, max_draft_tokens: this method needs its first answers whole, and all of them"
        )
    problems = list(problems)
    drafts = sample_drafts(sampler, reward, problems, num_drafts=num_drafts)
    selected = select_drafts(drafts.rewards, select)
    unscored = (selected < 0).nonzero().flatten().tolist()
    if unscored:
        raise ValueError(
            f"problems {unscored}: no answer could be scored, so there is nothing to look back at"
        )
    correct = drafts.correct.gather(1, selected[:, None]).squeeze(1).tolist()
    texts = [drafts.samples.texts[i * num_drafts + choice] for i, choice in enumerate(selected.tolist())]
    prompts = [ask(p.question, text, ok) for p, text, ok in zip(problems, texts, correct, strict=True)]
    second = sample_stage(
        sampler, second_reward(correct), problems, prompts=prompts, num_samples=num_refinements
    )
    return Rollout(problems, drafts, selected, second)


# --- Self-Verification


@dataclass
class VerdictReward(Reward):
    """1 (`correct_verdict`) for the verdict that agrees with the correctness of the answer, else 0.

    Statuses: `correct_verdict`, `incorrect_verdict`, and `no_verdict` for anything but one of the two verdict
    words. `answers_correct[i]` belongs to problem i, whose completions are consecutive rows.
    """

    answers_correct: list[bool]
    verdicts: VerdictFormat
    __name__ = "verdict"

    def score(self, problems: Sequence[Problem], completions: Sequence[str]) -> Scores:
        """See the class. Raises ValueError unless every answer has the same number of completions."""
        per_answer, rest = divmod(len(completions), len(self.answers_correct))
        if rest or not per_answer:
            raise ValueError(f"completions: {len(completions)} for {len(self.answers_correct)} answers")
        statuses = []
        for row, completion in enumerate(completions):
            truth = self.answers_correct[row // per_answer]
            expected, other = self.verdicts.correct, self.verdicts.incorrect
            if not truth:
                expected, other = other, expected
            said = completion.strip()
            statuses.append(
                "correct_verdict"
                if said == expected
                else "incorrect_verdict"
                if said == other
                else "no_verdict"
            )
        return Scores([float(status == "correct_verdict") for status in statuses], statuses)


def self_verification_rollout(
    sampler: Sampler, reward: RewardLike, problems: Sequence[Problem],
    *, verdicts: VerdictFormat, **options: Any,
) -> Rollout:  # fmt: skip
    """N answers to q, and G verdicts on one of them, rewarded if they agree with the reward of the answer.

    As in Self-Verification (https://arxiv.org/abs/2506.01369), one update trains one policy on both tasks,
    and verdicts are on answers of the current policy. Simplifications: a verdict is one word without
    reasoning; the selector chooses the answer to verify (use "random"); correct and incorrect answers are not
    balanced; the reward does not depend on the difficulty of the verdict; answers of earlier policies are not
    verified.

    In the metrics of a step, `reward` is then the fraction of correct verdicts, and `stage1/reward` that of
    correct answers. Options and return value are those of `igrpo_rollout`.

    Args:
        sampler: samples answers and verdicts.
        reward: scores the answers.
        problems: P problems.
        verdicts: the prompt and the two words of a verdict.
        options: keyword arguments of `igrpo_rollout`.

    Raises:
        ValueError: no answer to some problem could be scored, or `stop_at` or `max_draft_tokens` is given.
    """

    def ask(question: str, answer: str, correct: bool) -> Messages:
        return verdicts.prompt.refinement_messages(question, answer, tokenizer=sampler.policy.tokenizer)

    return _look_back(sampler, reward, problems, ask, partial(VerdictReward, verdicts=verdicts), **options)


@torch.no_grad()
def verdict_probabilities(
    policy: Policy, questions: Sequence[str], answers: Sequence[str], verdicts: VerdictFormat
) -> Float[Tensor, " B"]:
    """P("correct") / (P("correct") + P("incorrect")): the policy's confidence in each answer.

    Nothing is sampled. The probabilities are conditioned on the verdict prompt of each question and answer.
    Both words end with the end-of-sequence token. For a policy that was not trained to give verdicts, the
    result has no meaning.

    Args:
        policy: the policy.
        questions: one per answer.
        answers: the answers to verify.
        verdicts: the prompt and the two words of a verdict.
    """
    tokenizer = policy.tokenizer
    prompts = [
        verdicts.prompt.refinement_messages(question, answer, tokenizer=tokenizer)
        for question, answer in zip(questions, answers, strict=True)
    ]
    words = [verdicts.correct, verdicts.incorrect] * len(prompts)
    ids, mask = encode_answers(tokenizer, words, policy.model.device)
    log_probs = completion_log_probs(policy.model, encode_prompts(tokenizer, prompts), ids, mask)
    correct, incorrect = log_probs.sum(dim=1).view(-1, 2).unbind(dim=1)
    return torch.sigmoid(correct - incorrect)


def weighted_vote(answers: Sequence[str], weights: Sequence[float]) -> int:
    """Index of the first answer whose text has the largest total weight.

    Equal weights give a majority vote; verdict probabilities give a weighted one. The first text wins a tie.
    Raises ValueError without answers.
    """
    if not answers:
        raise ValueError("answers: at least one is needed")
    total: defaultdict[str, float] = defaultdict(float)
    for answer, weight in zip(answers, weights, strict=True):
        total[answer] += weight
    return answers.index(max(total, key=lambda answer: total[answer]))


def vote_rows(
    sampler: Sampler, reward: RewardLike, problems: Sequence[Problem],
    *, verdicts: VerdictFormat, num_samples: int = 8,
) -> list[Row]:  # fmt: skip
    """Evaluation rows from K answers per problem: `vote`, `verified_vote`, and the `verdict`s on them.

    `correct` counts for each problem whether the elected answer is correct, and for `verdict`, how many of
    the K verdicts (probability above one half) agree with the reward. Entropy and length are those of the K
    answers.

    Args:
        sampler: samples the answers.
        reward: scores them.
        problems: P problems.
        verdicts: the prompt and the two words of a verdict.
        num_samples: K.
    """
    K = num_samples
    stage = sample_stage(
        sampler, reward, problems, prompts=question_prompts(sampler, problems), num_samples=K
    )
    samples, correct = stage.samples, stage.correct.flatten().tolist()
    questions = [problem.question for problem in problems for _ in range(K)]
    sure = verdict_probabilities(sampler.policy, questions, samples.texts, verdicts).tolist()
    counts: dict[str, list[int]] = {"vote": [], "verified_vote": [], "verdict": []}
    for i in range(0, len(questions), K):
        texts, weights, ok = samples.texts[i : i + K], sure[i : i + K], correct[i : i + K]
        counts["vote"].append(int(ok[weighted_vote(texts, [1.0] * K)]))
        counts["verified_vote"].append(int(ok[weighted_vote(texts, weights)]))
        counts["verdict"].append(sum((w > 0.5) == o for w, o in zip(weights, ok, strict=True)))
    shared = {
        "final": True,
        "temperature": sampler.settings.temperature,
        "draft_correct": None,
        "entropy": None if samples.entropies is None else masked_mean(samples.entropies, samples.mask).item(),
        "length": samples.mask.sum(dim=1).float().mean().item(),
    }
    rows = []
    for name, n in {"vote": 1, "verified_vote": 1, "verdict": K}.items():
        reward_per_problem = [count / n for count in counts[name]]
        row = {"protocol": name, "num_samples": n, "correct": counts[name], "reward": reward_per_problem}
        rows.append({**row, **shared})
    return rows


# --- Critique-GRPO


def verdict_critique(correct: bool, verdicts: VerdictFormat = TINY_VERDICTS) -> str:
    """The shortest possible critique, `=1` or `=0`: the correctness of the answer, without an explanation."""
    return f"={verdicts.correct if correct else verdicts.incorrect}"


def critique_rollout(
    sampler: Sampler, reward: RewardLike, problems: Sequence[Problem],
    *, critique: Callable[[bool], str] = verdict_critique, **options: Any,
) -> Rollout:  # fmt: skip
    """N answers to q, and G refinements conditioned on one of them and a critique of it.

    The critique follows the answer in the place of the draft. Simplifications relative to Critique-GRPO
    (https://arxiv.org/abs/2506.03106): the critique is a verdict alone (there: an explanation by a language
    model), because the tiny policy does not read words; one answer is refined G times (there: every answer
    once, and some of the refinements are kept). Options and return value are those of `igrpo_rollout`; use
    select="random".

    Args:
        sampler: samples answers and refinements.
        reward: scores both.
        problems: P problems.
        critique: maps the correctness of an answer to the text of its critique.
        options: keyword arguments of `igrpo_rollout`.

    Raises:
        ValueError: no answer to some problem could be scored, or `stop_at` or `max_draft_tokens` is given.
    """
    policy = sampler.policy

    def ask(question: str, answer: str, correct: bool) -> Messages:
        critiqued = answer + critique(correct)
        return policy.prompt_format.refinement_messages(question, critiqued, tokenizer=policy.tokenizer)

    return _look_back(sampler, reward, problems, ask, lambda correct: reward, **options)


@dataclass(frozen=True, kw_only=True)
class ShapedOffPolicy(Objective):
    """A p / (p + gamma) with p = pi(o_t | q, o_<t): the term of Critique-GRPO for its refinements.

    There is no importance ratio and no clipping. The gradient is that of log p times gamma p / (p + gamma)^2,
    which is at most 1/4. It is largest for tokens of probability gamma, and small for tokens of high
    probability and for those that are very unlikely given q. https://arxiv.org/abs/2506.03106.
    """

    gamma: float = 0.1

    def surrogate(self, log_probs: PerToken, ratio: PerToken, advantages: PerRow) -> PerToken:
        """See the class."""
        p = log_probs.exp()
        return advantages.detach()[:, None] * p / (p + self.gamma)


def _one_group(rollout: Rollout, objective: Objective, train_drafts: bool) -> tuple[Stage, Tensor, Tensor]:
    """The Stage 1 answers, and the advantages of answers and refinements in one group of N + G."""
    if rollout.drafts is None or not train_drafts:
        raise ValueError("train_drafts: Critique-GRPO trains its first answers too, set it to True")
    N = rollout.drafts.rewards.shape[1]
    together = torch.cat([rollout.drafts.rewards, rollout.refinements.rewards], dim=1)
    advantages = advantages_of_scored(together, objective.advantages)
    return rollout.drafts, advantages[:, :N], advantages[:, N:]


def critique_trained(
    rollout: Rollout, objective: Objective, *, train_drafts: bool = False, gamma: float = 0.1
) -> list[Trained]:
    """Answers and refinements in one group, *both on q*; refinements are trained with `ShapedOffPolicy`.

    Simplifications relative to https://arxiv.org/abs/2506.03106: advantages are those of the objective,
    divided by the group's standard deviation for a fair comparison (there: not divided), and the reduction is
    GRPO's mean over each completion (there: a sum).

    Args:
        rollout: the result of `critique_rollout`.
        objective: plain GRPO.
        train_drafts: must be True.
        gamma: see `ShapedOffPolicy`.

    Raises:
        ValueError: `train_drafts` is False, or the objective is not plain GRPO.
    """
    if not isinstance(objective, GRPO):
        raise ValueError(
            f"objective: Critique-GRPO brings its own for refinements, use GRPO, got {objective}"
        )
    drafts, of_answers, of_refinements = _one_group(rollout, objective, train_drafts)
    shaped = ShapedOffPolicy(beta=objective.beta, gamma=gamma)
    given_q = replace(rollout.refinements.samples, prompt_ids=drafts.samples.prompt_ids)
    return [
        Trained(drafts.samples, of_answers, objective),
        Trained(given_q, of_refinements, shaped, on_policy=False),
    ]


def critique_trained_as_if_from_q(
    rollout: Rollout, objective: Objective, *, train_drafts: bool = False
) -> list[Trained]:
    """Incorrect on purpose: refinements sampled with a critique in context, trained as if sampled from q.

    Old and new log-probs are both conditioned on q, so the ratio is 1 at the first update *by construction*
    and the metrics look normal. Only `sampler_gap`, the distance from the sampling probabilities, shows the
    error. `question_ratio` is the ratio that was left out.

    Args:
        rollout: the result of `critique_rollout`.
        objective: computes the advantages.
        train_drafts: must be True.

    Raises:
        ValueError: `train_drafts` is False.
    """
    drafts, of_answers, of_refinements = _one_group(rollout, objective, train_drafts)
    given_q = replace(rollout.refinements.samples, prompt_ids=drafts.samples.prompt_ids)
    return [Trained(drafts.samples, of_answers, objective), Trained(given_q, of_refinements, objective)]


@torch.no_grad()
def question_ratio(model: Any, rollout: Rollout, *, temperature: float = 1.0) -> tuple[PerToken, Mask]:
    """pi(o_t | q, o_<t) / pi(o_t | q', o_<t) of each refinement's tokens before any update, and their mask.

    Conditioned on the prompt a completion was sampled from, this ratio is 1, which is why iGRPO conditions
    its refinements on q' (Eq. 20). Conditioned on q, it measures how far they are from samples of q. The
    product of the ratios over a completion has mean 1 over completions sampled from q'. The longer the
    completions, the more of that mean comes from a few of them.

    Args:
        model: the policy's model, unchanged since the rollout.
        rollout: drafts and refinements.
        temperature: the sampler's temperature.

    Raises:
        ValueError: the rollout has no drafts.
    """
    if rollout.drafts is None:
        raise ValueError("rollout: GRPO has no refinements, its completions are sampled from q")
    samples = rollout.refinements.samples
    on_q, on_own = (
        completion_log_probs(model, prompt_ids, samples.completion_ids, samples.mask, temperature)
        for prompt_ids in (rollout.drafts.samples.prompt_ids, samples.prompt_ids)
    )
    return (on_q - on_own).exp(), samples.mask


SELF_VERIFICATION = Variant(
    "self-verification", partial(self_verification_rollout, verdicts=TINY_VERDICTS), trained_stages
)
CRITIQUE_GRPO = Variant("critique-grpo", critique_rollout, critique_trained)
CRITIQUE_AS_IF_FROM_Q = Variant("critique-as-if-from-q", critique_rollout, critique_trained_as_if_from_q)
