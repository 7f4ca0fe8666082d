"""Exercises and checks: the reference passes, every wrong version is told what is wrong with it."""

import inspect
import json
import math
import re
import shutil
import sys
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from scipy.special import softmax

from igrpo_kit import group_advantages
from igrpo_kit.classroom import checks, exercises
from igrpo_kit.classroom.answers import Mistake, NotWritten, call, mismatch, within
from igrpo_kit.classroom.checks import check, scoreboard, use
from igrpo_kit.classroom.exercise import KITS_OWN, FunctionCheck, Result, ValueCheck, judge
from igrpo_kit.classroom.exercises import EXERCISES
from igrpo_kit.classroom.exercises.lesson03 import score
from igrpo_kit.classroom.exercises.lesson11 import NEVER
from igrpo_kit.classroom.student import (
    solution,
    solutions_in,
    student_notebook,
    without_solutions,
    write_student_copies,
)
from igrpo_kit.core import advantages
from igrpo_kit.core.toy import best_of_n_probability

ROOT = Path(__file__).parents[2]
COPIES, SOURCES = ROOT / "notebooks", ROOT / "notebooks" / "solutions"
STARS = {1: "★", 2: "★★", 3: "★★★"}

functions = [e for e in EXERCISES.values() if isinstance(e.verify, FunctionCheck)]
values = [e for e in EXERCISES.values() if isinstance(e.verify, ValueCheck)]


def verdict(exercise, function):
    return judge(exercise, exercise.verify.probed(function))


def cells_of_exercises():
    """name -> (lesson, statement, code) over all lessons."""
    found = {}
    for path in sorted(SOURCES.glob("*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells
        for before, cell in pairwise(cells):
            if "exercise" in cell.metadata.get("tags", []):
                (name,) = re.findall(r'^check\("(\w+)", my_\1\)', cell.source, re.MULTILINE)
                found[name] = (path.stem[:2], before.source, cell.source)
    return found


CELLS = cells_of_exercises()


@pytest.mark.parametrize("exercise", functions, ids=lambda e: e.name)
def test_the_reference_passes_with_any_random_cases(exercise):
    assert verdict(exercise, exercise.verify.reference)
    for seed in range(5):
        exercise.verify(exercise.verify.probed(exercise.verify.reference), np.random.default_rng(seed))


@pytest.mark.parametrize("exercise", functions, ids=lambda e: e.name)
def test_each_mistake_is_named(exercise):
    assert len(exercise.verify.mistakes) >= 3
    for wrong in exercise.verify.mistakes:
        assert verdict(exercise, wrong).hint == inspect.cleandoc(wrong.__doc__), wrong.__name__


@pytest.mark.parametrize("exercise", values, ids=lambda e: e.name)
def test_each_wrong_value_has_its_hint(exercise):
    assert judge(exercise, exercise.verify.right)
    wrong = {**exercise.verify.mistakes, "something else": None, 1234.5: None}
    hints = [judge(exercise, value) for value in wrong]
    assert len(wrong) >= 3 and not any(hints)
    assert len({r.hint for r in hints}) == len(wrong)
    for value, hint in exercise.verify.mistakes.items():
        assert judge(exercise, value).hint == hint


@pytest.mark.parametrize("exercise", EXERCISES.values(), ids=lambda e: e.name)
def test_an_empty_stub_never_passes(exercise):
    def raising(*arguments):
        raise NotImplementedError("not written yet")

    def empty(*arguments):
        pass

    for stub in (None, ...):
        assert repr(check(exercise.name, stub)) == f"… {exercise.name}: not written yet"
    if isinstance(exercise.verify, FunctionCheck):
        assert {check(exercise.name, stub).status for stub in (raising, empty)} == {"not written yet"}


def test_what_passes_is_used_and_said(capsys):
    def mine(logits, action):
        return EXERCISES["score"].verify.reference(logits, action)

    assert use("score", mine) is mine
    assert use("score", None) is EXERCISES["score"].verify.reference
    assert use("score", lambda logits, action: -mine(logits, action)) is EXERCISES["score"].verify.reference
    assert capsys.readouterr().out.splitlines() == [
        "score: yours, from here on",
        "score: the kit's, as yours is not written yet",
        "score: the kit's, as yours is not yet right",
    ]
    with pytest.raises(ValueError, match="'baseline': its answer is a value, there is nothing to call"):
        use("baseline", "unchanged")


@pytest.mark.parametrize("exercise", EXERCISES.values(), ids=lambda e: e.name)
def test_the_lesson_holds_the_exercise_and_its_solution_passes(exercise):
    lesson, statement, code = CELLS[exercise.name]
    assert lesson == exercise.lesson
    stars, minutes = re.search(r"^(★+) · (\d+) min$", statement, re.MULTILINE).groups()
    assert (stars, int(minutes)) == (STARS[exercise.difficulty], exercise.minutes)
    (solution,) = solutions_in(code)
    assert solution
    # The lesson's own names, as far as the solutions use them.
    names = {"torch": torch, "np": np, "math": math, "check": check, "softmax": softmax, "score": score}
    exec("from igrpo_kit import *\nfrom igrpo_kit import group_advantages", names)
    exec(code, names)
    assert check(exercise.name, names[f"my_{exercise.name}"])
    if exercise.kind == "bug":
        assert not check(exercise.name, names["broken" + exercise.name.removeprefix("bug")])


def test_every_exercise_of_a_lesson_is_known():
    assert set(CELLS) == set(EXERCISES)
    lessons = {path.stem[:2] for path in SOURCES.glob("*.ipynb")} - {"00"}
    assert {e.lesson for e in EXERCISES.values()} == lessons
    kinds = [e.kind for e in EXERCISES.values()]
    assert kinds.count("bug") >= 6 and kinds.count("prediction") >= 5 and len(kinds) >= 30


def test_an_unknown_exercise_suggests_a_name():
    with pytest.raises(LookupError, match=r"no exercise 'k3-kl'; did you mean k3_kl"):
        check("k3-kl", None)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda r: 1 / 0, r"ZeroDivisionError for \(\[\[1.0, 0.0, 0.0, 0.0\]"),
        (lambda: 1, "TypeError"),
        (lambda r: sys.exit(3), "SystemExit"),
        (lambda r: {"a": 1}, "it is a dict, expected a tensor"),
        (lambda r: [[1.0], [2.0, 3.0]], "is a list, expected a tensor"),  # ragged
        (lambda r: r[0], r"has the shape \[4\], expected \[2, 4\]"),
        (lambda r: r > 0, "holds bool, expected float"),
        (lambda r: r.sub_(1), r"changes its own arguments: \(\[\[1.0, .* became \(\[\[0.0"),
        (lambda r: r * torch.nan, "Every entry is nan"),
        (lambda r: object(), "of type object"),
        (3, "a function is wanted, this is a number"),
    ],
)
def test_what_can_go_wrong_is_said(answer, hint):
    result = check("group_advantages", answer)
    assert result.status == "not yet right" and re.search(hint, result.hint)


