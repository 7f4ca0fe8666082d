"""A reading of a policy before reinforcement learning: how rare right answers are, and what a draft changes.

Where every problem has one correct answer, written in one way, all rates are exp(log pi) and have no sampling
error but that of the drafts. Elsewhere they are fractions of K samples, and where none of n samples was
correct there is only a bound: Wilson's upper end, 3.8 / n for small rates. (The chance of no success is at
most (1 - p)^n for the mean p of the problems, however much they differ, so a bound of this form holds.)

All intervals are at 95%. Those of means over problems are bootstrapped over problems, on the linear scale:
live groups and waiting times depend on the mean of p, not on that of log p. A mean of exponentials is
dominated by the easiest prompts, so its interval is wide and skewed, and a few more prompts can move it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import comb

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from igrpo_kit.analysis.exact.waiting import WaitingTime, live_probability
from igrpo_kit.analysis.stats.intervals import Interval, bootstrap_interval, wilson_interval
from igrpo_kit.analysis.transfer import (
    CONFIDENCE,
    UNKNOWN,
    answer_tokens,
    first_of_each,
    refinement_prompts,
    unique_answers,
)
from igrpo_kit.core.selection import select_best_draft
from igrpo_kit.core.toy import best_of_n_probability
from igrpo_kit.policies.samplers.encoding import encode_answers
from igrpo_kit.policies.samplers.sampler import Sampler
from igrpo_kit.tasks.problem import Problem
from igrpo_kit.tasks.rewards import RewardLike
from igrpo_kit.training.rollout import Stage, sample_drafts, sample_stage


@dataclass(frozen=True)
class Reading:
    """A policy on problems, before any training. An interval is NaN where nothing could be measured."""

    exact: bool
    """rates are exp(log pi) of unique answers; False: fractions of samples"""
    problems: int
    samples: int
    """K, completions per prompt"""
    prompts_per_step: int
    num_drafts: int
    num_refinements: int
    p: Interval
    """probability of a correct answer on q"""
    repair: Interval
    """r: of a correct refinement of an own wrong draft"""
    keep: Interval
    """of a correct refinement of a right draft: the reference answer if exact, else an own one"""
    copy: Interval
    """of a refinement that repeats an own wrong draft"""
    foreign: Interval
    """r on another problem's wrong draft, the control"""
    own_over_foreign: Interval
    """r on own minus r on foreign wrong drafts, paired by problem"""
    reliance: Interval
    """log pi(answer | q') - log pi(answer | q) on own wrong drafts, in nats; NaN unless exact"""
    live_grpo: Interval
    """share of live groups of N + G completions of q"""
    live_refine: Interval
    """share of live groups of Stage 2: G refinements of the best of N drafts"""
    wait_grpo: Interval
    """expected steps to GRPO's first live group, the infinity where none can occur"""
    wait_refine: Interval
    """the same for Stage 2"""


_Values = Float[np.ndarray, " M"]


@dataclass(frozen=True)
class _Rates:
    """Each quantity's values, one per problem that has one; the sampled ones with the number of trials."""

    values: Mapping[str, _Values]
    trials: Mapping[str, int]


