"""The live dashboard without a browser: what is drawn, how often, how it stops and how it fails."""

import importlib
import json
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import plotly.graph_objects as go
import pytest

from igrpo_kit.analysis.compare import Record
from igrpo_kit.viz import live, notebook
from igrpo_kit.viz.live import LiveDashboard, follow_rows
from igrpo_kit.viz.runs import metric_curve


def grpo_row(step, **changes):
    return {"step": step, "reward": 0.25, "entropy": 0.5, "dead_groups": 0.125, **changes}


def igrpo_row(step, **changes):
    stage1 = {"stage1/reward": 0.5, "stage1/entropy": 0.75, "best_draft_reward": 0.875, "copy_rate": 0.0625}
    return grpo_row(step, **stage1, **changes)


class FakeClock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def lines(dashboard):
    """The dashboard's lines in the order of its panels: x and y."""
    return [(trace.x.tolist(), trace.y.tolist()) for trace in dashboard.figure().data]


def test_each_number_goes_to_its_line():
    dashboard = LiveDashboard(2)
    dashboard.start("iGRPO", [igrpo_row(1), igrpo_row(2)])
    assert dashboard.wait() == [igrpo_row(1), igrpo_row(2)]
    on_q, best, refined, entropy, dead, copied = lines(dashboard)
    assert on_q == ([1, 2], [0.5, 0.5]) and best[1] == [0.875, 0.875] and refined[1] == [0.25, 0.25]
    assert entropy[1] == [0.75, 0.75] and dead[1] == [0.125, 0.125] and copied[1] == [0.0625, 0.0625]
    assert type(dashboard.figure()) is go.Figure  # not a widget: a saved notebook keeps it
    axes = [trace.yaxis for trace in dashboard.figure().data]
    assert axes == ["y", "y", "y", "y2", "y3", "y4"]


def test_grpo_has_no_refinements_and_copies_nothing():
    dashboard = LiveDashboard(1)
    dashboard.start("GRPO", iter([grpo_row(1, best_draft_reward=1.0, copy_rate=None)]))
    dashboard.wait()
    assert [y for _, y in lines(dashboard)] == [[0.25], [1.0], [0.5], [0.125]]
    assert [trace.yaxis for trace in dashboard.figure().data] == ["y", "y", "y2", "y3"]


def test_a_second_run_is_drawn_beside_the_first():
    dashboard = LiveDashboard(1)
    for name, row in (("iGRPO", igrpo_row(1)), ("GRPO", grpo_row(1))):
        dashboard.start(name, [row])
        assert dashboard.wait() == [row]
    assert list(dashboard.rows) == ["iGRPO", "GRPO"]
    assert [trace.name for trace in dashboard.figure().data if trace.showlegend] == [
        "iGRPO: one answer to q",
        "iGRPO: best draft",
        "iGRPO: refinement",
        "GRPO: one answer to q",
    ]
    first, second = dashboard.figure().data[0], dashboard.figure().data[6]
    assert (first.line.color, second.line.color) == ("#0072B2", "#D55E00")
    assert (first.y.tolist(), second.y.tolist()) == ([0.5], [0.25])


def test_lines_are_the_running_means_of_the_record():
    rng = np.random.default_rng(0)
    rows = [grpo_row(i, reward=float(rng.random())) for i in range(1, 31)]
    rows[3]["reward"] = rows[4]["reward"] = float("nan")
    dashboard = LiveDashboard(30)
    dashboard.start("GRPO", rows)
    dashboard.wait()
    _, expected = metric_curve(Record("GRPO", 0, rows, []), "reward")
    assert lines(dashboard)[0][1] == pytest.approx(expected)


def test_the_figure_changes_five_times_a_second_at_most(monkeypatch):
    clock = FakeClock()
    dashboard = LiveDashboard(100, clock=clock)
    drawn_at, batch_update = [], dashboard.chart.batch_update
    monkeypatch.setattr(
        dashboard.chart, "batch_update", lambda: (drawn_at.append(clock.now), batch_update())[1]
    )

    def sixteen_a_second():
        for step in range(1, 101):
            clock.now += 1 / 16
            yield grpo_row(step)

    dashboard.start("fast", sixteen_a_second())
    dashboard.wait()
    assert drawn_at == [(1 + 4 * i) / 16 for i in range(25)] + [100 / 16]  # every 0.25 s, and the end
    assert lines(dashboard)[0][0] == list(range(1, 101))


