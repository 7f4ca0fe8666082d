"""Readings by hand, and the rule at every one of its verdicts."""

from dataclasses import replace

import numpy as np
import pytest

from igrpo_kit.analysis.meter import predict, take_reading, waiting_time
from igrpo_kit.analysis.meter.prediction import BOTH_STAGES, DRAFTS_FIRST, GRPO, WARM_UP, decide
from igrpo_kit.analysis.meter.reading import Reading
from igrpo_kit.analysis.stats.intervals import Interval
from igrpo_kit.analysis.transfer import UNKNOWN, Transfer
from igrpo_kit.core.prompts import PromptFormat
from igrpo_kit.policies.samplers.sampler import SamplingSettings
from igrpo_kit.policies.samplers.scripted import ScriptedSampler
from igrpo_kit.tasks.problem import Problem
from tests.analysis.test_transfer import PROBLEMS, Linear, exact, sampler

FORMAT = PromptFormat(system=None, refinement="{question} [{draft}]")
SUMS = [Problem("a", "0+1=", "1", "addition"), Problem("b", "1+1=", "2", "addition")]
BATCH = {"samples": 3, "prompts_per_step": 1, "num_drafts": 1, "num_refinements": 2}


def sampled(texts, **options):
    source = ScriptedSampler(texts, prompt_format=FORMAT)
    return take_reading(source, exact, SUMS, rng=np.random.default_rng(0), **{**BATCH, **options})


def test_a_sampled_reading_by_hand():
    script = [
        *("x", "1", "x"), *("y", "y", "y"),  # drafts of a and b
        *("1", "x", "1"), *("2", "2", "y"),  # refinements of x and of y
        *("y", "y", "1"), *("x", "x", "x"),  # of each other's draft
        *("1", "1", "x"),  # of a's right draft
        *("1", "x", "x"), *("2", "2", "2"),  # of the best of one draft
    ]  # fmt: skip
    r = sampled(script)
    expected = {
        "p": 1 / 6, "repair": 2 / 3, "keep": 2 / 3, "copy": 1 / 3, "foreign": 1 / 6,
        "own_over_foreign": 1 / 2, "live_grpo": 1 / 2, "live_refine": 1 / 3, "wait_grpo": 2, "wait_refine": 3,
    }  # fmt: skip
    assert {name: getattr(r, name).estimate for name in expected} == pytest.approx(expected)
    assert not r.exact and np.isnan(r.reliance.estimate)
    assert (r.p.low, r.p.high) == pytest.approx((0, 1 / 3))  # two problems: all resamples are of these


def test_where_nothing_was_right_there_is_a_bound():
    r = sampled(["x"] * 30)
    assert (r.p.estimate, r.p.low) == (0, 0)
    assert r.p.high == r.repair.high == pytest.approx(0.3903, abs=1e-4)  # z^2 / (6 + z^2)
    assert (r.own_over_foreign.low, r.own_over_foreign.high) == pytest.approx((-0.3903, 0.3903), abs=1e-4)
    assert r.wait_grpo.estimate == r.wait_grpo.high == np.inf
    assert r.live_grpo.high == pytest.approx(0.6576, abs=1e-4)  # one group of 3 for each problem
    assert r.wait_grpo.low == pytest.approx(1 / 0.6576, abs=1e-3)
    assert np.isnan(r.keep.estimate)


def test_an_exact_reading_of_a_uniform_model():
    """p = 1 / 32^3: three tokens, the end included, of 32."""
    r = take_reading(sampler(Linear(1.0, 0.0)), exact, PROBLEMS, rng=np.random.default_rng(0))
    assert r.exact
    for rate in (r.p, r.repair, r.keep, r.copy, r.foreign):
        assert rate.estimate == pytest.approx(3.0517578e-5, rel=1e-6)
    assert r.reliance.estimate == pytest.approx(0, abs=1e-6)
    assert r.live_grpo.estimate == pytest.approx(2.4411e-4, rel=1e-4)
    assert r.wait_grpo.estimate == pytest.approx(128.5, abs=0.01)
    assert r.wait_refine.estimate == pytest.approx(256.5, abs=0.01)


def test_drafts_are_read_from_the_models_own_side():
    """A bias on q' alone raises r, not p; and a foreign draft is as good, because only q' is told from q."""
    model = Linear(0.0, 1.0)
    model.on_draft.data[:, 4 + 1] = 3.0  # the digit 1 on q'
    r = take_reading(sampler(model), exact, PROBLEMS, rng=np.random.default_rng(0))
    assert r.p.estimate == pytest.approx(3.0517578e-5, rel=1e-6)
    assert r.repair.estimate > 4 * r.p.estimate
    assert r.own_over_foreign.estimate == pytest.approx(0, abs=1e-9)
    assert r.reliance.estimate == pytest.approx(np.log(r.repair.estimate / r.p.estimate))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"samples": 2}, "samples: N \\+ G = 3"),
        ({"prompts_per_step": 0}, "prompts_per_step"),
        ({"num_drafts": 0}, "num_drafts"),
        ({"num_refinements": 1}, "num_refinements"),
    ],
)
def test_bad_sizes_are_named(changed, message):
    with pytest.raises(ValueError, match=message):
        sampled(["x"] * 30, **changed)