def test_an_endless_loop_ends_even_if_it_catches_everything():
    def stubborn():
        while True:
            try:  # noqa: SIM105  a learner's bare except
                time.sleep(0.01)
            except:  # noqa: E722
                pass

    start = time.monotonic()
    with pytest.raises(Mistake, match=r"no answer after 0.2 s: is there a loop that never ends"):
        within(0.2, stubborn)
    assert time.monotonic() - start < 30


def test_a_late_answer_is_not_taken():
    with pytest.raises(Mistake, match="no answer after"):
        within(0.05, lambda: time.sleep(0.5) or 7)
    assert within(60, lambda: 7) == 7


def by_hand(p, n):
    """1 - (1 - p)^n, as anyone would write it."""
    return 1 - (1 - p) ** n


def renamed(steps: list[int | None]) -> int:
    there = sorted(s for s in steps if s is not None)
    half = (len(steps) + 1) // 2
    return there[half - 1] if len(there) >= half else -1


def renamed_with_the_kits_constant(first):
    """The kit's source with other names."""
    there = sorted(a for a in first if a is not None)
    half = (len(first) + 1) // 2
    return there[half - 1] if len(there) >= half else NEVER


def handed_on(rewards):
    return advantages.group_advantages(rewards)


def regrouped(prompts, rewards, group_size):
    return group_advantages(rewards.view(-1, group_size)).flatten()


@pytest.mark.parametrize(
    ("name", "answer", "own"),
    [
        ("group_advantages", group_advantages, True),
        ("group_advantages", lambda rewards: group_advantages(rewards), True),
        ("group_advantages", handed_on, True),
        ("best_of_n", lambda p, n: float(best_of_n_probability(p, n)), True),
        ("median_step", renamed_with_the_kits_constant, True),
        ("median_step", renamed, False),
        ("best_of_n", by_hand, False),
        ("bug_group_by_text", regrouped, False),  # it calls the kit's, and does the exercise's part itself
        ("k3_kl", eval("lambda a, b: (b - a).exp() - (b - a) - 1"), False),  # without a source
    ],
)
def test_the_kits_own_function_is_flagged_not_failed(name, answer, own):
    result = check(name, answer)
    assert result.status == "passed" and result.hint == (KITS_OWN if own else "")


def test_a_hint_cannot_act_on_the_page():
    result = Result("x", "not yet right", "<img src=x onerror=alert(1)>")
    assert "&lt;img" in result._repr_html_() and "<img" not in result._repr_html_()
    assert 'role="status"' in result._repr_html_()