@pytest.mark.parametrize("steps", [1000, 2500, 20_000])
def test_a_long_run_keeps_a_thousand_points_its_ends_and_its_spikes(steps):
    rng = np.random.default_rng(0)
    rows = [grpo_row(step, reward=float(rng.random())) for step in range(1, steps + 1)]
    rows[122]["reward"] = 1000.0
    dashboard = LiveDashboard(steps)
    dashboard.start("long", rows)
    dashboard.wait()
    x, y = lines(dashboard)[0]
    assert 600 < len(x) == len(y) <= 1000
    assert steps > 1000 or x == list(range(1, 1001))
    assert (x[0], x[-1]) == (1, steps) and max(np.diff(x)) <= steps / 200
    assert y[-1] == pytest.approx(np.mean([row["reward"] for row in rows[-10:]]))
    assert 123 <= x[np.argmax(y)] <= 132 and max(y) > 100  # in the mean of ten steps from there on
    assert len(dashboard.rows["long"]) == steps


def test_the_numbers_in_words():
    clock = FakeClock()
    dashboard = LiveDashboard(4, clock=clock)
    texts = []
    dashboard.status.observe(lambda change: texts.append(change["new"]), "value")

    def every_two_seconds():
        for step in (1, 2):
            clock.now += 2
            yield igrpo_row(step)

    dashboard.start("iGRPO", every_two_seconds())
    dashboard.wait()
    numbers = "one answer to q 0.500 · best draft 0.875 · refinement 0.250 · 2.00 s a step"
    assert texts == [
        f"iGRPO · step 1 of 4 · {numbers} · 6 s left",
        f"iGRPO · step 2 of 4 · {numbers} · 4 s left",
        f"iGRPO · step 2 of 4 · {numbers} · 4 s · finished",
    ]


class Long:
    """Minutes of rows, a millisecond each; `ten` is set at the tenth, `closed` by the clean-up."""

    def __init__(self):
        self.ten, self.closed = threading.Event(), threading.Event()

    def rows(self):
        try:
            for step in range(1, 100_000):
                time.sleep(0.001)
                if step == 10:
                    self.ten.set()
                yield grpo_row(step)
        finally:
            self.closed.set()


def test_the_button_stops_the_run_and_lets_it_clean_up():
    long, dashboard = Long(), LiveDashboard(1000)
    assert dashboard.stop_button.disabled
    dashboard.start("long", long.rows())
    assert not dashboard.stop_button.disabled
    assert long.ten.wait(timeout=20)
    dashboard.stop_button.click()
    rows = dashboard.wait()
    assert len(rows) >= 10 and long.closed.is_set()
    assert dashboard.stop_button.disabled
    assert dashboard.status.value.endswith("stopped")
    assert lines(dashboard)[0][0][-1] == len(rows)  # the last row is drawn, whenever it came


def test_an_interrupt_while_waiting_stops_the_run_and_keeps_its_rows():
    long, dashboard, main = Long(), LiveDashboard(1000), threading.main_thread().ident

    def interrupts_whoever_waits():
        seen_waiting = 0
        for row in long.rows():
            seen_waiting += sys._current_frames()[main].f_code.co_name == "wait"
            if seen_waiting == 20:  # not at the first: by now it is asleep in there
                signal.pthread_kill(main, signal.SIGINT)
                seen_waiting += 1
            yield row

    dashboard.start("long", interrupts_whoever_waits())
    assert len(dashboard.wait()) >= 20
    assert long.closed.is_set()
    assert dashboard.status.value.endswith("stopped")


def test_one_run_at_a_time_under_a_name_of_its_own():
    long, dashboard = Long(), LiveDashboard(10)
    dashboard.start("long", long.rows())
    with pytest.raises(RuntimeError, match="'long' is still running"):
        dashboard.start("another", [])
    dashboard.stop()
    dashboard.wait()
    with pytest.raises(ValueError, match="name: there is a run 'long' already"):
        dashboard.start("long", [])
    assert list(dashboard.rows) == ["long"]  # the refused ones left nothing behind
    dashboard.start("empty", [])
    assert dashboard.wait() == [] and dashboard.status.value == "empty · finished"


def test_what_the_run_raises_is_shown_and_raised_by_wait():
    def breaks():
        yield grpo_row(1)
        raise ArithmeticError("loss nan")

    dashboard = LiveDashboard(5)
    dashboard.start("broken", breaks())
    with pytest.raises(ArithmeticError, match="loss nan"):
        dashboard.wait()
    assert dashboard.status.value.endswith("ArithmeticError: loss nan")
    assert dashboard.stop_button.disabled and lines(dashboard)[0] == ([1], [0.25])
    dashboard.start("next", [grpo_row(1)])
    assert dashboard.wait() == [grpo_row(1)]  # the old error is forgotten


def test_a_failing_clean_up_is_an_error_too():
    def cannot_save():
        try:
            yield grpo_row(1)
            yield grpo_row(2)
        finally:
            raise OSError("disk full")

    dashboard = LiveDashboard(5)
    dashboard.stop()
    dashboard.start("full", cannot_save())
    with pytest.raises(OSError, match="disk full"):
        dashboard.wait()


