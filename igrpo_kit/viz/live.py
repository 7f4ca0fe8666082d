"""A training run as it happens: one figure fed from a thread, Stop and Resume, and the numbers in words.

The run has its own daemon thread, so that other cells and the buttons work meanwhile. An update sends whole
lines to the browser again, hence at most `HZ` updates a second and `POINTS` points a line.
"""

import json
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from igrpo_kit.analysis.compare import Record
from igrpo_kit.analysis.dynamics import thin
from igrpo_kit.core.rows import Row
from igrpo_kit.training.records import RunLog
from igrpo_kit.viz.notebook import go, make_subplots, widgets
from igrpo_kit.viz.runs import SMOOTH, metric_curve
from igrpo_kit.viz.style import COLORS, TEMPLATE

HZ, POINTS = 5.0, 1000


class _Line(NamedTuple):
    """One line of the dashboard: where it is drawn, and what it shows."""

    panel: int
    label: str
    dash: str
    metric: str
    on_q: bool = False
    """of the completions of q: iGRPO's drafts, GRPO's group"""
    only_with: str = ""
    """the metric that a run must have for this line; GRPO has no refinements and copies nothing"""


_PANELS = ("reward", "entropy on q, nats", "dead groups", "copy rate")
_LINES = (
    _Line(0, "one answer to q", "solid", "reward", on_q=True),
    _Line(0, "best draft", "dot", "best_draft_reward", only_with="best_draft_reward"),
    _Line(0, "refinement", "dash", "reward", only_with="stage1/reward"),
    _Line(1, "", "solid", "entropy", on_q=True),
    _Line(2, "", "solid", "dead_groups"),
    _Line(3, "", "solid", "copy_rate", only_with="copy_rate"),
)


def follow_rows(
    path: Path, last_step: int, stopped: Callable[[], bool], *, after: int = 0, poll: float = 0.2
) -> Iterator[Row]:
    """The metric rows another process writes to a file, steps `after` + 1 to `last_step`, until `stopped()`.

    The file need not be there yet, its last line need not be whole, and a run that resumes from a checkpoint
    may cut it back; each step is given once. Raises ValueError naming the line that is no row.
    """
    given, offset, rest = after, 0, b""
    while not stopped():
        size = path.stat().st_size if path.exists() else 0
        if size < offset:  # cut back to its checkpoint: read it again
            offset, rest = 0, b""
        if size == offset:
            time.sleep(poll)
            continue
        with open(path, "rb") as file:
            file.seek(offset)
            new = file.read()
        offset += len(new)
        *lines, rest = (rest + new).split(b"\n")
        for line in lines:
            try:
                row = json.loads(line)
                step = row["step"]
            except (ValueError, TypeError, KeyError):
                raise ValueError(f"{path}: not a metric row: {line[:80]!r}") from None
            if step > given:
                given = step
                yield row
            if step >= last_step:
                return


