"""The command line, run as a user runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from igrpo_kit.cli import best_of_n_table, main

ROOT = Path(__file__).parents[1]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "igrpo_kit", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_table_sets_simulation_beside_the_formula():
    table = best_of_n_table(np.array([0.5, 0.1]), [1, 2], np.array([[0.45, 0.1], [0.75, 0.2]]), trials=100)
    assert table.splitlines()[1:] == [
        "0.50    1     0.50000     0.45000      0.05000    -1.00",
        "0.50    2     0.75000     0.75000      0.04330    +0.00",
        "0.10    1     0.10000     0.10000      0.03000    +0.00",
        "0.10    2     0.19000     0.20000      0.03923    +0.25",
    ]


@pytest.mark.parametrize("command", ["toy"])
def test_toy_prints_a_table_and_writes_an_offline_page(command, tmp_path):
    done = run(command, "--out", str(tmp_path / "figures"), "--trials", "100000", "--seed", "3")
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith("0.")]
    assert len(rows) == 25
    assert rows[12][:3] == ["0.10", "4", "0.34390"]
    assert all(abs(float(row[5])) < 4 for row in rows)
    assert (tmp_path / "figures" / "best_of_n.html").stat().st_size > 3_000_000
    assert str(tmp_path / "figures" / "best_of_n.html") in done.stdout


def test_toy_repeats_itself_for_one_seed(tmp_path, capsys):
    outputs = []
    for seed in ("1", "1", "2"):
        assert main(["toy", "--out", str(tmp_path), "--trials", "1000", "--seed", seed]) == 0
        outputs.append([line for line in capsys.readouterr().out.splitlines() if line.startswith("0.")])
    assert outputs[0] == outputs[1] != outputs[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["toy", "--trials", "0"], "--trials: a whole number >= 1 is needed, got 0"),
        (["toy", "--trials", "1e6"], "--trials: a whole number >= 0 is needed, got '1e6'"),
        (["toy", "--seed", "-1"], "--seed: a whole number >= 0 is needed, got '-1'"),
        (["dance"], "invalid choice: 'dance'"),
        ([], "the following arguments are required: command"),
    ],
)
def test_wrong_usage_is_refused(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert main(["toy", "--out", str(tmp_path / "file" / "deeper"), "--trials", "10"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("igrpo toy: ") and "Not a directory" in line


def test_a_missing_extra_is_one_line(capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, "igrpo_kit.viz.plots", raising=False)
    monkeypatch.setitem(sys.modules, "plotly", None)
    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    assert main(["toy", "--trials", "10"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "igrpo toy: plotly.graph_objects is not installed: pip install 'igrpo-kit[figures]'"


def test_figures_without_a_browser_are_pages_and_one_line(tmp_path):
    done = run("figures", "--out", str(tmp_path), BROWSER_PATH=str(tmp_path / "no-such-browser"))
    assert done.returncode == 0
    assert done.stderr == (
        "igrpo figures: no browser to draw a PNG with: "
        "install Chromium (Debian: apt-get install chromium) or Chrome\n"
    )
    pages = [Path(line) for line in done.stdout.splitlines()]
    assert len(pages) >= 10 and all(p.suffix == ".html" and p.stat().st_size < 500_000 for p in pages)
    assert (tmp_path / "html" / "plotly.min.js").exists() and not list(tmp_path.glob("*.png"))


def test_help_needs_neither_plotly_nor_torch():
    code = (
        "import sys; from igrpo_kit import cli\ntry: cli.main(['--help'])\nexcept SystemExit: pass\n"
        "print([m for m in ('torch', 'plotly', 'kaleido') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
    assert "toy" in done.stdout and "figures" in done.stdout


NAMES = [path.name for path in sorted((ROOT / "notebooks").iterdir()) if path.is_file()]
"""the lessons and the teaching guide"""


def test_lessons_are_copied_and_never_over_work_that_is_there(tmp_path, capsys):
    mine = tmp_path / "new" / "mine"
    assert main(["lessons", str(mine)]) == 0
    assert capsys.readouterr().out.splitlines() == sorted(str(mine / name) for name in NAMES)
    for name in NAMES:
        assert (mine / name).read_bytes() == (ROOT / "notebooks" / name).read_bytes()
    assert sorted(path.name for path in mine.iterdir()) == NAMES  # not their solutions

    edited, emptied, gone = (mine / name for name in NAMES[1:4])
    edited.write_text("my own work")
    emptied.write_text("")
    gone.unlink()
    assert main(["lessons", str(mine)]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == str(gone)
    kept = [name for name in NAMES if name != gone.name]
    assert second == f"{len(kept)} files already exist and were not changed: {', '.join(kept)}"
    assert (edited.read_text(), emptied.read_text()) == ("my own work", "")
    assert gone.read_bytes() == (ROOT / "notebooks" / gone.name).read_bytes()


def test_lessons_go_to_a_folder_of_that_name_by_default(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["lessons"]) == 0
    assert sorted(path.name for path in (tmp_path / "lessons").iterdir()) == NAMES
    assert capsys.readouterr().out.splitlines()[0] == f"lessons/{NAMES[0]}"


def test_the_lessons_of_the_checkout_are_their_own_copies(capsys):
    """Asked to copy them onto themselves, the command leaves every one as it is."""
    before = {name: (ROOT / "notebooks" / name).read_bytes() for name in NAMES}
    assert main(["lessons", str(ROOT / "notebooks")]) == 0
    assert capsys.readouterr().out.startswith(f"{len(NAMES)} files already exist and were not changed: ")
    assert {name: (ROOT / "notebooks" / name).read_bytes() for name in NAMES} == before


def test_lessons_do_not_follow_a_link_out_of_the_folder(tmp_path):
    """A link of that name is something that exists, wherever it leads."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / NAMES[0]).symlink_to(tmp_path / "elsewhere")
    assert main(["lessons", str(tmp_path / "mine")]) == 0
    assert not (tmp_path / "elsewhere").exists()


