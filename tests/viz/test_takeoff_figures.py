"""Take-off figures: exact rates as they are, noise left out, runs that never reach the level."""

import numpy as np

from igrpo_kit.analysis.compare import Record
from igrpo_kit.viz.runs import plot_reach, plot_takeoff
from igrpo_kit.viz.style import alt_text


def run(method, seed, p, wrong):
    steps = [10 * i for i in range(len(p))]
    exact = [
        {"step": s, "p": x, "log_prob": -1.0, "repair": 0.5 if w else None, "drafts_wrong": w}
        for s, x, w in zip(steps, p, wrong, strict=True)
    ]
    metrics = [{"step": s, "dead_groups": 1.0} for s in range(1, steps[-1] + 1)]
    return Record(method, seed, metrics, [], exact)


RUNS = [
    run("a", 0, (0.0, 0.6, 0.9), (1.0, 0.2, 0.05)), run("a", 1, (0.0, 0.1, 0.7), (1.0, 0.9, 0.0)),
    run("b", 0, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)), run("b", 1, (0.0, 0.0, 0.1), (1.0, 1.0, 1.0)),
]  # fmt: skip


def test_p_is_the_mean_over_runs_and_a_repair_rate_of_few_wrong_drafts_is_left_out():
    lines = [t for t in plot_takeoff(RUNS, title="x").data if t.name == "a"]
    np.testing.assert_allclose(lines[0].y, [0.0, 0.35, 0.8])
    np.testing.assert_array_equal(lines[2].y, [0.5, 0.5, np.nan])


def test_a_method_that_never_reaches_the_level_stays_at_zero():
    figure = plot_reach(RUNS, title="x")
    shares = {t.name: (list(t.x), list(t.y)) for t in figure.data if t.name}
    assert shares == {"a": ([0, 10, 20, 20], [0, 0.5, 1, 1]), "b": ([0, 20], [0, 0])}
    assert "b from 0.00 to 0.00" in alt_text(figure)