@pytest.mark.parametrize(
    ("got", "expected", "words"),
    [
        (1.0, torch.tensor(1.0), ""),
        (torch.tensor(2.5), 2.5, ""),
        (float("nan"), float("nan"), ""),
        (float("inf"), float("inf"), ""),
        (1, 2, "yours 1, expected 2"),
        (5.0, float("inf"), "yours 5.0, expected inf"),
        (-0.0, 1.0, "yours 0.0, expected 1.0"),
        (torch.tensor([True, True]), torch.tensor([True, False]), "entry 1: yours True, expected False"),
        (np.zeros((2, 3)), np.eye(3)[1:], "row 0, column 1: yours 0.0, expected 1.0"),
        (np.zeros((1, 2, 2)), np.array([[[0, 0], [0, 7]]]), "[0, 1, 1]: yours 0.0, expected 7"),
        ("a", "b", "yours 'a', expected 'b'"),
        ("so it is 18", "so it is 19, of all", "from character 10 on: yours '8', expected '9, of all'"),
        ("so", "so it is 19, says the draft", "from character 2 on: yours '', expected ' it is 19, s'"),
        ([1, 2], [1, 3], "entry 1: yours 2, expected 3"),
        ([1], [1, 3], "it has 1 entries, expected 2"),
        ({"a": 1}, {"a": 2}, "`a`: yours 1, expected 2"),
        ({"a": 1}, {"b": 1}, "it has the keys ['a'], expected ['b']"),
        ("1", 1, "it is a string, expected a number"),
        (True, "yes", "it is True or False, expected a string"),
    ],
)
def test_difference(got, expected, words):
    assert mismatch(got, expected) == words


def test_call_tells_a_stub_from_a_mistake():
    with pytest.raises(NotWritten, match="is the return missing"):
        call(lambda x: None, [1])


# Student copies


def test_solutions_become_stubs():
    source = (
        "def my_f(x):\n    y = 1\n    ### BEGIN SOLUTION\n    return x + y\n    ### END SOLUTION\n\n\nmy_f\n"
        "### BEGIN SOLUTION\na = b = 3\nc, d = 1, 2\n### END SOLUTION\nprint(a)"
    )
    assert without_solutions(source) == (
        'def my_f(x):\n    y = 1\n    raise NotImplementedError("not written yet")\n\n\nmy_f\n'
        "a = None  # not written yet\nb = None  # not written yet\n"
        "c = None  # not written yet\nd = None  # not written yet\nprint(a)"
    )
    assert solutions_in(source) == ["return x + y", "a = b = 3\nc, d = 1, 2"]


@pytest.mark.parametrize(
    "source",
    [
        "### BEGIN SOLUTION\nx = 1",
        "x = 1\n### END SOLUTION",
        "### BEGIN SOLUTION\nprint(1)\n### END SOLUTION",
        "### BEGIN SOLUTION\n### BEGIN SOLUTION\nx = 1\n### END SOLUTION\n### END SOLUTION",
    ],
)
def test_markers_out_of_order_name_the_cell(source, tmp_path):
    cell = nbformat.v4.new_code_cell(source, id="answer-x")
    with pytest.raises(ValueError, match=r"99_x, cell 'answer-x': "):
        student_notebook(nbformat.v4.new_notebook(cells=[cell]), "99_x")


def test_a_copy_one_folder_down_keeps_its_links():
    text = (
        "[a](../README.md) [b](02_rewards.ipynb#two) [c](guide.md#1) ![d](../figures/x.png) "
        "[e](https://x.org) [f](#here)"
    )
    lesson = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text)])
    copy = student_notebook(lesson, "99_x", back="..")
    assert copy.cells[0].source == (
        "[a](../../README.md) [b](02_rewards.ipynb#two) [c](../guide.md#1) ![d](../../figures/x.png) "
        "[e](https://x.org) [f](#here)"
    )
    assert student_notebook(lesson, "99_x", back="solutions").cells[0].source == (
        "[a](README.md) [b](02_rewards.ipynb#two) [c](solutions/guide.md#1) ![d](figures/x.png) "
        "[e](https://x.org) [f](#here)"
    )


def test_the_committed_copies_are_current(tmp_path):
    shutil.copytree(SOURCES, tmp_path / "solutions")  # below the copies, as here: their links depend on it
    written = write_student_copies(tmp_path / "solutions", tmp_path)
    committed = sorted(COPIES.glob("*.ipynb"))
    assert [p.name for p in committed] == [p.name for p in written], "igrpo student --force"
    for path, fresh in zip(committed, written, strict=True):
        assert json.loads(path.read_text()) == json.loads(fresh.read_text()), (
            f"{path.name}: igrpo student --force"
        )
        text = path.read_text()
        assert "# BEGIN SOLUTION" not in text and "# END SOLUTION" not in text
        assert path.name.startswith("00") or "not written yet" in text