def _empty_chart(steps: int, title: str) -> go.FigureWidget:
    chart = go.FigureWidget(make_subplots(rows=2, cols=2, horizontal_spacing=0.1, vertical_spacing=0.13))
    for i, name in enumerate(_PANELS):
        where = {"row": i // 2 + 1, "col": i % 2 + 1}
        chart.update_yaxes(title=name, range=None if "nats" in name else [-0.02, 1.02], **where)
        chart.update_xaxes(range=[0, steps], title=f"step (mean of {SMOOTH})" if i > 1 else "", **where)
    return chart.update_layout(
        template=TEMPLATE,
        title=title,
        legend={"orientation": "h", "x": 0, "y": -0.13},
        hovermode="closest",
        height=640,
        uirevision="a learner's zoom survives the updates",
    )


class LiveDashboard(widgets.VBox):
    """Training runs, one after another, in one figure: reward, entropy, dead groups and copy rate.

    Display it, `start` a run, and `wait` for it in a later cell; a second run draws its lines beside the
    first one's. Lines are running means over `viz.runs.SMOOTH` steps. `rows` holds the metric rows by the
    name of their run; of a step that a resumed run repeats, the last. `figure()` is a plain copy of what is
    seen, which a saved notebook keeps.
    """

    def __init__(self, steps: int, *, title: str = "", clock: Callable[[], float] = time.monotonic) -> None:
        self.rows: dict[str, list[Row]] = {}
        self._steps, self._clock = steps, clock
        self._stop = threading.Event()
        self._over = threading.Event()
        self._over.set()
        self._error: BaseException | None = None
        self.chart = _empty_chart(steps, title)
        self.status = widgets.Label("nothing started yet")
        self.stop_button = widgets.Button(description="Stop", icon="stop", disabled=True)
        self.stop_button.on_click(lambda _button: self.stop())
        self.resume_button = widgets.Button(description="Resume", icon="play", disabled=True)
        self.resume_button.on_click(lambda _button: self.resume())
        self._traces: dict[_Line, go.Scatter] = {}
        self._again: Callable[[], Iterable[Row]] | None = None
        buttons = [self.stop_button, self.resume_button, self.status]
        super().__init__([widgets.HBox(buttons), self.chart])

    def start(
        self, name: str, rows: Iterable[Row], *, again: Callable[[], Iterable[Row]] | None = None
    ) -> None:
        """Draw the rows of a run as they come, such as those of `training.train(..., progress=False)`.

        They are computed in a thread: nothing else may use the policy until `wait` returns. `again` gives the
        rows that remain after a stop, such as `lambda: train(..., folder=..., resume=True)`; Resume needs it.
        Raises RuntimeError while another run is going on, ValueError for a name that is taken.
        """
        self._check_idle()
        if name in self.rows:
            raise ValueError(f"name: there is a run {name!r} already")
        self.rows[name], self._traces, self._again = [], {}, again
        self._launch(name, rows)

    def attach(self, name: str, folder: str | Path) -> None:
        """Draw a run that another process, such as a batch job, writes to `folder`.

        Stop only ends the drawing. Raises as `start` does.
        """

        def rows() -> Iterator[Row]:
            after = len(self.rows.get(name, []))
            return follow_rows(Path(folder) / RunLog.METRICS, self._steps, self._stop.is_set, after=after)

        self.start(name, rows(), again=rows)

    def resume(self) -> None:
        """Resume the run that was stopped. Raises RuntimeError where there is none, or no way to."""
        self._check_idle()
        if self._again is None:
            raise RuntimeError("nothing to resume: start a run with `again`")
        self._launch(list(self.rows)[-1], self._again())

    def _check_idle(self) -> None:
        if not self._over.is_set():
            raise RuntimeError(f"{list(self.rows)[-1]!r} is still running: wait() for it, or stop() it")

    def _launch(self, name: str, rows: Iterable[Row]) -> None:
        self._error = None
        self._stop.clear()
        self._over.clear()
        self.stop_button.disabled, self.resume_button.disabled = False, True
        threading.Thread(target=self._follow, args=(name, rows), daemon=True).start()

    def stop(self) -> None:
        """End the run after its current step."""
        self._stop.set()

    def wait(self) -> list[Row]:
        """The rows of the run, once it is over; an exception of the run is raised here.

        A notebook delivers no clicks while a cell is busy waiting: there Interrupt (Ctrl-C) means `stop`.
        Raises RuntimeError where nothing was started.
        """
        if not self.rows:
            raise RuntimeError("nothing was started")
        # Polled: an interrupt inside Thread.join or Event.wait may leave their locks in disorder.
        while not self._over.is_set():
            try:
                time.sleep(0.05)
            except KeyboardInterrupt:
                self.stop()
        if self._error is not None:
            raise self._error
        return list(self.rows.values())[-1]

    def figure(self) -> go.Figure:
        """A plain figure of what the dashboard shows now."""
        return go.Figure(self.chart)

    def _follow(self, name: str, rows: Iterable[Row]) -> None:
        """Run by the thread: take row after row, draw at most `HZ` times a second and at the end."""
        done, taken = self.rows[name], 0
        started, drawn = self._clock(), -math.inf
        try:
            for row in rows:
                self._traces = self._traces or self._add_traces(name, row)
                while done and done[-1]["step"] >= row["step"]:  # resumed from an earlier checkpoint
                    done.pop()
                done.append(row)
                taken += 1
                if (now := self._clock()) - drawn >= 1 / HZ:
                    drawn = now
                    self._draw(name, started, taken)
                if self._stop.is_set():
                    break
            if close := getattr(rows, "close", None):  # a generator's clean-up: `train` saves a checkpoint
                close()
            outcome = "stopped" if self._stop.is_set() else "finished"
        except BaseException as error:  # nothing above would report it; wait() raises it
            self._error, outcome = error, f"{type(error).__name__}: {error}"
        try:
            self.stop_button.disabled = True
            self.resume_button.disabled = outcome == "finished" or self._again is None
            self._draw(name, started, taken, outcome)
        finally:
            self._over.set()

    def _add_traces(self, name: str, row: Row) -> dict[_Line, go.Scatter]:
        """An empty trace for each line that such a run has. Raises KeyError for a row without a metric."""
        color = COLORS[(len(self.rows) - 1) % len(COLORS)]
        lines = [
            line
            for line in _LINES
            if (row.get(line.only_with) if line.only_with else row[line.metric]) is not None
        ]
        for line in lines:
            self.chart.add_scatter(
                mode="lines", name=f"{name}: {line.label}", line={"color": color, "dash": line.dash},
                legendgroup=name, showlegend=line.panel == 0,
                row=line.panel // 2 + 1, col=line.panel % 2 + 1,
            )  # fmt: skip
        return dict(zip(lines, self.chart.data[-len(lines) :], strict=True))

    def _draw(self, name: str, started: float, taken: int, outcome: str = "") -> None:
        rows = self.rows[name]
        record = Record(name, 0, rows, [])
        curves = {line: metric_curve(record, line.metric, on_q=line.on_q) for line in self._traces}
        parts = [name]
        if rows:
            done, elapsed = rows[-1]["step"], self._clock() - started
            # A run of another process did steps before it was followed: its rows hold their pace.
            known = [row["seconds/step"] for row in rows[-SMOOTH:] if "seconds/step" in row]
            pace = sum(known) / len(known) if known else elapsed / max(taken, 1)
            time_left = f"{elapsed:.0f} s" if outcome else f"{pace * (self._steps - done):.0f} s left"
            parts += [f"step {done} of {self._steps}"]
            parts += [f"{line.label} {y[-1]:.3f}" for line, (_, y) in curves.items() if line.panel == 0]
            parts += [f"{pace:.2f} s a step", time_left]
        self.status.value = " · ".join([*parts, outcome] if outcome else parts)
        with self.chart.batch_update():
            for line, trace in self._traces.items():
                trace.x, trace.y = thin(curves[line], POINTS // 5)  # at most five points a bucket
