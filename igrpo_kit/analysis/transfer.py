"""Exact rates on problems with unique answers, and transfer: does training on q' teach q?

On problems with one correct answer, which is written in one way, the probability of a correct completion is
exp(log pi(answer | prompt)): exact, and also defined far below 1 / samples. So p on q, the repair rate r on
own wrong drafts, and the keep rate on correct ones have no sampling error except that of the drafts and of
the problems. Other problems have sampled rates only (`analysis.meter`).

*Transfer*: one small step raises log pi(answer | q') of some problems, and s is the rise of log pi(answer |
q) over that of log pi(answer | q'), both on *other* problems. The rise is also taken on the tokens that limit
p alone, because an answer may contain tokens that any step improves.

Quantities follow the first study of when a draft pays; live groups are those of `core.advantages`.
"""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import pad

from igrpo_kit.analysis.exact.waiting import live_probability
from igrpo_kit.analysis.stats.intervals import Interval, bootstrap_means
from igrpo_kit.core.prompts import Messages
from igrpo_kit.core.rows import Row
from igrpo_kit.policies.log_probs import completion_log_probs
from igrpo_kit.policies.policy import Policy
from igrpo_kit.policies.samplers.encoding import encode_answers, encode_prompts
from igrpo_kit.policies.samplers.sampler import Sampler
from igrpo_kit.tasks.problem import Problem
from igrpo_kit.tasks.rewards import RewardLike
from igrpo_kit.tasks.verification import has_unique_answer
from igrpo_kit.training.rollout import question_prompts, sample_drafts, sample_stage

RISE = 0.05
"""nats by which a step of `measure_transfer` raises what it trains, to first order: small, to be linear"""
CONFIDENCE = 0.95
UNKNOWN = Interval(np.nan, np.nan, np.nan, CONFIDENCE)
_ROWS = 64  # answers in memory at a time


def unique_answers(problems: Sequence[Problem]) -> bool:
    """Whether the source of every problem has one correct answer, which is written in one way."""
    return all(has_unique_answer(problem.source) for problem in problems)


def refinement_prompts(policy: Policy, problems: Sequence[Problem], drafts: Sequence[str]) -> list[Messages]:
    """q' of each problem with its draft (Eq. 3), in the policy's prompt format."""
    return [
        policy.prompt_format.refinement_messages(problem.question, draft, tokenizer=policy.tokenizer)
        for problem, draft in zip(problems, drafts, strict=True)
    ]


def answer_log_probs(
    policy: Policy, problems: Sequence[Problem], drafts: Sequence[str] | None = None
) -> tuple[Float[Tensor, "P T"], Bool[Tensor, "P T"]]:
    """log pi(a_t | q, a_<t) of each problem's reference answer and the end token, or given q' with a draft.

    Args:
        policy: the policy; the result has its gradient.
        problems: P problems, whose `answer` is written as the policy writes it.
        drafts: one per problem, for q'; None for q.

    Returns:
        Log-probs in nats, 0 outside the mask, and the mask.
    """
    tokenizer = policy.tokenizer
    if drafts is None:
        prompts = [policy.prompt_format.problem_messages(problem.question) for problem in problems]
    else:
        prompts = refinement_prompts(policy, problems, drafts)
    ids, mask = encode_answers(tokenizer, [p.answer for p in problems], policy.model.device)
    log_probs = completion_log_probs(policy.model, encode_prompts(tokenizer, prompts), ids, mask)
    return log_probs, mask


@torch.no_grad()
def answer_tokens(
    policy: Policy, problems: Sequence[Problem], drafts: Sequence[str] | None = None
) -> Float[Tensor, "P T"]:
    """`answer_log_probs` without gradient, in float64 on the CPU, for any number of problems P >= 1."""
    parts = [
        answer_log_probs(policy, problems[rows], None if drafts is None else drafts[rows])[0].double().cpu()
        for rows in _chunks(len(problems))
    ]
    width = max(part.shape[1] for part in parts)
    return torch.cat([pad(part, (0, width - part.shape[1])) for part in parts])


def _chunks(count: int) -> Iterator[slice]:
    return (slice(i, min(i + _ROWS, count)) for i in range(0, count, _ROWS))


def live_share(p: Float[Tensor, " P"], group_size: int) -> float:
    """Expected share of groups with both rewards: mean of 1 - p^G - (1 - p)^G over prompts."""
    return float(np.mean(live_probability(p.double().clamp(max=1).cpu().numpy(), group_size)))


