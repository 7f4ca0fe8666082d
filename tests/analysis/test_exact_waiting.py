"""Waiting times: typed numbers, integrals, sampled prompts and groups, the rules of thumb, hostile input."""

import numpy as np
import pytest
from scipy.stats import beta

from igrpo_kit.analysis.exact.waiting import (
    BetaPrompts,
    LogitNormalPrompts,
    WaitingTime,
    grpo_wait,
    live_probability,
    refinement_wait,
)


def test_live_groups_by_hand():
    assert live_probability(0.5, 2) == pytest.approx(0.5)
    assert live_probability(0.1, 4) == pytest.approx(0.3438)  # 1 - .0001 - .6561
    assert live_probability([0.0, 1.0], 8).tolist() == [0, 0]
    assert live_probability(0.3, 1) == 0
    assert live_probability(1e-12, 8) == pytest.approx(8e-12, rel=1e-9, abs=0)
    assert live_probability(1 - 2**-40, 8) == pytest.approx(8 * 2**-40, rel=1e-9, abs=0)


def test_uniform_prompts_by_hand():
    """Beta(1, 1): E[p^G] = 1 / (G + 1)."""
    prompts = BetaPrompts(0.5, 2.0)
    assert prompts.best_of_n(3) == pytest.approx(0.75)
    assert prompts.live(3) == pytest.approx(0.5)


@pytest.mark.parametrize("mean", [0.3, 0.8, 0.02])
def test_beta_prompts_against_the_integral(mean):
    expected = beta(mean * 3, (1 - mean) * 3).expect(lambda p: 1 - p**8 - (1 - p) ** 8)
    assert BetaPrompts(mean, 3.0).live(8) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    "prompts",
    [BetaPrompts(0.2, 1e9), BetaPrompts(1e-5, 1e9), LogitNormalPrompts(0.2), LogitNormalPrompts(1e-5)],
)
def test_prompts_that_are_alike(prompts):
    assert prompts.best_of_n(4) == pytest.approx(1 - (1 - prompts.mean) ** 4, rel=1e-6)
    assert prompts.live(8) == pytest.approx(live_probability(prompts.mean, 8), rel=1e-6)


@pytest.mark.parametrize("sd", [0.5, 2.0])
def test_logit_normal_prompts_against_a_sample(sd):
    rng = np.random.default_rng(0)
    x = rng.normal(size=1_000_000) * sd
    prompts = LogitNormalPrompts(0.05, sd)
    low, high = -20.0, 5.0
    for _ in range(50):  # the location, by bisection on the sample
        middle = (low + high) / 2
        low, high = (middle, high) if (1 / (1 + np.exp(-x - middle))).mean() < 0.05 else (low, middle)
    p = 1 / (1 + np.exp(-x - low))
    assert prompts.best_of_n(1) == pytest.approx(0.05)
    assert prompts.live(8) == pytest.approx((1 - p**8 - (1 - p) ** 8).mean(), rel=5e-3)


def test_prompts_that_differ_are_live_less_often():
    assert BetaPrompts(0.1, 0.5).live(8) < LogitNormalPrompts(0.1, 1.0).live(8) < live_probability(0.1, 8)


def test_a_geometric_waiting_time():
    wait = WaitingTime(0.5)
    assert wait.mean == 2
    assert wait.reached_by([1, 2, 3]).tolist() == [0.5, 0.75, 0.875]
    assert [wait.quantile(share) for share in (0.4, 0.5, 0.75, 0.9)] == [1, 1, 2, 4]
    assert WaitingTime(0.0).mean == WaitingTime(0.0).quantile(0.5) == float("inf")
    assert WaitingTime(1.0).mean == WaitingTime(1.0).quantile(0.999) == 1
    samples = np.random.default_rng(0).geometric(0.03, size=100_000)
    wait = WaitingTime(0.03)
    assert samples.mean() == pytest.approx(wait.mean, rel=0.02)
    assert np.quantile(samples, [0.1, 0.5, 0.9]) == pytest.approx(
        [wait.quantile(s) for s in (0.1, 0.5, 0.9)], abs=1
    )


def test_the_rules_of_thumb():
    """1 / (P R p), 256 rollouts at 1e-5, and 1 / (P G r), 128 refinements at .001."""
    prompts = LogitNormalPrompts(1e-5)
    assert grpo_wait(prompts, 8, 32).mean == pytest.approx(390.6, rel=3e-3)
    settings = {"num_drafts": 4, "num_refinements": 4, "prompts_per_step": 32}
    wait = refinement_wait(prompts, repair=0.001, keep=0.5, **settings)
    assert wait.mean == pytest.approx(7.81, rel=0.1)


def test_waiting_times_against_sampled_steps():
    rng, steps, prompts = np.random.default_rng(1), 40_000, 4
    p = rng.beta(0.2, 3.8, size=(steps, prompts))
    right = rng.binomial(8, p)
    live = ((right > 0) & (right < 8)).any(axis=1)
    assert 1 / grpo_wait(BetaPrompts(0.05, 4.0), 8, 4).mean == pytest.approx(live.mean(), abs=0.01)
    q = np.where(rng.binomial(3, p) > 0, 0.9, 0.02)
    right = rng.binomial(5, q)
    live = ((right > 0) & (right < 5)).any(axis=1)
    wait = refinement_wait(
        BetaPrompts(0.05, 4.0), repair=0.02, keep=0.9, num_drafts=3, num_refinements=5, prompts_per_step=4
    )
    assert wait.chance == pytest.approx(live.mean(), abs=0.01)


@pytest.mark.parametrize(
    "make, name",
    [
        (lambda: BetaPrompts(0.0, 1.0), "mean"),
        (lambda: BetaPrompts(0.5, 0.0), "concentration"),
        (lambda: BetaPrompts(0.5, float("nan")), "concentration"),
        (lambda: LogitNormalPrompts(1.0), "mean"),
        (lambda: LogitNormalPrompts(float("nan")), "mean"),
        (lambda: LogitNormalPrompts(0.5, -1.0), "sd"),
        (lambda: LogitNormalPrompts(0.5, float("inf")), "sd"),
        (lambda: BetaPrompts(0.5, 2.0).live(0), "group_size"),
        (lambda: live_probability(1.5, 4), "p must"),
        (lambda: WaitingTime(1.5), "chance"),
        (lambda: WaitingTime(0.5).quantile(1.0), "share"),
        (lambda: grpo_wait(LogitNormalPrompts(0.5), 8, 0), "prompts_per_step"),
    ],
)  # fmt: skip
def test_refusals_name_the_argument(make, name):
    with pytest.raises(ValueError, match=name):
        make()


@pytest.mark.parametrize(
    "wrong",
    [{"repair": -0.1}, {"keep": 1.1}, {"num_drafts": 0}, {"num_refinements": 0}, {"prompts_per_step": 0}],
)
def test_refinement_wait_names_the_argument(wrong):
    good = {"repair": 0.1, "keep": 0.5, "num_drafts": 4, "num_refinements": 4, "prompts_per_step": 32}
    with pytest.raises(ValueError, match=next(iter(wrong))):
        refinement_wait(LogitNormalPrompts(0.1), **(good | wrong))
