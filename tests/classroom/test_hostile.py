"""Submissions that attack the grader, and honest ones that touch files elsewhere: what the teacher sees."""

import csv
import os
import subprocess
import sys

import pytest

from igrpo_kit.classroom import _outside_writes
from igrpo_kit.classroom.grade import grade_notebook
from tests.classroom.test_grade import QUICK, RIGHT, submit

FORGED = "the notebook wrote into its grader's pipe"
ENDED = "the notebook ended its own process"
UNREADABLE = "the result cannot be read"
EVERYWHERE = "import os\nfor fd in range(3, 64):\n  try: os.write(fd, {})\n  except OSError: pass"
# name -> cells, and the status and the beginning of the hint of group_advantages
ATTACKS = {
    "honest": ([RIGHT], "passed", ""),
    "writes into every descriptor": ([EVERYWHERE.format("b'x' * 100")], "not graded", FORGED),
    "writes lines": ([EVERYWHERE.format("b'x\\n' * 100")], "not graded", FORGED),
    "begins a message": ([EVERYWHERE.format("b'\\0\\0\\1\\0ab'")], "not graded", FORGED),
    "closes every descriptor": (["import os; os.closerange(0, 100)"], "not graded", ENDED),
    "ends its process": (["import os; os._exit(0)"], "not graded", ENDED),
    "ends its parent": (["import os; os.kill(os.getppid(), 9)", RIGHT], "passed", ""),
    "stops its parent": (["import os, signal; os.kill(os.getppid(), signal.SIGSTOP)", RIGHT], "passed", ""),
    "ends its group": (["import os; os.killpg(0, 9)"], "not graded", ENDED),
    "forks": (
        ["import os, time\nfor _ in range(30):\n  if not os.fork(): time.sleep(600)", RIGHT], "passed", ""
    ),
    "fills memory": (["x = []\nwhile True: x.append(bytes(1 << 28))", "del x", RIGHT], "passed", ""),
    "prints without end": (
        ["import sys\nfor _ in range(100):\n  print('x' * 10**6, file=sys.stderr)", RIGHT], "passed", ""
    ),
    "fills the disk": (["open('x', 'w').truncate(1 << 40)", RIGHT], "passed", ""),
    "deletes its folder": (["import os, shutil; shutil.rmtree(os.getcwd())", RIGHT], "passed", ""),
    "handles signals": (
        ["import signal\nfor s in set(signal.Signals) - {9, 19}: signal.signal(s, signal.SIG_IGN)", RIGHT],
        "passed", "",
    ),
    "raises at its end": (
        [
            "class A:\n  def __del__(self): 1 / 0\na = A()\ndel a",
            "import atexit; atexit.register(lambda: 1 / 0)", RIGHT,
        ],
        "passed", "",
    ),
    "leaves threads": (
        ["import threading\ndef spin():\n  while True: pass\nthreading.Thread(target=spin).start()", RIGHT],
        "passed", "",
    ),
    "exits": (["import sys; sys.exit(3)", RIGHT], "passed", ""),
    "lowers its limits": (
        ["import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))", RIGHT], "passed", ""
    ),
    "says what no file can hold": (
        [r"raise ValueError('\udcff\x1b[2J' + 'x' * 10**6)"], "not written yet",
        "no my_group_advantages in the notebook; code cell 1: ValueError: \ufffd\ufffd[2Jx",
    ),
    "answers with itself": (
        ["x = []; x.append(x)\ndef my_group_advantages(r): return x"], "not yet right",
        f"{UNREADABLE}: RecursionError",
    ),
    "answers with a huge number": (
        ["def my_group_advantages(r): return [[10**400] * r.shape[1]] * r.shape[0]"], "not yet right", ""
    ),
    "answers with more digits than JSON takes": (
        ["def my_group_advantages(r): return 10**5000"], "not yet right", f"{UNREADABLE}: ValueError"
    ),
}  # fmt: skip