def take_reading(
    sampler: Sampler,
    reward: RewardLike,
    problems: Sequence[Problem],
    *,
    rng: np.random.Generator,
    samples: int = 8,
    prompts_per_step: int = 32,
    num_drafts: int = 4,
    num_refinements: int = 4,
    exact: bool | None = None,
) -> Reading:
    """Measure a policy for a batch of P prompts with N drafts and G refinements, against GRPO with N + G.

    Args:
        sampler: samples drafts, and refinements if the answers are not unique.
        reward: scores completions. If `exact`, it must be 1 for the reference answer and 0 otherwise.
        problems: at least 2, in the number that the intervals need (256 is usual).
        rng: source of randomness of the bootstrap.
        samples: K; at least N + G, so that live groups can be counted without bias.
        prompts_per_step: P.
        num_drafts: N.
        num_refinements: G.
        exact: whether every problem has one correct answer that the policy writes in one way; None finds out
            from the problems' sources.

    Raises:
        ValueError: fewer than 2 problems; P, N or G is below 1; samples < N + G; or exact, and the sampler's
            temperature is not 1 or its length limit is below an answer's.
    """
    for name, value in (("prompts_per_step", prompts_per_step), ("num_drafts", num_drafts)):
        if value < 1:
            raise ValueError(f"{name} must be >= 1, got {value}")
    if num_refinements < 2:
        raise ValueError(f"num_refinements must be >= 2 (a group of 1 is never live), got {num_refinements}")
    if samples < num_drafts + num_refinements:
        raise ValueError(f"samples: N + G = {num_drafts + num_refinements} are needed, got {samples}")
    if len(problems) < 2:
        raise ValueError(f"problems: at least 2 are needed, got {len(problems)}")
    problems = list(problems)
    exact = unique_answers(problems) if exact is None else exact
    measure = _exact_rates if exact else _sampled_rates
    rates = measure(sampler, reward, problems, samples, num_drafts, num_refinements)
    found = {name: _interval(x, rates.trials.get(name), rng) for name, x in rates.values.items()}
    own, foreign = found["repair"], found["foreign"]
    if not exact and own.estimate == foreign.estimate == 0:  # then a difference of 0 is not known to be 0
        found["own_over_foreign"] = Interval(0.0, -foreign.high, own.high, CONFIDENCE)
    return Reading(
        exact=exact,
        problems=len(problems),
        samples=samples,
        prompts_per_step=prompts_per_step,
        num_drafts=num_drafts,
        num_refinements=num_refinements,
        **found,
        wait_grpo=waiting_time(found["live_grpo"], prompts_per_step),
        wait_refine=waiting_time(found["live_refine"], prompts_per_step),
    )


def waiting_time(live: Interval, prompts_per_step: int) -> Interval:
    """Expected steps to the first live group, 1 / (1 - (1 - live)^P), from the share of live groups."""

    def steps(share: float) -> float:
        if np.isnan(share):
            return np.nan
        return float(WaitingTime(float(best_of_n_probability(min(share, 1.0), prompts_per_step))).mean)

    return Interval(steps(live.estimate), steps(live.high), steps(live.low), live.confidence)


def _interval(values: _Values, trials: int | None, rng: np.random.Generator) -> Interval:
    """Bootstrap over problems; Wilson's interval where all `trials` samples failed, or all succeeded."""
    if not len(values):
        return UNKNOWN
    if trials is not None and (np.all(values == 0) or np.all(values == 1)):
        return wilson_interval(int(trials * values[0]), trials, confidence=CONFIDENCE)
    return bootstrap_interval(values, rng=rng, confidence=CONFIDENCE)


def _exact_rates(
    sampler: Sampler, reward: RewardLike, problems: list[Problem], K: int, N: int, G: int
) -> _Rates:
    policy = sampler.policy
    _check_exact(sampler, problems)
    stage = sample_drafts(sampler, reward, problems, num_drafts=K)
    texts, wrong = stage.samples.texts, (~stage.correct).numpy()
    log_p = answer_tokens(policy, problems).sum(dim=1).numpy()
    rows, columns = wrong.nonzero()
    log_r = np.full(wrong.shape, np.nan)
    if len(rows):
        own = [texts[i * K + j] for i, j in zip(rows, columns, strict=True)]
        log_r[rows, columns] = answer_tokens(policy, [problems[i] for i in rows], own).sum(dim=1).numpy()
    keep = _p(answer_tokens(policy, problems, [p.answer for p in problems]).sum(dim=1).numpy())
    p, r = _p(log_p), _p(log_r)

    shown = first_of_each(texts, torch.from_numpy(wrong))
    asked, drafts = [problems[i] for i in shown], list(shown.values())
    foreign, copy = np.empty(0), np.empty(0)
    if drafts:
        again = [replace(problem, answer=draft) for problem, draft in zip(asked, drafts, strict=True)]
        copy = _p(answer_tokens(policy, again, drafts).sum(dim=1).numpy())
    if len(drafts) > 1:
        foreign = _p(answer_tokens(policy, asked, drafts[-1:] + drafts[:-1]).sum(dim=1).numpy())
    has_wrong = list(shown)
    repair = np.nanmean(r[has_wrong], axis=1)
    repaired_live = np.zeros(len(problems))
    repaired_live[has_wrong] = np.nanmean(_live_or_nan(r[has_wrong], G), axis=1)
    best = np.asarray(best_of_n_probability(p, N))
    return _Rates(
        {
            "p": p,
            "repair": repair,
            "keep": keep,
            "copy": copy,
            "foreign": foreign,
            "own_over_foreign": repair - foreign if len(foreign) else foreign,
            "reliance": np.nanmean(log_r[has_wrong], axis=1) - log_p[has_wrong],
            "live_grpo": np.asarray(live_probability(p, N + G)),
            "live_refine": best * live_probability(keep, G) + (1 - best) * repaired_live,
        },
        {},
    )


