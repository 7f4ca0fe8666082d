"""The pictures of `figures/`, each drawn anew from data or from a seeded simulation: `igrpo figures`."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import plotly.graph_objects as go

from igrpo_kit.analysis.compare import load_experiment
from igrpo_kit.experiments import EXPERIMENTS, record_folders
from igrpo_kit.toy import simulate_best_of_n, simulate_igrpo
from igrpo_kit.viz.plots import plot_best_of_n, plot_mixed_groups, write_pngs
from igrpo_kit.viz.runs import plot_comparison

RECORDS = Path(__file__).parent.parent.parent / "data" / "runs"
"""The committed run records."""


def best_of_n() -> go.Figure:
    """Proposition 3.1 against a simulation small enough (1,000 prompts a point) for its noise to be seen."""
    p, n, trials = np.arange(0.05, 1, 0.1), [1, 2, 4, 8, 16], 1000
    rng = np.random.default_rng(0)
    simulated = np.array([[simulate_best_of_n(x, size, trials, rng) for x in p.tolist()] for size in n])
    return plot_best_of_n(p, n, simulated, trials)


def mixed_groups() -> go.Figure:
    """Which groups carry a gradient, in GRPO and in iGRPO, at eight rollouts per prompt."""
    p, rng = np.arange(0.05, 1, 0.05), np.random.default_rng(0)
    results = [
        simulate_igrpo(
            p_mean=x,
            p_concentration=1e9,  # all prompts alike
            p_fix=None,
            p_keep=0.95,
            num_drafts=4,
            num_refinements=4,
            prompts=200_000,
            rng=rng,
        )
        for x in p.tolist()
    ]
    assumption = "a model: 95 % of refinements keep a right draft; a wrong one changes nothing"
    return plot_mixed_groups(p, results, num_drafts=4, num_refinements=4, assumption=assumption)


def comparison(preset: str) -> go.Figure:
    """A committed experiment, from its records."""
    experiment = EXPERIMENTS[preset]
    records, base = load_experiment(RECORDS / preset, record_folders(experiment))
    return plot_comparison(records, base, title=experiment.title)


FIGURES: dict[str, Callable[[], go.Figure]] = {
    "best_of_n": best_of_n,
    "mixed_groups": mixed_groups,
    "countdown-cpu": partial(comparison, "countdown-cpu"),
    "addition-cpu": partial(comparison, "addition-cpu"),
    "graded-cpu": partial(comparison, "graded-cpu"),
    "smollm2-cpu": partial(comparison, "smollm2-cpu"),
}
"""Name of the file -> what draws it."""


def draw_figures(folder: Path) -> list[Path]:
    """Write every figure as `folder/<name>.png`. Raises FileNotFoundError where no browser is found."""
    return write_pngs({folder / f"{name}.png": draw() for name, draw in FIGURES.items()})
