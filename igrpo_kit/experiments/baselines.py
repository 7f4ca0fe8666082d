"""Self-Verification and Critique-GRPO, the baselines of Table 1, as variants of our own step.

Both draw N answers to q and then G completions that look back at one of them, so at N + G = 8 all methods
of the table draw equally many completions. What differs is what Stage 2 is asked and how it is trained:

| method | Stage 2 sees | Stage 2 is rewarded for | trained |
|---|---|---|---|
| iGRPO | q, best draft | a right answer | Stage 2, on the prompt it was drawn from |
| Self-Verification | q, an answer | a right verdict on it | both stages, each on its own prompt |
| Critique-GRPO | q, an answer, a critique | a right answer | both as one group, *on q alone* |

They are small: the idea of each (https://arxiv.org/abs/2506.01369, 2506.03106) on our components, not its authors' system.
Each says what was left out. Both train Stage 1, so `TrainConfig.train_drafts` has to be True.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from igrpo_kit.core.advantages import fill_unscored
from igrpo_kit.core.losses import GRPO, Mask, Objective, PerRow, PerToken
from igrpo_kit.core.prompts import Messages, VerdictFormat
from igrpo_kit.core.rows import Row
from igrpo_kit.core.selection import Selector, select_drafts
from igrpo_kit.core.tokens import masked_mean
from igrpo_kit.policies.log_probs import completion_log_probs
from igrpo_kit.policies.policy import TINY_VERDICTS, Policy
from igrpo_kit.policies.samplers.encoding import encode_prompts
from igrpo_kit.policies.samplers.sampler import Sampler
from igrpo_kit.tasks.problem import Problem
from igrpo_kit.tasks.rewards import Reward, RewardLike, Scores
from igrpo_kit.training.config import Variant
from igrpo_kit.training.rollout import Rollout, Stage, question_prompts, sample_drafts, sample_stage
from igrpo_kit.training.update import Trained, trained_stages

Ask = Callable[[str, str, bool], Messages]
"""A question, the chosen answer and whether it is right -> what Stage 2 is asked."""


def _look_back(
    sampler: Sampler, reward: RewardLike, problems: Sequence[Problem], ask: Ask,
    second_reward: Callable[[list[bool]], RewardLike],
    *, num_drafts: int, num_refinements: int, select: str | Selector = "random",
    stop_at: float | None = None, max_draft_tokens: int | None = None,
) -> Rollout:  # fmt: skip
    """N answers to q, one of them selected, and G completions of what `ask` makes of it."""
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
    """1 (`right_verdict`) for the word that says whether the answer in question is right, else 0.

    Statuses: `right_verdict`, `wrong_verdict`, and `no_verdict` for anything but one of the two words.
    `answers_right[i]` belongs to problem i, whose completions are consecutive rows.
    """

    answers_right: list[bool]
    verdicts: VerdictFormat
    __name__ = "verdict"

    def score(self, problems: Sequence[Problem], completions: Sequence[str]) -> Scores:
        """See the class. Raises ValueError where the rows are not equally many for every answer."""
        per_answer, rest = divmod(len(completions), len(self.answers_right))
        if rest or not per_answer:
            raise ValueError(f"completions: {len(completions)} for {len(self.answers_right)} answers")
        statuses = []
        for row, completion in enumerate(completions):
            truth = self.answers_right[row // per_answer]
            expected, other = self.verdicts.right, self.verdicts.wrong
            if not truth:
                expected, other = other, expected
            said = completion.strip()
            statuses.append(
                "right_verdict" if said == expected else "wrong_verdict" if said == other else "no_verdict"
            )
        return Scores([float(status == "right_verdict") for status in statuses], statuses)


def self_verification_rollout(
    sampler: Sampler, reward: RewardLike, problems: Sequence[Problem],
    *, verdicts: VerdictFormat, **options: Any,
) -> Rollout:  # fmt: skip
    """N answers to q and G verdicts on one of them; a verdict is rewarded where it agrees with the reward.

    As in Self-Verification (https://arxiv.org/abs/2506.01369) one policy learns both in one update, and verdicts are always
    about its present answers. Simplified: a verdict is one word without reasoning; which answer is judged is
    left to the selector (choose "random"); no balancing of right and wrong answers, no reward that grows
    with the difficulty of the verdict; and nothing is judged that an earlier policy wrote.

    In the metrics of a step `reward` is then the share of right verdicts, `stage1/reward` that of answers.
    Options and the rollout are those of `igrpo_rollout`.
    """

    def ask(question: str, answer: str, right: bool) -> Messages:
        return verdicts.prompt.refinement_messages(question, answer, tokenizer=sampler.policy.tokenizer)

    return _look_back(sampler, reward, problems, ask, partial(VerdictReward, verdicts=verdicts), **options)


@torch.no_grad()
def verdict_probabilities(
    policy: Policy, questions: Sequence[str], answers: Sequence[str], verdicts: VerdictFormat
) -> Float[Tensor, " B"]:
    """P("right") / (P("right") + P("wrong")): how sure the policy is of an answer, without sampling.

    Conditioned on the verdict prompt of each question and answer; the two words end with the
    end-of-sequence token. A policy that was never taught verdicts gives numbers without meaning.
    """
    tokenizer = policy.tokenizer
    prompts = [
        verdicts.prompt.refinement_messages(question, answer, tokenizer=tokenizer)
        for question, answer in zip(questions, answers, strict=True)
    ]
    words = [
        torch.tensor([*tokenizer(word, add_special_tokens=False).input_ids, tokenizer.eos_token_id])
        for word in (verdicts.right, verdicts.wrong)
    ]
    ids = pad_sequence(words, batch_first=True).repeat(len(prompts), 1).to(policy.model.device)
    mask = pad_sequence([torch.ones_like(w, dtype=torch.bool) for w in words], batch_first=True)
    log_probs = completion_log_probs(
        policy.model, encode_prompts(tokenizer, prompts), ids, mask.repeat(len(prompts), 1).to(ids.device)
    )
    right, wrong = log_probs.sum(dim=1).view(-1, 2).unbind(dim=1)
    return torch.sigmoid(right - wrong)


def weighted_vote(answers: Sequence[str], weights: Sequence[float]) -> int:
    """Index of the first answer of the heaviest text: equal weights are a majority vote, verdicts a
    reweighted one. Of equally heavy texts the first wins. Raises ValueError without answers.
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

    `correct` counts, per problem, whether the elected answer is correct, and for `verdict` how many of the K
    verdicts (probability above one half) agree with the reward. Entropy and length are of the K answers.
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


def verdict_critique(right: bool, verdicts: VerdictFormat = TINY_VERDICTS) -> str:
    """The shortest critique there is, `=1` or `=0`: what the reward says of the answer, and not why."""
    return f"={verdicts.right if right else verdicts.wrong}"


def critique_rollout(
    sampler: Sampler, reward: RewardLike, problems: Sequence[Problem],
    *, critique: Callable[[bool], str] = verdict_critique, **options: Any,
) -> Rollout:  # fmt: skip
    """N answers to q and G refinements of one of them, seen with a critique of it.

    The critique stands behind the answer in the slot for drafts. Simplified against Critique-GRPO (arXiv
    2506.03106): it is the verdict alone (there: a language model's explanation), since the tiny policy reads
    no words; one answer is refined G times (there: every answer once, and a part of the refinements kept).
    Options and the rollout are those of `igrpo_rollout`; choose select="random".
    """
    policy = sampler.policy

    def ask(question: str, answer: str, correct: bool) -> Messages:
        critiqued = answer + critique(correct)
        return policy.prompt_format.refinement_messages(question, critiqued, tokenizer=policy.tokenizer)

    return _look_back(sampler, reward, problems, ask, lambda correct: reward, **options)


@dataclass(frozen=True, kw_only=True)
class ShapedOffPolicy(Objective):
    """A p / (p + gamma) with p = pi(o_t | q, o_<t): Critique-GRPO's term for its refinements.

    There is no importance ratio in it and nothing is clipped. Its gradient is that of log p times
    gamma p / (p + gamma)^2, at most 1/4: largest for tokens of probability gamma, small for those the policy
    is sure of, and small, too, for those it would never have drawn from q.
    """

    gamma: float = 0.1

    def surrogate(self, log_probs: PerToken, ratio: PerToken, advantages: PerRow) -> PerToken:
        """See the class."""
        p = log_probs.exp()
        return advantages.detach()[:, None] * p / (p + self.gamma)


def _one_group(rollout: Rollout, objective: Objective, train_drafts: bool) -> tuple[Stage, Tensor, Tensor]:
    """The first answers, and the advantages of answers and refinements within one group of N + G."""
    if rollout.drafts is None or not train_drafts:
        raise ValueError("train_drafts: Critique-GRPO trains its first answers too, set it to True")
    N = rollout.drafts.rewards.shape[1]
    together = fill_unscored(torch.cat([rollout.drafts.rewards, rollout.refinements.rewards], dim=1))
    advantages = objective.advantages(together)
    return rollout.drafts, advantages[:, :N], advantages[:, N:]


def critique_trained(
    rollout: Rollout, objective: Objective, *, train_drafts: bool = False, gamma: float = 0.1
) -> list[Trained]:
    """Answers and refinements in one group, *both on q*, the refinements through `ShapedOffPolicy`.

    Simplified: advantages are the objective's, for a fair comparison divided by the group's standard
    deviation (there: not), and the reduction is GRPO's mean over each completion (there: a sum).

    Raises ValueError for `train_drafts=False`, or an objective that is not plain GRPO.
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
    """The trap: refinements drawn with a critique in context, trained as if they had been drawn from q.

    Old and new log-probs are both taken on q, so the ratio is 1 at the first update *by construction* and
    nothing looks wrong; only `sampler_gap`, the distance from the probabilities they were drawn with, tells.
    `question_ratio` is the ratio that was left out. Raises ValueError for `train_drafts=False`.
    """
    drafts, of_answers, of_refinements = _one_group(rollout, objective, train_drafts)
    given_q = replace(rollout.refinements.samples, prompt_ids=drafts.samples.prompt_ids)
    return [Trained(drafts.samples, of_answers, objective), Trained(given_q, of_refinements, objective)]


@torch.no_grad()
def question_ratio(model: Any, rollout: Rollout, *, temperature: float = 1.0) -> tuple[PerToken, Mask]:
    """pi(o_t | q, o_<t) / pi(o_t | q', o_<t) of each refinement's tokens, before any update, and their mask.

    On the prompt a completion was drawn from this ratio is 1, which is why iGRPO conditions its refinements
    on q' (Eq. 20). On q it says how far they are from what would have been drawn there. Its product over a
    completion has mean 1 over completions drawn from q', and the longer they are the more of that mean comes
    from few of them.

    `model` must be as it was when the rollout was made. Raises ValueError for a rollout without drafts.
    """
    if rollout.drafts is None:
        raise ValueError("rollout: GRPO has no refinements, its completions are drawn from q")
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
