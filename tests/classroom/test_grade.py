"""Grading submissions: right ones, wrong ones, and ones that try to break it or cheat."""

import csv
import time

import nbformat
import numpy as np
import psutil
import pytest
import torch

from igrpo_kit.classroom.answers import Mistake, mismatch
from igrpo_kit.classroom.exercise import KITS_OWN
from igrpo_kit.classroom.exercises import EXERCISES
from igrpo_kit.classroom.grade import (
    COLUMNS,
    ExerciseGrade,
    Limits,
    grade_folder,
    grade_notebook,
    points_table,
    write_grades,
)
from igrpo_kit.classroom.transport import decode, encode

RIGHT = """
import torch
def my_group_advantages(rewards):
    centered, std = rewards - rewards.mean(1, keepdim=True), rewards.std(1, keepdim=True)
    return torch.where((rewards == rewards[:, :1]).all(1, keepdim=True), 0.0, centered / std)
"""
POPULATION = RIGHT.replace("rewards.std(1, keepdim=True)", "rewards.std(1, keepdim=True, correction=0)")
QUICK = Limits(cell_seconds=3, notebook_seconds=240)


def submit(folder, name, *cells, lesson="04_grpo_by_hand"):
    """A learner's notebook with these code cells."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    notebook.metadata["igrpo_kit"] = {"lesson": lesson}
    path = folder / f"{name}.ipynb"
    nbformat.write(notebook, path)
    return path


def grade_of(path, exercise="group_advantages"):
    (grade,) = [g for g in grade_notebook(path, "s", QUICK) if g.exercise == exercise]
    return grade


def test_right_and_wrong(tmp_path):
    grade = grade_of(submit(tmp_path, "a", RIGHT))
    assert (grade.points, grade.of, grade.status) == (1, 1, "passed")
    grade = grade_of(submit(tmp_path, "b", POPULATION))
    assert (grade.points, grade.status) == (0, "not yet right")
    assert "population standard deviation" in grade.hint


def test_the_kits_own_function_earns_its_points_and_is_flagged(tmp_path):
    call = (
        "from igrpo_kit import group_advantages\ndef my_group_advantages(r):\n    return group_advantages(r)"
    )
    grade = grade_of(submit(tmp_path, "a", call))
    assert (grade.points, grade.status, grade.hint) == (1, "passed", KITS_OWN)
    assert grade_of(submit(tmp_path, "b", RIGHT)).hint == ""


def test_an_empty_stub_and_a_missing_answer_earn_nothing(tmp_path):
    stub = "def my_group_advantages(rewards):\n    raise NotImplementedError('not written yet')"
    assert grade_of(submit(tmp_path, "a", stub)).status == "not written yet"
    grade = grade_of(submit(tmp_path, "b", "1 / 0", "x = 1"))
    assert grade.status == "not written yet"
    assert (
        grade.hint
        == "no my_group_advantages in the notebook; code cell 1: ZeroDivisionError: division by zero"
    )


def test_a_broken_cell_costs_its_own_exercise_only(tmp_path):
    assert (
        grade_of(submit(tmp_path, "a", "def (:", "while True: pass", "%matplotlib nothing", RIGHT)).points
        == 1
    )


CHEATS = {
    "patched check": (
        "import igrpo_kit.classroom.checks as c\nc.check = lambda *a: True\nmy_group_advantages = print",
        "not written yet",
    ),
    "patched comparison": (
        "import torch, numpy\ntorch.allclose = numpy.abs = lambda *a: True\n"
        "def my_group_advantages(r): return r * 0",
        "not yet right",
    ),
    "equal to everything": (
        "class Same:\n  __eq__ = lambda s, o: True\n  __float__ = lambda s: 0.0\n"
        "def my_group_advantages(r): return Same()",
        "not yet right",
    ),
    "endless": ("def my_group_advantages(r):\n  while True:\n    pass", "not yet right"),
    "ends the process when called": ("def my_group_advantages(r):\n  import os; os._exit(0)", "not graded"),
    "ends the process": ("import os; os._exit(0)", "not graded"),
    "forged message": (
        "import os\nfor fd in range(3, 30):\n"
        "  try: os.write(fd, b'[\"value\", 1]\\n')\n  except OSError: pass",
        "not graded",
    ),
    "forged value": (
        "import igrpo_kit.classroom._grade_worker as w\n"
        "w.encode = lambda v: {'array': ['x'], 'dtype': 'U1', 'shape': [1]}\n"
        "def my_group_advantages(r): return r",
        "not yet right",
    ),
    "memory": ("my_group_advantages = b'x' * (1 << 40)", "not written yet"),
    "asks the teacher": ("def my_group_advantages(r): return input()", "not yet right"),
}


@pytest.mark.parametrize("name", CHEATS)
def test_what_does_not_earn_points(tmp_path, name):
    cell, status = CHEATS[name]
    grade = grade_of(submit(tmp_path, "a", cell))
    assert (grade.status, grade.points) == (status, 0)


@pytest.mark.faults
def test_a_call_that_python_cannot_interrupt_ends_with_the_notebooks_time(tmp_path):
    """No signal handler runs inside sum(): the whole process is ended, and this notebook is not graded."""
    path = submit(tmp_path, "a", RIGHT, "sum(range(10**12))")
    start = time.monotonic()
    grades = grade_notebook(path, "s", Limits(cell_seconds=1, notebook_seconds=40))
    assert {(g.status, g.hint) for g in grades} == {("not graded", "no end after 40 s")}
    assert time.monotonic() - start < 100


def test_what_a_notebook_started_is_ended_with_it(tmp_path):
    """Its children and theirs: a bomb of forks ends with its process group."""
    pids = tmp_path / "pids"
    source = (
        "import pathlib, subprocess, time\n"
        f"pids = pathlib.Path({str(pids)!r})\n"
        "pids.touch()\n"
        "for _ in range(3):\n"
        "    subprocess.Popen(['sh', '-c', f'sleep 600 & echo $$ $! >> {pids}; wait'])\n"
        "while len(pids.read_text().split()) < 6:\n"
        "    time.sleep(0.05)"
    )
    path = submit(tmp_path, "a", RIGHT, source)
    grades = grade_notebook(path, "s", Limits(cell_seconds=60, notebook_seconds=240))
    assert sum(g.points for g in grades) == 1
    started = [int(pid) for pid in pids.read_text().split()]
    assert len(started) == 6
    alive = [pid for pid in started if psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"]
    assert alive == []


def test_one_bad_submission_affects_nobody_else(tmp_path):
    for student, cell in (("ada", RIGHT), ("bob", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")):
        (tmp_path / student).mkdir()
        submit(tmp_path / student, "04_grpo_by_hand", cell)
    (tmp_path / "cy.ipynb").write_text("{ no notebook")
    submit(tmp_path, "dee", "x = 1", lesson="77_unknown")
    grades = {(g.student, g.exercise): g for g in grade_folder(tmp_path, QUICK)}
    assert grades["ada", "group_advantages"].points == 1
    assert grades["bob", "group_advantages"].status == "not graded"
    assert grades["cy", ""].hint == "not a readable notebook: NotJSONError"
    assert "not the copy of a lesson" in grades["dee", ""].hint
    total = sum(e.points for e in EXERCISES.values() if e.lesson == "04")
    assert points_table(list(grades.values())).splitlines() == [
        f"   1 of {total:3d}   ada",
        f"   0 of {total:3d}   bob   (12 not graded, see the hints)",
        "   0 of   0   cy   (1 not graded, see the hints)",
        "   0 of   0   dee   (1 not graded, see the hints)",
    ]


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="holds no notebook"):
        grade_folder(tmp_path)


def test_csv_is_safe_to_open_in_a_spreadsheet(tmp_path):
    path = tmp_path / "grades.csv"
    write_grades(path, [ExerciseGrade("=cmd()", "n.ipynb", "e", 1, 2, "passed", 'a "quote"\nand a line')])
    rows = list(csv.reader(path.read_text(encoding="utf-8").splitlines(keepends=True)))
    assert rows == [
        list(COLUMNS),
        ["'=cmd()", "n.ipynb", "e", "1", "2", "passed", 'a "quote"\nand a line', "0.0"],
    ]


@pytest.mark.parametrize(
    "value",
    [
        None, True, 3, float("nan"), "text", [1, "a", [2.5]], (1, 2), {"role": "user", 1: [None]},
        torch.tensor([[True], [False]]), torch.zeros(0, 3), torch.tensor(2.5, dtype=torch.float64),
        np.arange(6, dtype=np.int32).reshape(2, 3), np.float64(0.1),
    ],
    ids=repr,
)  # fmt: skip
def test_values_travel_unchanged(value):
    back = decode(encode(value))
    assert mismatch(back, value, tolerance=0.0) == ""
    if isinstance(value, torch.Tensor):
        assert back.dtype == value.dtype


def test_what_cannot_travel_is_named():
    with pytest.raises(Mistake, match="of type function"):
        encode(encode)