def test_lessons_where_no_folder_can_be_made_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert main(["lessons", str(tmp_path / "file")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("igrpo lessons: ")
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_lesson_becomes_a_copy_and_comes_back_graded(tmp_path, capsys):
    """The three commands of the teaching guide; without a solution nothing is earned, and nothing fails."""
    assert main(["student", "--out", str(tmp_path / "copies")]) == 0
    copies = capsys.readouterr().out.splitlines()
    assert len(copies) == 13 and copies[8].endswith("08_full_run_a100.ipynb")
    solved = str(tmp_path / "solved")
    assert main(["student", "--out", solved, "--solutions"]) == 0
    capsys.readouterr()
    (tmp_path / "in" / "ada").mkdir(parents=True)
    notebook = json.loads(Path(copies[8]).read_text(encoding="utf-8"))
    answers = [c for c in notebook["cells"] if "exercise" in c["metadata"].get("tags", [])]
    source = "".join(answers[1]["source"])
    answers[1]["source"] = source.replace(
        'raise NotImplementedError("not written yet")', "return seconds_per_step * steps * gpus / 3600"
    )
    notebook["cells"] = answers  # the rest of the lesson, a rehearsed run, takes a minute
    (tmp_path / "in" / "ada" / "08.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    grades = tmp_path / "new" / "grades.csv"
    assert main(["grade", str(tmp_path / "in"), "--out", str(grades)]) == 0
    out = capsys.readouterr().out
    assert "runs the learners' code" in out and "   1 of   2   ada\n" in out
    assert grades.read_text().splitlines()[1:] == [
        "ada,08.ipynb,prompts_per_update,0,1,not written yet,,0.0",
        "ada,08.ipynb,gpu_hours,1,1,passed,,0.0",
    ]


def test_grading_an_empty_folder_is_one_line(tmp_path, capsys):
    assert main(["grade", str(tmp_path)]) == 1
    assert "holds no notebook" in capsys.readouterr().err