def test_what_an_exact_reading_cannot_be_taken_with_is_named():
    source = sampler(Linear(1.0, 0.0))
    for settings, message in (
        (SamplingSettings(3, temperature=0.7), "temperature 1"),
        (SamplingSettings(3, top_p=0.9), "top_p 1"),
        (SamplingSettings(2), "needs 3 tokens"),
    ):
        source.settings = settings
        with pytest.raises(ValueError, match=f"sampler: .*{message}"):
            take_reading(source, exact, PROBLEMS, rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match="problems: at least 2"):
        take_reading(source, exact, PROBLEMS[:1], rng=np.random.default_rng(0))


def test_waiting_time_turns_the_interval_round():
    wait = waiting_time(Interval(0.01, 0.0, 0.5, 0.95), 2)
    assert wait.estimate == pytest.approx(50.2513, abs=1e-4)  # 1 / (1 - .99^2)
    assert wait.low == pytest.approx(4 / 3)
    assert wait.high == np.inf
    assert np.isnan(waiting_time(UNKNOWN, 2).estimate)


@pytest.mark.parametrize(
    ("changed", "verdict"),
    [
        ({}, DRAFTS_FIRST),
        ({"wait_grpo": np.inf}, DRAFTS_FIRST),
        ({"wait_grpo": 39}, BOTH_STAGES),
        ({"wait_grpo": 10}, GRPO),  # a twentieth of the run
        ({"p": 0.99, "wait_grpo": np.inf, "wait_refine": np.inf}, GRPO),  # nearly solved, not hopeless
        ({"wait_refine": 39}, GRPO),  # not much shorter than 150
        ({"wait_grpo": 1000, "wait_refine": 50}, WARM_UP),
        ({"wait_grpo": np.inf, "wait_refine": np.inf}, WARM_UP),
        ({"limiting": 0.03}, GRPO),
        ({"limiting": 0.03, "wait_grpo": 1000}, WARM_UP),  # q' can be learned, q cannot
        ({"own_over_foreign": 0.0, "wait_grpo": 1000}, WARM_UP),
        ({"limiting": np.nan, "wait_grpo": 1000}, WARM_UP),
    ],
)
def test_the_rule(changed, verdict):
    point = {"p": 2e-5, "wait_grpo": 150, "wait_refine": 2, "limiting": 1.0, "own_over_foreign": 0.01}
    assert decide(**{**point, **changed}, steps=200)[0] == verdict


def between(low, estimate, high):
    return Interval(estimate, low, high, 0.95)


def reading(**changed):
    names = ("keep", "copy", "foreign", "reliance", "live_grpo", "live_refine")
    known = {
        "p": between(1e-5, 2e-5, 3e-5),
        "repair": between(0.003, 0.004, 0.005),
        "own_over_foreign": between(0.003, 0.004, 0.005),
        "wait_grpo": between(100, 150, 300),
        "wait_refine": between(2, 2, 3),
    }
    sizes = {"prompts_per_step": 32, "num_drafts": 4, "num_refinements": 4}
    first = Reading(exact=True, problems=256, samples=8, **sizes, **dict.fromkeys(names, UNKNOWN), **known)
    return replace(first, **changed)


def moved(limiting):
    return Transfer(all_tokens=UNKNOWN, limiting=limiting, against_q=UNKNOWN, problems=128)


def test_a_prediction_lists_what_the_intervals_leave_possible():
    sure = predict(reading(), moved(between(0.8, 1.0, 1.2)), steps=200)
    assert (sure.verdict, sure.possible, sure.advice) == (DRAFTS_FIRST, (DRAFTS_FIRST,), None)
    assert sure.reason == (
        "GRPO waits 150 steps of 200, Stage 2 only 2, and q' teaches q; so at all interval ends."
    )
    unsure = predict(reading(wait_grpo=between(9, 150, 300)), moved(between(0.0, 1.0, 1.2)), steps=200)
    assert unsure.possible == (DRAFTS_FIRST, GRPO, WARM_UP)
    assert unsure.reason.endswith("within the intervals also: GRPO, more warm-up.")


def test_what_was_not_measured_is_not_shown_and_not_excluded():
    unknown = predict(reading(), moved(UNKNOWN), steps=200)
    assert unknown.verdict == GRPO and DRAFTS_FIRST in unknown.possible


def test_where_neither_starts_partial_credit_is_advised():
    never = Interval(np.inf, 500, np.inf, 0.95)
    stuck = predict(reading(wait_grpo=never, wait_refine=never), moved(between(0.8, 1, 1.2)), steps=200)
    assert stuck.verdict == WARM_UP and "partial credit" in stuck.advice
    with pytest.raises(ValueError, match="steps must be >= 1"):
        predict(reading(), moved(UNKNOWN), steps=0)