def test_a_row_of_something_else_names_what_it_lacks():
    dashboard = LiveDashboard(5)
    dashboard.start("foreign", [{"step": 1, "loss": 3.0}])
    with pytest.raises(KeyError, match="reward"):
        dashboard.wait()
    assert dashboard.rows["foreign"] == []


def test_waiting_for_nothing():
    with pytest.raises(RuntimeError, match="nothing was started"):
        LiveDashboard(5).wait()


@pytest.mark.parametrize("missing", ["anywidget", "ipywidgets"])
def test_a_missing_extra_is_one_clear_line(missing, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    for module in (live, notebook):
        monkeypatch.delitem(sys.modules, module.__name__)
    with pytest.raises(ModuleNotFoundError) as error:
        importlib.import_module(live.__name__)
    assert str(error.value) == f"the notebook widgets need {missing}: pip install 'igrpo-kit[notebooks]'"


def test_a_run_resumed_from_an_earlier_checkpoint_replaces_the_steps_it_repeats():
    def breaks():
        yield from (grpo_row(i) for i in (1, 2, 3, 4, 5))
        raise OSError("node lost")

    dashboard = LiveDashboard(4)
    dashboard.start("run", breaks(), again=lambda: [grpo_row(i, reward=0.75) for i in (3, 4)])
    with pytest.raises(OSError, match="node lost"):
        dashboard.wait()
    dashboard.resume()
    assert [(row["step"], row["reward"]) for row in dashboard.wait()] == [
        (1, 0.25), (2, 0.25), (3, 0.75), (4, 0.75),
    ]  # fmt: skip
    assert lines(dashboard)[0] == ([1, 2, 3, 4], pytest.approx([0.25, 0.25, 1.25 / 3, 0.5]))


def test_a_stopped_run_resumes():
    stopped = threading.Event()

    def first_rows():
        yield grpo_row(1)
        stopped.wait(60)
        yield grpo_row(2)
        raise AssertionError("the run was stopped before this")

    dashboard = LiveDashboard(5)
    dashboard.start("run", first_rows(), again=lambda: [grpo_row(i) for i in (3, 4, 5)])
    assert dashboard.resume_button.disabled
    dashboard.stop_button.click()
    stopped.set()
    assert [row["step"] for row in dashboard.wait()][:2] in ([1], [1, 2])  # after the step it was at
    assert not dashboard.resume_button.disabled and "stopped" in dashboard.status.value
    dashboard.resume_button.click()
    assert [row["step"] for row in dashboard.wait()][-3:] == [3, 4, 5]
    assert lines(dashboard)[0][0][-3:] == [3, 4, 5] and len(dashboard.figure().data) == 3
    assert dashboard.resume_button.disabled and "finished" in dashboard.status.value


def test_nothing_to_resume():
    dashboard = LiveDashboard(1)
    dashboard.start("run", [grpo_row(1)])
    dashboard.wait()
    with pytest.raises(RuntimeError, match="nothing to resume"):
        dashboard.resume()


WRITER = """
import json, sys, time
path, steps = sys.argv[1], int(sys.argv[2])
with open(path, "a") as file:
    for step in range(1, steps + 1):
        line = json.dumps({"step": step, "reward": step / 8, "entropy": 0.5, "dead_groups": 0.0}) + "\\n"
        file.write(line[:9]); file.flush(); time.sleep(0.02)  # half a line, then the rest
        file.write(line[9:]); file.flush()
"""


def test_a_run_of_another_process_is_followed(tmp_path):
    dashboard = LiveDashboard(8)
    dashboard.attach("job", tmp_path)  # before there is a file
    with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path / "metrics.jsonl"), "8"]):
        rows = dashboard.wait()
    assert [row["step"] for row in rows] == list(range(1, 9)) and "finished" in dashboard.status.value


def test_a_followed_run_may_be_cut_back_and_go_on(tmp_path):
    path, stop = tmp_path / "metrics.jsonl", threading.Event()
    path.write_text("".join(json.dumps({"step": i}) + "\n" for i in range(1, 5)))
    rows = follow_rows(path, 6, stop.is_set, poll=0.01)
    assert [next(rows)["step"] for _ in range(4)] == [1, 2, 3, 4]
    path.write_text("".join(json.dumps({"step": i}) + "\n" for i in range(1, 3)))  # back to its checkpoint
    threading.Timer(
        0.1, lambda: path.write_text("".join(json.dumps({"step": i}) + "\n" for i in range(1, 7)))
    ).start()
    assert [row["step"] for row in rows] == [5, 6]


def test_following_ends_when_asked_and_names_a_foreign_line(tmp_path):
    path, stop = tmp_path / "metrics.jsonl", threading.Event()
    threading.Timer(0.05, stop.set).start()
    assert list(follow_rows(path, 5, stop.is_set, poll=0.01)) == []
    path.write_text('{"loss": 1}\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl: not a metric row: b'\{\"loss\": 1\}'"):
        list(follow_rows(path, 5, lambda: False))