def _live_or_nan(p: np.ndarray, group_size: int) -> np.ndarray:
    """`live_probability`, NaN where p is NaN."""
    return np.where(np.isnan(p), np.nan, live_probability(np.nan_to_num(p), group_size))


def _p(log_probs: np.ndarray) -> np.ndarray:
    """Probabilities; a log-prob may be above 0 by a rounding error."""
    return np.exp(np.minimum(log_probs, 0.0))


def _check_exact(sampler: Sampler, problems: Sequence[Problem]) -> None:
    settings, policy = sampler.settings, sampler.policy
    if settings.temperature != 1 or settings.top_p != 1:
        raise ValueError(
            f"sampler: exact rates are those of temperature 1 and top_p 1, got {settings.temperature} and "
            f"{settings.top_p}"
        )
    longest = encode_answers(policy.tokenizer, [p.answer for p in problems], torch.device("cpu"))[1].shape[1]
    if settings.max_new_tokens < longest:
        raise ValueError(
            f"sampler: an answer needs {longest} tokens, max_new_tokens is {settings.max_new_tokens}"
        )


def _sampled_rates(
    sampler: Sampler, reward: RewardLike, problems: list[Problem], K: int, N: int, G: int
) -> _Rates:
    stage = sample_drafts(sampler, reward, problems, num_drafts=K)
    texts = stage.samples.texts
    wrong, right = first_of_each(texts, ~stage.correct), first_of_each(texts, stage.correct)
    chosen = select_best_draft(stage.rewards[:, :N]).tolist()
    best = {i: texts[i * K + j] for i, j in enumerate(chosen)}

    def refined(drafts: Mapping[int, str]) -> Stage | None:
        asked = [problems[i] for i in drafts]
        if not asked:
            return None
        prompts = refinement_prompts(sampler.policy, asked, list(drafts.values()))
        return sample_stage(sampler, reward, asked, prompts=prompts, num_samples=K)

    drafts = list(wrong.values())
    others = dict(zip(wrong, drafts[-1:] + drafts[:-1], strict=True)) if len(drafts) > 1 else {}
    own, foreign = refined(wrong), refined(others)
    values = {
        "p": _fractions(stage),
        "repair": _fractions(own),
        "keep": _fractions(refined(right)),
        "copy": np.empty(0) if own is None else _copied(own, drafts),
        "foreign": _fractions(foreign),
    }
    trials = {name: K * len(rates) for name, rates in values.items()}
    values |= {
        "own_over_foreign": values["repair"] - values["foreign"] if others else np.empty(0),
        "reliance": np.empty(0),
        "live_grpo": _live_fractions(stage.rewards, N + G),
        "live_refine": _live_fractions(refined(best).rewards, G),  # type: ignore[union-attr]
    }
    trials |= {"live_grpo": len(problems) * (K // (N + G)), "live_refine": len(problems) * (K // G)}
    return _Rates(values, trials)


def _fractions(stage: Stage | None) -> _Values:
    """Fraction of correct completions of each problem."""
    return np.empty(0) if stage is None else stage.correct.double().mean(dim=1).numpy()


def _copied(stage: Stage, drafts: Sequence[str]) -> _Values:
    """Fraction of each problem's completions that are its draft, word for word."""
    n = stage.samples.num_samples
    same = [text == drafts[row // n] for row, text in enumerate(stage.samples.texts)]
    return np.array(same, dtype=np.float64).reshape(-1, n).mean(axis=1)


def _live_fractions(rewards: Float[Tensor, "P K"], group_size: int) -> _Values:
    """Of all groups that can be formed of each problem's K rewards, the share that is live (unbiased)."""
    groups = comb(rewards.shape[1], group_size)
    scored = rewards.nan_to_num(nan=0.0).tolist()  # what could not be scored counts as wrong
    dead = [sum(comb(times, group_size) for times in Counter(row).values()) for row in scored]
    return 1 - np.array(dead) / groups