def test_no_attack_reaches_another_submission_or_the_teachers_terminal(tmp_path):
    for name, (cells, _, _) in ATTACKS.items():
        submit(tmp_path, name, *cells)
    submit(tmp_path, "wrong metadata", RIGHT).write_text(
        '{"cells": [], "metadata": {"igrpo_kit": 7}, "nbformat": 4, "nbformat_minor": 5}'
    )
    os.mkfifo(tmp_path / "pipe.ipynb")
    (tmp_path / "link.ipynb").symlink_to(tmp_path / "nowhere")
    command = [sys.executable, "-m", "igrpo_kit", "grade", str(tmp_path), "--out", str(tmp_path / "g.csv")]
    done = subprocess.run([*command, "--due", "2020-01-01"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    shown = done.stdout + done.stderr
    assert "Traceback" not in shown and "Error" not in shown and "\x1b[2J" not in shown
    with (tmp_path / "g.csv").open(encoding="utf-8", newline="") as file:
        rows = {(row["student"], row["exercise"]): row for row in csv.DictReader(file)}
    for name, (_, status, hint) in ATTACKS.items():
        row = rows[name, "group_advantages"]
        assert (name, row["status"]) == (name, status)
        assert row["hint"].startswith(hint) and len(row["hint"]) <= 1000
    assert {rows[name, ""]["hint"] for name in ("pipe", "link")} == {"not a file"}
    assert "not the copy of a lesson" in rows["wrong metadata", ""]["hint"]


def test_what_a_notebook_does_to_files_elsewhere_is_a_row_without_points(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    (home / "old").touch()
    (home / "kept").touch()
    path = submit(
        tmp_path,
        "a",
        RIGHT,
        f"import os, pathlib, tempfile\nhome = pathlib.Path({str(home)!r})",
        "pathlib.Path('inside').write_text('x')\nopen(home / 'kept').read()\nopen(os.devnull, 'w').close()",
        "with tempfile.NamedTemporaryFile(): os.makedirs(home, exist_ok=True)",
        "(home / 'new').write_text('x'); (home / 'new').write_text('y')",
        "(home / 'old').unlink()",
        "os.symlink(home, 'link'); os.mkdir('link/made'); os._exit(0)",
    )
    *rest, note = grade_notebook(path, "s", QUICK)
    assert {g.status for g in rest} == {"not graded"}  # it ended its process, and is told all the same
    assert (note.student, note.notebook, note.exercise, note.points, note.of) == ("s", "a.ipynb", "", 0, 0)
    assert (note.status, note.hint) == (
        "note",
        f"outside its folder it tried to create {home}/new, change {home}/new, delete {home}/old, and 1 more",
    )


def test_ordinary_work_writes_nothing_elsewhere(tmp_path):
    cells = [
        RIGHT,
        "import torch; torch.save(torch.zeros(3), 'x.pt'); torch.nn.Linear(1, 1)(torch.ones(1)).backward()",
        "import igrpo_kit.viz, igrpo_kit.analysis, igrpo_kit.policies, plotly.express as px, IPython.display",
        "px.line([1]).write_html('a.html'); IPython.display.display(px.line([1]))",
        "%time 1",
        "!echo x",
    ]
    grades = grade_notebook(submit(tmp_path, "a", *cells), "s", QUICK)
    assert [g.status for g in grades if g.status in ("note", "passed")] == ["passed"]
    assert not any("code cell" in g.hint for g in grades)


@pytest.mark.parametrize(
    ("event", "arguments", "expected"),
    [
        ("open", ("/etc/hosts", "w", os.O_WRONLY), ["change /etc/hosts"]),
        ("open", (b"/etc/no-such", None, os.O_RDWR | os.O_CREAT), ["create /etc/no-such"]),
        ("open", ("/etc/hosts", "r", os.O_RDONLY), []),
        ("open", (3, "w", os.O_WRONLY), []),
        ("open", ("/dev/null", "w", os.O_WRONLY), []),
        ("open", ("/usr/x", "w", os.O_WRONLY), []),
        ("open", ("/usr/../etc/hosts", "w", os.O_WRONLY), ["change /etc/hosts"]),
        ("open", ("/usrx", "w", os.O_WRONLY), ["create /usrx"]),
        ("os.rename", ("/etc/hosts", "/usr/x", -1, -1), ["rename /etc/hosts"]),
        ("os.mkdir", ("/etc", 0o777, -1), []),
        ("os.remove", ("/etc/no-such", -1), []),
        ("os.listdir", ("/etc",), []),
    ],
)
def test_which_events_are_attempts_outside(event, arguments, expected):
    assert _outside_writes.attempts(event, arguments, ["/usr"]) == expected