def test_a_copy_leaves_code_alone_and_no_lesson_finds_its_data_by_where_it_lies():
    cell = nbformat.v4.new_code_cell('records_dir = data_path("runs")  # "../data/runs", [a](../b)')
    for back in ("..", "../notebooks"):
        copy = student_notebook(nbformat.v4.new_notebook(cells=[cell]), "99_x", back=back)
        assert copy.cells[0].source == cell.source
    for path in COPIES.rglob("*.ipynb"):
        code = [c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
        assert not [line for source in code for line in source.splitlines() if "../" in line], path.name


def test_copies_never_replace_the_lessons():
    with pytest.raises(ValueError, match="would replace the lessons"):
        write_student_copies(SOURCES, COPIES / "solutions")


def test_a_solution_build_folds_each_solution(tmp_path):
    (_, path, *_) = write_student_copies(SOURCES, tmp_path, solutions=True)
    cells = nbformat.read(path, as_version=4).cells
    answer = next(i for i, c in enumerate(cells) if c.id == "answer-best-of-n")
    assert "raise NotImplementedError" in cells[answer].source
    assert cells[answer + 1].source.startswith("<details><summary>Solution</summary>")
    assert "return 1 - (1 - p) ** n" in cells[answer + 1].source


def test_somebodys_work_is_never_replaced_unasked(tmp_path):
    _, first, second, *_ = write_student_copies(SOURCES, tmp_path)
    assert write_student_copies(SOURCES, tmp_path)[1] == first  # untouched copies are no obstacle
    first.write_text("my work", "utf-8")
    second.unlink()
    with pytest.raises(FileExistsError, match=r"01_best_of_n.ipynb: exists with other content .*--force"):
        write_student_copies(SOURCES, tmp_path)
    assert first.read_text("utf-8") == "my work" and not second.exists()
    write_student_copies(SOURCES, tmp_path, force=True)
    assert "my work" not in first.read_text("utf-8") and second.exists()


def test_the_scoreboard_counts_what_passed_and_names_the_next(monkeypatch):
    monkeypatch.setattr(checks, "_latest", {})
    names = [e.name for e in EXERCISES.values() if e.lesson == "01"]
    assert names[:2] == ["best_of_n", "drafts_needed"]
    assert repr(scoreboard("01")) == "0 of 5 passed, next: best_of_n"
    check("best_of_n", lambda p, n: 1 - (1 - p) ** n)
    check("jensen", "higher")
    assert repr(scoreboard("01")) == "1 of 5 passed, next: drafts_needed"
    assert scoreboard("01")._repr_html_().count("not written yet") == 3
    check("jensen", "lower")
    check("best_of_n", lambda p, n: p)  # the last verdict counts
    assert repr(scoreboard("01")) == "1 of 5 passed, next: best_of_n"
    with pytest.raises(LookupError, match="lesson '00' has no exercise; those that have: 01, 02, 03"):
        scoreboard("00")


@pytest.mark.parametrize("lesson", [m for m in vars(exercises).values() if hasattr(m, "EXERCISES")])
def test_exercises_are_listed_in_the_order_of_their_notebook(lesson):
    """The scoreboard names the next one by this order."""
    listed = [exercise.name for exercise in lesson.EXERCISES]
    assert listed == [name for name in CELLS if name in listed]


def test_the_third_wrong_answer_brings_the_solution(monkeypatch):
    monkeypatch.setattr(checks, "_wrong", Counter())
    wrong = [check("best_of_n", lambda p, n: p) for _ in range(3)]
    assert [bool(result.solution) for result in wrong] == [False, False, True]
    assert wrong[2].solution == "return 1 - (1 - p) ** n"
    assert "<details><summary>Solution</summary><pre>return 1 - (1 - p) ** n</pre>" in wrong[2]._repr_html_()
    assert "<details>" not in wrong[1]._repr_html_() and "Solution" not in repr(wrong[2])
    assert not check("best_of_n", None).solution and not check("best_of_n", lambda p, n: None).solution
    assert not check("best_of_n", lambda p, n: 1 - (1 - p) ** n).solution
    assert not check("jensen", "higher").solution, "each exercise has tries of its own"


@pytest.mark.parametrize("name", EXERCISES)
def test_every_exercise_has_a_solution_on_demand(name):
    assert solution(name).strip()


def test_no_such_exercise_has_no_solution():
    assert solution("jensen") == 'my_jensen = "lower"'
    with pytest.raises(LookupError, match="no exercise 'best' has a solution"):
        solution("best")


def test_no_lesson_with_an_exercise_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no lesson with a solution"):
        write_student_copies(tmp_path, tmp_path / "out")