@torch.no_grad()
def exact_row(sampler: Sampler, problems: Sequence[Problem]) -> Row:
    """Exact rates of the sampler's policy on problems with unique answers, with one own draft for each.

    `p` is the mean probability of a correct answer on q, `log_prob` the mean of its logarithm. `repair` is
    the same probability given an own wrong draft, `keep` given the correct answer as the draft, `reliance`
    the mean of log pi(answer | q') - log pi(answer | q) over wrong drafts. NaN where no draft was wrong.
    `live/q8`, `live/q4` and `live/refine4` are expected shares of live groups: 8 or 4 samples from q, and 4
    refinements of one own draft.

    Args:
        sampler: samples one draft per problem at its temperature.
        problems: P problems.
    """
    policy = sampler.policy
    on_q = answer_log_probs(policy, problems)[0].sum(dim=1)
    drafts = sampler.sample(question_prompts(sampler, problems), 1).texts
    wrong = torch.tensor([d != p.answer for d, p in zip(drafts, problems, strict=True)])
    on_draft = answer_log_probs(policy, problems, drafts)[0].sum(dim=1)
    on_answer = answer_log_probs(policy, problems, [p.answer for p in problems])[0].sum(dim=1)
    p, r = on_q.exp(), on_draft.exp()
    return {
        "p": p.mean().item(),
        "log_prob": on_q.mean().item(),
        "repair": r[wrong].mean().item(),
        "keep": on_answer.exp().mean().item(),
        "reliance": (on_draft - on_q)[wrong].mean().item(),
        "drafts_wrong": wrong.float().mean().item(),
        "live/q8": live_share(p, 8),
        "live/q4": live_share(p, 4),
        "live/refine4": live_share(r, 4),
    }


@dataclass(frozen=True)
class Transfer:
    """What one small step on q' does to q, on other problems. NaN where it could not be measured."""

    all_tokens: Interval
    """s: rise of log pi(answer | q) over that of log pi(answer | q')"""
    limiting: Interval
    """the same on the tokens that limit p (`limiting_tokens`)"""
    against_q: Interval
    """s_q: rise of log pi(answer | q) over the rise after a step on q, of the same length"""
    problems: int
    """number of other problems, all with an own wrong draft"""


def limiting_tokens(log_probs: Float[Tensor, "P T"]) -> Bool[Tensor, "P T"]:
    """The tokens that limit p: the fewest of each answer that together hold at least half of -log p.

    Args:
        log_probs: log pi(a_t | q, a_<t) in nats, 0 on padding.
    """
    cost, order = (-log_probs).sort(dim=1, descending=True, stable=True)
    held_by_others = cost.cumsum(dim=1) - cost
    needed = held_by_others < cost.sum(dim=1, keepdim=True) / 2
    return torch.zeros_like(needed).scatter(1, order, needed)


def measure_transfer(
    sampler: Sampler,
    reward: RewardLike,
    problems: Sequence[Problem],
    *,
    rng: np.random.Generator,
    exact: bool | None = None,
    samples: int = 8,
) -> Transfer:
    """One step that raises log pi(answer | q') on the first half of the problems; its effect on the others.

    The step goes along the gradient of sum_i w_i log pi(y_i | q'_i) over own wrong drafts, w_i proportional
    to r_i (1 - r_i) as in a policy gradient. Its length is such that the sum rises by `RISE` nats to first
    order. The step on q has the same problems, weights and length. All steps are taken on a copy, so the
    policy is unchanged. The intervals are bootstrapped over the other problems, at 95%; they do not contain
    the variation of the direction, which comes from the first half.

    Without unique answers, y_i is the first of `samples` own refinements that is correct, and r_i is the
    fraction that is. So s is then that of answers which the policy already gives, on problems it can already
    repair, and NaN where there are none.

    Args:
        sampler: samples drafts, and refinements where they are needed.
        reward: tells wrong drafts from correct ones.
        problems: at least 4.
        rng: source of randomness of the bootstrap.
        exact: whether answers are unique; None finds out from the problems' sources.
        samples: drafts per problem, of which the first wrong one is taken; and refinements.

    Raises:
        ValueError: fewer than 4 problems, or samples < 1.
    """
    if len(problems) < 4:
        raise ValueError(f"problems: at least 4 are needed, got {len(problems)}")
    exact = unique_answers(problems) if exact is None else exact
    middle = len(problems) // 2
    trained = _revisions(sampler, reward, problems[:middle], exact, samples)
    others = _revisions(sampler, reward, problems[middle:], exact, samples)
    if not others.problems or not trained.log_weights.isfinite().any():
        return Transfer(UNKNOWN, UNKNOWN, UNKNOWN, 0)

    policy = replace(sampler.policy, model=deepcopy(sampler.policy.model).float().eval())
    weights = trained.log_weights.softmax(dim=0).float().to(policy.model.device)
    on_draft = _gradient(policy, trained.problems, trained.drafts, weights)
    on_q = _gradient(policy, trained.problems, None, weights)
    if _norm(on_draft) == 0:
        return Transfer(UNKNOWN, UNKNOWN, UNKNOWN, 0)
    before, length = answer_tokens(policy, others.problems), RISE / _norm(on_draft)
    rise, rise_on_draft = _rises(policy, on_draft, length, others, [None, others.drafts])
    (rise_after_q,) = _rises(policy, on_q, length, others, [None])
    limits = limiting_tokens(before)
    return Transfer(
        all_tokens=_ratio(rise.sum(1), rise_on_draft.sum(1), rng),
        limiting=_ratio((rise * limits).sum(1), (rise_on_draft * limits).sum(1), rng),
        against_q=_ratio(rise.sum(1), rise_after_q.sum(1), rng),
        problems=len(others.problems),
    )


