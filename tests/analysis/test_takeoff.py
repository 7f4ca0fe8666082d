"""Take-off: shares, areas, censored times, and differences of bounded numbers, by hand."""

import pytest

from igrpo_kit.analysis.compare import Record
from igrpo_kit.analysis.takeoff import (
    bounded_difference,
    first_step,
    mean_p,
    p_after,
    p_at,
    reach_curve,
    share_taken_off,
)


def run(seed, *p, every=10):
    return Record("m", seed, [], [], [{"step": i * every, "p": x} for i, x in enumerate(p)])


def test_read_outs_of_one_run():
    record = run(0, 0.0, 0.1, 0.5, 0.4)
    assert p_at(record, 20) == 0.5
    assert mean_p(record) == pytest.approx(0.25)
    assert (first_step(record, 0.1), first_step(record, 0.5), first_step(record, 0.6)) == (10, 20, None)
    with pytest.raises(LookupError, match="step 15"):
        p_at(record, 15)


def test_share_taken_off_is_wilson():
    interval = share_taken_off([run(0, 0.0, 0.2), run(1, 0.0, 0.09), run(2, 0.0, 0.0)])
    assert interval.estimate == pytest.approx(1 / 3)
    assert (interval.low, interval.high) == pytest.approx((0.0615, 0.7923), abs=1e-3)


def test_times_are_censored_at_the_end_of_a_run():
    """Reached at 10 and 30, never in 40 steps, and one run that ended at 20 before it reached the level.

    Kaplan-Meier by hand: at 10, 4 at risk, S = 3/4; at 30, 2 at risk (one left at 20), S = 3/4 * 1/2 = 3/8.
    """
    runs = [
        run(0, 0, 0.6, 0.6, 0.6, 0.6), run(1, 0, 0, 0, 0.5, 0.6), run(2, 0, 0, 0, 0, 0), run(3, 0, 0, 0),
    ]  # fmt: skip
    curve = reach_curve(runs)
    assert curve.steps == [10, 30]
    assert curve.share == pytest.approx([1 / 4, 5 / 8])
    assert all(low <= s <= high for low, s, high in zip(curve.low, curve.share, curve.high, strict=True))
    assert curve.median == 30


def test_a_level_that_no_run_reaches_or_all_reach():
    assert reach_curve([run(0, 0, 0)]).steps == [] and reach_curve([run(0, 0, 0)]).median is None
    curve = reach_curve([run(0, 0, 1), run(1, 0, 0, 1)])
    assert curve.share == pytest.approx([0.5, 1.0]) and curve.median == 10


def test_a_difference_needs_both_intervals():
    own, other = {0: 0.9, 1: 0.8, 2: 1.0}, {0: 0.1, 1: 0.1, 2: 0.1, 7: 0.3}
    d = bounded_difference(own, other)
    assert d.bootstrap.estimate == d.student.estimate == pytest.approx(0.8) and d.sign == 1
    assert bounded_difference(other, own).sign == -1
    # One run of three took off: the bootstrap interval touches 0.
    assert bounded_difference({0: 0.9, 1: 0.0, 2: 0.0}, {0: 0.0, 1: 0.0, 2: 0.0}).sign == 0
    with pytest.raises(ValueError, match="other"):
        bounded_difference({0: 0.1, 1: 0.2}, {0: 0.3})


def test_p_after_a_share_of_the_run_is_interpolated():
    record = run(0, 0.0, 0.2, 0.6, every=25)
    assert [p_after(record, s) for s in (0.25, 0.5, 1.0)] == pytest.approx([0.1, 0.2, 0.6])
