"""Interactive explorers, each one call: sliders and a figure, with the numbers in words beside it.

Every control works by keyboard. Each explorer is a `VBox` with one FigureWidget at most (a FigureWidget sends
5 MB of JavaScript to its browser); `figure()` gives a plain copy, which a saved notebook keeps.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Real
from scipy.special import betaln

from igrpo_kit.analysis.compare import Record
from igrpo_kit.analysis.dynamics import Curve, exact_curve, thin, training_curve
from igrpo_kit.analysis.exact.phase import CIPHER, PhaseDiagram, phase_diagram
from igrpo_kit.analysis.exact.waiting import LogitNormalPrompts, grpo_wait, refinement_wait
from igrpo_kit.analysis.exact.world import Trajectory, World, simulate
from igrpo_kit.analysis.stats.intervals import Interval
from igrpo_kit.core.advantages import group_advantages, leave_one_out_advantages
from igrpo_kit.core.losses import GRPO, clipped_objective
from igrpo_kit.core.rows import Row
from igrpo_kit.core.toy import best_of_n_probability
from igrpo_kit.viz.notebook import go, make_subplots, widgets
from igrpo_kit.viz.style import COLORS, PATTERNS, TEMPLATE, line_style, marker_style

_ALIKE = 1e9  # the concentration of a Beta distribution that looks like a point
_GROUP = 8  # rewards of the advantage explorer


def _traces(chart: go.FigureWidget) -> dict[str, Any]:
    """The traces of a chart by their names."""
    return {trace.name: trace for trace in chart.data}


def _set(trace: Any, x: Any, y: Any) -> None:
    trace.x, trace.y = x, y


class Explorer(widgets.VBox):
    """Controls, words and a figure. `words` is the text a screen reader reads; `controls` are by name.

    `redraw` draws and returns the words. It must set x *and* y of every trace: a browser loses the x that a
    trace was made with if only its y follows before it is shown.
    """

    def __init__(
        self, controls: dict[str, widgets.Widget], chart: go.FigureWidget, redraw: Callable[[], str]
    ) -> None:
        self.controls, self.chart, self._redraw = controls, chart, redraw
        chart._config = {**chart._config, "responsive": True}  # as wide as the page, also a narrow one
        self.words = widgets.HTML()
        for control in controls.values():
            control.observe(lambda _change: self.refresh(), names="value")
        super().__init__(
            [widgets.HBox(list(controls.values()), layout={"flex_flow": "row wrap"}), self.words, chart]
        )
        self.refresh()

    def refresh(self) -> None:
        """Draw what the controls are set to."""
        with self.chart.batch_update():
            self.words.value = f'<div role="status">{self._redraw()}</div>'

    def figure(self) -> go.Figure:
        """A plain figure of the current state."""
        return go.Figure(self.chart)


def _slider(kind: Any, name: str, value: float, low: float, high: float, step: float) -> widgets.Widget:
    return kind(
        value=value, min=low, max=high, step=step, description=name,
        continuous_update=False, style={"description_width": "initial"},
    )  # fmt: skip


def expected_best(mean_p: float, spread: float, n: Real[np.ndarray, " K"]) -> Float[np.ndarray, " K"]:
    """E[1 - (1 - p)^n] over prompts, p from a Beta distribution with this mean.

    `spread` in [0, 1): 0, all prompts alike; toward 1, hopeless or trivial (a + b = (1 - spread) / spread).
    """
    if spread == 0 or mean_p in (0.0, 1.0):
        return 1 - (1 - mean_p) ** n  # n = 0 drafts included
    a, b = _beta(mean_p, spread)
    return 1 - np.exp(betaln(a, b + n) - betaln(a, b))


def expected_dead(mean_p: float, spread: float, size: Real[np.ndarray, " K"]) -> Float[np.ndarray, " K"]:
    """E[p^G + (1 - p)^G] over the same prompts."""
    return (1 - expected_best(1 - mean_p, spread, size)) + (1 - expected_best(mean_p, spread, size))


def _beta(mean_p: float, spread: float) -> tuple[float, float]:
    concentration = (1 - spread) / spread if spread else _ALIKE
    return mean_p * concentration, (1 - mean_p) * concentration


def _two_panels(*titles: str) -> go.FigureWidget:
    chart = go.FigureWidget(make_subplots(rows=1, cols=2, subplot_titles=titles))
    legend = {"orientation": "h", "y": -0.2}
    return chart.update_layout(template=TEMPLATE, height=460, margin={"t": 50}, legend=legend)


_BUDGET = {
    "formula at the mean p": "lines",
    "prompts that differ": "lines",
    "simulated, 1,000 prompts": "markers",
    "best of N is correct": "lines+markers",
    "group of G is dead": "lines+markers",
    "your split": "markers",
}
"""trace -> how it is drawn; the first three in the left panel"""


def _budget_chart() -> go.FigureWidget:
    chart = _two_panels("best of k drafts", "budget split: best draft and dead group")
    for i, (name, mode) in enumerate(_BUDGET.items()):
        marker = {"color": COLORS[i], "size": 12 if name == "your split" else 6}
        chart.add_scatter(name=name, mode=mode, line=line_style(i), marker=marker, row=1, col=1 + i // 3)
    chart.update_xaxes(title="k", type="log", row=1, col=1).update_xaxes(title="N drafts", row=1, col=2)
    return chart.update_yaxes(range=[-0.02, 1.02])


def best_of_n_explorer(
    mean_p: float = 0.3, spread: float = 0.0, num_drafts: int = 4, budget: int = 8, *, seed: int = 0
) -> Explorer:
    """Best of N and dead groups: the formula, prompts that differ, a simulation, and the split N + G.

    The left panel shows the best of k drafts against k. The right panel splits a fixed budget: N drafts leave
    a group of G = budget - N with the same p (q' may change it: lesson 05). The simulation has 1,000 prompts.
    """
    controls = {
        "p": _slider(widgets.FloatSlider, "mean p", mean_p, 0.0, 1.0, 0.01),
        "spread": _slider(widgets.FloatSlider, "spread of p", spread, 0.0, 0.95, 0.05),
        "drafts": _slider(widgets.IntSlider, "N drafts", num_drafts, 0, 30, 1),
        "budget": _slider(widgets.IntSlider, "budget N + G", budget, 2, 32, 1),
    }
    k = np.arange(1, 33)
    chart = _budget_chart()
    traces = _traces(chart)

    def redraw() -> str:
        p, s, n, total = (controls[name].value for name in ("p", "spread", "drafts", "budget"))
        if n > total - 2:  # a group needs two
            n = controls["drafts"].value = total - 2
        rng = np.random.default_rng(seed)
        a, b = (max(x, 1e-9) for x in _beta(p, s))
        prompts = rng.beta(a, b, size=1000)
        first = rng.geometric(np.clip(prompts, 1e-12, 1.0))  # the first correct draft of each prompt
        split = np.arange(0.0, total - 1.0)
        best, dead = expected_best(p, s, split), expected_dead(p, s, total - split)
        _set(traces["formula at the mean p"], k, best_of_n_probability(p, k))
        _set(traces["prompts that differ"], k, expected_best(p, s, k))
        _set(traces["simulated, 1,000 prompts"], k, [float((first <= x).mean()) for x in k])
        _set(traces["best of N is correct"], split, best)
        _set(traces["group of G is dead"], split, dead)
        _set(traces["your split"], [n, n], [best[n], dead[n]])
        formula, simulated = float(best_of_n_probability(p, max(n, 1))), float((first <= n).mean())
        return (
            f"{n} drafts, mean p {p:.2f}: the formula at the mean says {formula if n else 0:.3f}; "
            f"over prompts that differ it is <b>{best[n]:.3f}</b> (simulated {simulated:.3f}). "
            f"A group of {total - n} is dead: <b>{dead[n]:.3f}</b>; "
            f"without drafts, a group of {total}: {dead[0]:.3f}."
        )

    return Explorer(controls, chart, redraw)


def _advantage_chart() -> go.FigureWidget:
    chart = _two_panels("advantages", "surrogate of o1 against the ratio")
    for i, name in enumerate(("GRPO", "Dr. GRPO", "leave one out")):
        marker = {"color": COLORS[i], "pattern": {"shape": PATTERNS[i]}}
        chart.add_bar(name=name, marker=marker, row=1, col=1)
    right = {"row": 1, "col": 2}
    chart.add_scatter(name="min(r A, clip(r) A)", line={"color": COLORS[3]}, **right)
    chart.add_scatter(name="your ratio", mode="markers", marker={"color": COLORS[4], "size": 12}, **right)
    chart.add_scatter(name="clip range", mode="lines", line={"color": COLORS[5], "dash": "dot"}, **right)
    return chart.update_xaxes(title="ratio r", **right)


def advantage_explorer(rewards: Sequence[float] = (1, 0, 0, 0, 1, 0, 0, 0)) -> Explorer:
    """Eight rewards to drag or type, three kinds of advantages, and the effect of the clip on the gradient.

    The advantages are those of GRPO, of Dr. GRPO (https://arxiv.org/abs/2503.20783), and of RLOO, which
    leaves one out (https://arxiv.org/abs/2402.14740). The right panel draws min(r A, clip(r) A) of Eq. 21 for
    o1 against the ratio r; the words give the factor I A r in front of grad log pi (Eq. 23) at your ratio.
    Raises ValueError unless there are eight rewards.
    """
    if len(rewards) != _GROUP:
        raise ValueError(f"rewards: {_GROUP} are wanted, got {len(rewards)}")
    controls = {
        f"R{i + 1}": _slider(widgets.FloatSlider, f"R{i + 1}", r, -1.0, 2.0, 0.1)
        for i, r in enumerate(rewards)
    }
    controls["ratio"] = _slider(widgets.FloatSlider, "ratio r", 1.0, 0.4, 2.0, 0.05)
    controls["clip"] = _slider(widgets.FloatSlider, "clip ε", 0.2, 0.05, 0.5, 0.05)
    names = [f"o{i + 1}" for i in range(_GROUP)]
    grid = np.linspace(0.4, 2.0, 161)
    chart = _advantage_chart()
    traces = _traces(chart)

    def redraw() -> str:
        row = torch.tensor([[controls[f"R{i + 1}"].value for i in range(_GROUP)]], dtype=torch.float64)
        advantages = {
            "GRPO": group_advantages(row),
            "Dr. GRPO": group_advantages(row, scale_by_std=False),
            "leave one out": leave_one_out_advantages(row),
        }
        for name, values in advantages.items():
            _set(traces[name], names, values[0].tolist())
        A, r, clip = advantages["GRPO"][0, 0].item(), controls["ratio"].value, controls["clip"].value
        surrogate = surrogate_at(grid, A, clip)
        low, high = float(surrogate.min()), float(surrogate.max())
        _set(traces["min(r A, clip(r) A)"], grid, surrogate)
        _set(traces["your ratio"], [r], surrogate_at(np.array([r]), A, clip))
        ends = [1 - clip, 1 - clip, None, 1 + clip, 1 + clip]
        _set(traces["clip range"], ends, [low, high, None, low, high])
        factor = gradient_factor(r, A, clip)
        dead = not advantages["GRPO"].any()
        state = "every advantage is 0: a <b>dead group</b>" if dead else f"o1 has advantage <b>{A:+.3f}</b>"
        stopped = " The clip has stopped it." if factor == 0 and A != 0 else ""
        return f"{state}. At r = {r:.2f} its log-probs are pushed with I·A·r = <b>{factor:+.3f}</b>.{stopped}"

    return Explorer(controls, chart, redraw)


def surrogate_at(ratio: Float[np.ndarray, " K"], advantage: float, clip: float) -> Float[np.ndarray, " K"]:
    """min(r A, clip(r, 1 - clip, 1 + clip) A) of one completion at several ratios (Eq. 21)."""
    r = torch.tensor(ratio)[:, None]
    A = torch.full((len(r),), advantage, dtype=r.dtype)
    return clipped_objective(r, A, clip_low=clip, clip_high=clip)[:, 0].numpy()


def gradient_factor(ratio: float, advantage: float, clip: float) -> float:
    """I A r: the factor of grad log pi (Eqs. 22, 23)."""
    r, A = torch.tensor([[ratio]], dtype=torch.float64), torch.tensor([advantage], dtype=torch.float64)
    clipped = GRPO(clip_low=clip, clip_high=clip).clipped(r, A)
    return 0.0 if clipped.item() else advantage * ratio


_CLOCKS = {
    "steps": "step",
    "sampled tokens": "tokens_sampled",
    "live tokens": "tokens_live",
    "accuracy": "held_out_reward",
}
_PANELS = {
    "reward on q": "reward",
    "entropy on q, nats": "entropy",
    "dead groups": "dead_groups",
    "copy rate": "copy_rate",
}
_EXACT_PANELS = {"p on q, exact": "p", "wrong drafts repaired": "repair"}
"""shown for records with exact rates; they are not smoothed"""


def run_explorer(records: Sequence[Record], base: Row) -> Explorer:
    """Runs side by side at equal steps, tokens or accuracy; hovering shows the values of all panels.

    One line per method and one seed at a time; `viz.runs` draws the means over seeds. Records with exact
    rates have two more panels, which show why a run stalls: q' is solved while p is still low.
    Raises ValueError for no record.
    """
    if not records:
        raise ValueError("records: at least one is needed")
    methods = list(dict.fromkeys(r.method for r in records))
    seeds = sorted({r.seed for r in records})
    controls = {
        "clock": widgets.Dropdown(options=list(_CLOCKS), description="equal"),
        "seed": widgets.Dropdown(options=seeds, description="seed"),
        "smooth": _slider(widgets.IntSlider, "mean of steps", 10, 1, 50, 1),
    }
    panels = _PANELS | (_EXACT_PANELS if any(r.exact for r in records) else {})
    grid = make_subplots(rows=len(panels), cols=1, shared_xaxes=True, vertical_spacing=0.04)
    chart, traces = go.FigureWidget(grid), {}
    for row, (title, metric) in enumerate(panels.items(), start=1):
        for i, method in enumerate(methods):
            chart.add_scatter(
                mode="lines", name=method, legendgroup=method, showlegend=row == 1, line=line_style(i),
                row=row, col=1,
            )  # fmt: skip
            traces[metric, method] = chart.data[-1]
        chart.update_yaxes(title=title, row=row, col=1)
    chart.update_layout(
        template=TEMPLATE, height=20 + 200 * len(panels), hovermode="x unified", hoversubplots="axis"
    )
    chart.update_layout(legend={"orientation": "h", "y": -0.08})

    def redraw() -> str:
        clock, seed, smooth = (controls[name].value for name in ("clock", "seed", "smooth"))
        chosen = {r.method: r for r in records if r.seed == seed}
        ends = []
        for (metric, method), trace in traces.items():
            x, y = _curve_or_nothing(chosen.get(method), metric, _CLOCKS[clock], base, smooth)
            _set(trace, x, y)
            if metric == "reward" and len(y):
                ends.append(f"{method}: reward {y[-1]:.3f} after {x[-1]:g}")
        chart.update_xaxes(
            title=clock if clock != "accuracy" else "held-out reward so far", row=len(panels), col=1
        )
        return f"Seed {seed}, at equal {clock}. " + "; ".join(ends) + "."

    return Explorer(controls, chart, redraw)


def _curve_or_nothing(record: Record | None, metric: str, clock: str, base: Row, smooth: int) -> Curve:
    try:
        if record is not None and metric in _EXACT_PANELS.values():
            return exact_curve(record, metric, clock)
        if record is not None:
            return thin(training_curve(record, metric, clock, base=base, on_q=True, smooth=smooth))
    except LookupError:  # GRPO copies nothing; exact rates have no clock of accuracy
        pass
    return Curve(np.array([]), np.array([]))


@dataclass(frozen=True)
class MapPoint:
    """A policy on the map: its rates before training, and how runs from it ended."""

    name: str
    p: Interval
    """probability of a correct answer on q"""
    repair: Interval
    """probability of a correct refinement of an own wrong draft"""
    outcome: int
    """sign of iGRPO minus GRPO at the end; 0 where the records do not decide it"""


_OUTCOMES = {1: "recorded: iGRPO ahead", -1: "recorded: GRPO ahead", 0: "recorded: undecided"}
_WITH_DRAFTS: dict[str, str] = {
    "iGRPO": "igrpo",
    "both stages": "both",
    "drafts, then GRPO": "drafts_then_grpo",
}
_BATCHES = (8, 16, 32, 64, 128, 256)
LEAD = 0.02
"""the line on the map: a lead in p that is worth a name, because at 0 both methods may not have started"""
_BUDGET_OF_MAP = 8
"""N + G; GRPO has groups of as many"""
_Steps = Float[np.ndarray, "_"]
_RUNS, _EVERY = 16, 10
"""runs of your point, and steps between two drawn points of their mean"""


def _map_chart(steps: int) -> go.FigureWidget:
    titles = ("p with drafts minus p of GRPO-8", "p on q at your point")
    grid = make_subplots(rows=2, row_heights=[0.66, 0.34], vertical_spacing=0.13, subplot_titles=titles)
    chart, top, below = go.FigureWidget(grid), {"row": 1, "col": 1}, {"row": 2, "col": 1}
    colors = [[0.0, COLORS[1]], [0.5, "#FFFFFF"], [1.0, COLORS[0]]]
    bar = {"len": 0.6, "y": 1, "yanchor": "top", "thickness": 14, "tickvals": [-1, -0.5, 0, 0.5, 1]}
    chart.add_heatmap(name="map", colorscale=colors, zmin=-1, zmax=1, colorbar=bar, **top)
    chart.add_scatter(name="drafts lead by 0.02", mode="lines", line={"color": COLORS[4], "width": 2}, **top)
    for i, name in enumerate(_OUTCOMES.values()):
        marker = {**marker_style(i), "size": 9, "line": {"color": "#FFFFFF", "width": 1}}
        chart.add_scatter(name=name, mode="markers", marker=marker, **top)
    style = {"mode": "lines+markers", "line": {"color": COLORS[3], "dash": "solid"}}
    sizes = {"marker": {"color": COLORS[3], "symbol": "star", "opacity": 1}}
    chart.add_scatter(name="your point, in training", **style, **sizes, **top)
    for i, name in enumerate(("GRPO-8", "with drafts")):
        chart.add_scatter(name=name, mode="lines", line=line_style(1 - i), **below)
    chart.add_scatter(name="this step", mode="lines", line={"color": COLORS[4], "dash": "dot"}, **below)
    log = {"type": "log", "exponentformat": "power", "dtick": 1}
    chart.update_xaxes(title="p on q", range=[-6.2, 0.1], **log, **top)
    chart.update_yaxes(title="r, wrong drafts repaired", range=[-5.2, 0.1], **log, **top)
    chart.update_xaxes(title="steps", range=[0, steps], **below)
    chart.update_yaxes(title="p on q", range=[-0.02, 1.02], **below)
    legend = {"orientation": "h", "y": -0.09, "yanchor": "top"}
    return chart.update_layout(
        template=TEMPLATE, height=900, margin={"t": 40, "l": 72, "r": 16, "b": 40}, legend=legend,
        hovermode="closest",
    )  # fmt: skip


def _mark(trace: Any, points: Sequence[MapPoint]) -> None:
    """Draw recorded policies, with their intervals as error bars."""
    for axis, intervals in (("x", [m.p for m in points]), ("y", [m.repair for m in points])):
        middle = [i.estimate for i in intervals]
        trace[axis] = middle
        trace[f"error_{axis}"] = {
            "array": [i.high - m for i, m in zip(intervals, middle, strict=True)],
            "arrayminus": [m - i.low for i, m in zip(intervals, middle, strict=True)],
            "thickness": 1, "width": 2,
        }  # fmt: skip
    trace.text = [m.name for m in points]


class _Map:
    """What the map explorer computes and draws, with the settings of its controls."""

    def __init__(self, world: World, steps: int, cells: int, seed: int) -> None:
        self.world, self.steps, self.cells, self.seed = world, steps, cells, seed
        self.controls = {
            "p": _log_slider("p", world.p0, -6, -0.5),
            "repair": _log_slider("r", world.repair, -5, -0.3),
            "keep": _slider(widgets.FloatSlider, "keep", float(np.asarray(world.keep)), 0.05, 0.95, 0.05),
            "sharing": _slider(
                widgets.FloatSlider, "sharing", float(np.asarray(world.sharing)), 0.0, 1.0, 0.1
            ),
            "drafts": _slider(widgets.IntSlider, "N of 8", world.num_drafts, 1, _BUDGET_OF_MAP - 2, 1),
            "batch": widgets.SelectionSlider(
                options=_BATCHES,
                value=world.prompts_per_step,
                description="batch",
                continuous_update=False,
                style={"description_width": "initial"},
            ),
            "method": widgets.Dropdown(
                options=list(_WITH_DRAFTS), description="method", style={"description_width": "initial"}
            ),
            "step": _slider(widgets.IntSlider, "step", steps, 0, steps, _EVERY),
        }
        self.chart = _map_chart(steps)
        self.traces = _traces(self.chart)
        self._diagram, self._runs = cache(self._diagram), cache(self._runs)  # type: ignore[method-assign]

    def _settings(self, *names: str) -> tuple[Any, ...]:
        return tuple(self.controls[name].value for name in names)

    def _world(self, keep: float, sharing: float, drafts: int, batch: int, **rates: Any) -> World:
        return replace(
            self.world, keep=keep, sharing=sharing, num_drafts=drafts,
            num_refinements=_BUDGET_OF_MAP - drafts, prompts_per_step=batch, **rates,
        )  # fmt: skip

    def _diagram(self, method: str, *shared: Any) -> PhaseDiagram:
        return phase_diagram(
            self._world(*shared),
            "p0", np.geomspace(1e-6, 0.3, self.cells),
            "repair", np.geomspace(1e-5, 0.5, self.cells),
            methods=("grpo", method), steps=self.steps, rng=np.random.default_rng(self.seed),
        )  # fmt: skip

    def _runs(self, method: str, p: float, repair: float, *shared: Any) -> Trajectory:
        world = self._world(*shared, p0=p, repair=repair)
        return simulate(world, method, steps=self.steps, seeds=_RUNS, rng=np.random.default_rng(self.seed))

    def redraw(self) -> str:
        """Draw the map, its boundary, and your point's training; returns the words."""
        label, step, p, repair = self._settings("method", "step", "p", "repair")
        shared, method = self._settings("keep", "sharing", "drafts", "batch"), _WITH_DRAFTS[label]
        try:
            table = self._diagram(method, *shared)
            runs = self._runs("grpo", p, repair, *shared), self._runs(method, p, repair, *shared)
        except ValueError as error:
            return f"Not possible: {error}"
        _set(self.traces["map"], table.x, table.y)
        self.traces["map"].z = table.difference(step)
        ends = table.boundary(step, LEAD)
        _set(self.traces["drafts lead by 0.02"], _broken(ends[..., 0]), _broken(ends[..., 1]))
        grpo, ours = (run.p.mean(axis=1) for run in runs)
        self._draw_point(step, grpo, ours, runs[1].second.mean(axis=1))
        return (
            f"p = {p:.2g}, r = {repair:.2g}: after {step} steps GRPO-8 has <b>{grpo[step]:.3f}</b>, {label} "
            f"<b>{ours[step]:.3f}</b> (means of {_RUNS} runs). {self._waits()}"
        )

    def _draw_point(self, step: int, grpo: _Steps, ours: _Steps, second: _Steps) -> None:
        clock = np.arange(0, self.steps + 1, _EVERY)
        for name, mean in (("GRPO-8", grpo), ("with drafts", ours)):
            _set(self.traces[name], clock, mean[clock])
        _set(self.traces["this step"], [step, step], [0, 1])
        path, seen = self.traces["your point, in training"], clock[clock <= step]
        _set(path, ours[seen], second[np.maximum(seen, 1) - 1])  # at the start: the refinements of step 1
        path.marker.size = [0] * (len(seen) - 1) + [16]

    def _waits(self) -> str:
        p, repair, keep, drafts, batch = self._settings("p", "repair", "keep", "drafts", "batch")
        prompts = LogitNormalPrompts(p)
        grpo = grpo_wait(prompts, _BUDGET_OF_MAP, batch).mean
        refined = refinement_wait(
            prompts, repair=repair, keep=keep, num_drafts=drafts,
            num_refinements=_BUDGET_OF_MAP - drafts, prompts_per_step=batch,
        ).mean  # fmt: skip
        return f"Steps to the first live group: GRPO-8 {grpo:.3g}, Stage 2 {refined:.3g}."


def map_explorer(
    points: Sequence[MapPoint] = (),
    world: World = CIPHER,
    *,
    steps: int = 200,
    cells: int = 12,
    seed: int = 0,
) -> Explorer:
    """Where a draft pays: the exact world's map over p and r, and training from a point that you move.

    The map shows p with drafts minus p of GRPO-8 after the step of its slider, and where it is `LEAD`. It has
    `cells` x `cells` values of one run each: 12 x 12 take about a second of one core when a slider is
    released, and a cell is half a power of ten wide. `keep`, `sharing`, N (with N + G = 8), the batch and the
    method change the map; p and r move your point (16 runs); the step can be played. On the map the point
    moves by p on q and by the success of its refinements.

    Args:
        points: recorded policies, drawn with their intervals.
        world: everything that no slider sets; its rates are where the sliders start.
        steps: of training, a multiple of 10.
        cells: rows and columns of the grid.
        seed: of the simulated runs.
    """
    drawn = _Map(world, steps, cells, seed)
    for outcome, name in _OUTCOMES.items():
        _mark(drawn.traces[name], [point for point in points if point.outcome == outcome])
    explorer = Explorer(drawn.controls, drawn.chart, drawn.redraw)
    # The browser copies its value to the slider when it is shown.
    play = widgets.Play(value=steps, min=0, max=steps, step=_EVERY, interval=600, description="play")
    widgets.jslink((play, "value"), (drawn.controls["step"], "value"))
    explorer.children[0].children += (play,)
    return explorer


def _log_slider(name: str, value: Any, low: float, high: float) -> widgets.Widget:
    """`low` and `high` are powers of ten."""
    return widgets.FloatLogSlider(
        value=float(value), min=low, max=high, step=0.1, description=name, readout_format=".1e",
        continuous_update=False, style={"description_width": "initial"},
    )  # fmt: skip


def _broken(ends: Float[np.ndarray, "L 2"]) -> list[float | None]:
    """Segments as one line with gaps."""
    return [x for pair in ends.tolist() for x in (*pair, None)]