@dataclass(frozen=True)
class _Revisions:
    """Problems with an own wrong draft, their `answer` replaced by the target of the step."""

    problems: list[Problem]
    drafts: list[str]
    log_weights: Float[Tensor, " M"]
    """log r (1 - r)"""


def _revisions(
    sampler: Sampler, reward: RewardLike, problems: Sequence[Problem], exact: bool, samples: int
) -> _Revisions:
    stage = sample_drafts(sampler, reward, problems, num_drafts=samples)
    wrong = first_of_each(stage.samples.texts, ~stage.correct)
    asked, drafts = [problems[i] for i in wrong], list(wrong.values())
    if not asked:
        return _Revisions([], [], torch.empty(0, dtype=torch.float64))
    if exact:
        log_r = answer_tokens(sampler.policy, asked, drafts).sum(dim=1).clamp(max=0)
        return _Revisions(asked, drafts, log_r + torch.log(-torch.expm1(log_r)))
    prompts = refinement_prompts(sampler.policy, asked, drafts)
    refined = sample_stage(sampler, reward, asked, prompts=prompts, num_samples=samples)
    right = first_of_each(refined.samples.texts, refined.correct)
    r = refined.correct.double().mean(dim=1)[list(right)]
    targets = [replace(asked[i], answer=text) for i, text in right.items()]
    return _Revisions(targets, [drafts[i] for i in right], torch.log(r * (1 - r)))


def first_of_each(texts: Sequence[str], chosen: Bool[Tensor, "P n"]) -> dict[int, str]:
    """The first chosen text of each row that has one: row -> text. `texts` are flattened row by row."""
    n = chosen.shape[1]
    firsts = chosen.int().argmax(dim=1).tolist()
    return {i: texts[i * n + j] for i, j in enumerate(firsts) if chosen[i, j]}


def _gradient(
    policy: Policy, problems: Sequence[Problem], drafts: Sequence[str] | None, weights: Tensor
) -> list[Tensor]:
    """Gradient of sum_i w_i log pi(answer_i | .) in the parameters that are trained."""
    policy.model.zero_grad()
    for rows in _chunks(len(problems)):
        log_probs, _ = answer_log_probs(policy, problems[rows], None if drafts is None else drafts[rows])
        (weights[rows] * log_probs.sum(dim=1)).sum().backward()
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in _trained(policy)]


def _trained(policy: Policy) -> list[Tensor]:
    return [p for p in policy.model.parameters() if p.requires_grad]


def _norm(gradient: Sequence[Tensor]) -> float:
    return float(sum(g.double().square().sum() for g in gradient)) ** 0.5


@torch.no_grad()
def _rises(
    policy: Policy,
    gradient: Sequence[Tensor],
    length: float,
    others: _Revisions,
    drafts: Sequence[list[str] | None],
) -> list[Float[Tensor, "M T"]]:
    """Rise of log pi(answer | .) by a step of this length, for each kind of prompt; the step is undone."""
    parameters, norm = _trained(policy), _norm(gradient)
    start = [p.clone() for p in parameters]
    before = [answer_tokens(policy, others.problems, shown) for shown in drafts]
    for p, g in zip(parameters, gradient, strict=True):
        p += g * (length / norm if norm else 0.0)
    after = [answer_tokens(policy, others.problems, shown) for shown in drafts]
    for p, old in zip(parameters, start, strict=True):
        p.copy_(old)
    return [b - a for a, b in zip(before, after, strict=True)]


def _ratio(top: Float[Tensor, " M"], bottom: Float[Tensor, " M"], rng: np.random.Generator) -> Interval:
    """mean(top) / mean(bottom), bootstrapped over problems; unbounded unless the mean of `bottom` is > 0."""
    values = torch.stack([top, bottom], dim=1).numpy()
    means, (a, b) = bootstrap_means(values, rng=rng), values.mean(axis=0)
    ends = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
    if b <= 0 or np.quantile(means[:, 1], ends[0]) <= 0:
        return Interval(float(a / b) if b > 0 else np.nan, -np.inf, np.inf, CONFIDENCE)
    low, high = np.quantile(means[:, 0] / means[:, 1], ends)
    return Interval(float(a / b), float(low), float(high), CONFIDENCE)
