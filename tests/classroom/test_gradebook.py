"""Grades as files: totals, feedback, the class report, and Gradescope's format, from rows typed by hand."""

import csv
import json
import os
from datetime import datetime
from html.parser import HTMLParser

from igrpo_kit.classroom.grade import ExerciseGrade, grade_folder, points_table
from igrpo_kit.classroom.gradebook import write_class_report, write_feedback, write_gradescope, write_totals
from tests.classroom.test_grade import QUICK, RIGHT, submit

GRADES = [
    ExerciseGrade("Ada Ĺ", "04.ipynb", "group_advantages", 1, 1, "passed", ""),
    ExerciseGrade("Ada Ĺ", "04.ipynb", "bug_mask", 0, 2, "not yet right", "the first EOS is <lost>"),
    ExerciseGrade("Ada Ĺ", "05.ipynb", "bug_ratio", 2, 2, "passed", "", hours_late=2.5),
    ExerciseGrade("=cmd()", "04.ipynb", "group_advantages", 0, 1, "syntax error", "code cell 1"),
    ExerciseGrade("=cmd()", "04.ipynb", "bug_mask", 0, 2, "not yet right", "the first EOS is <lost>"),
    ExerciseGrade("a/b", "x.ipynb", "", 0, 0, "not graded", "not a readable notebook"),
    ExerciseGrade("a b", "04.ipynb", "bug_mask", 2, 2, "passed", ""),
]


class Text(HTMLParser):
    """The words of a page, and every tag and attribute that could load or run something."""

    def __init__(self, page):
        super().__init__()
        self.words, self.active = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.active += [tag] * (tag in ("script", "img", "iframe", "link", "lost"))
        self.active += [name for name, _ in attrs if name in ("src", "href") or name.startswith("on")]

    def handle_data(self, data):
        self.words.append(data)


def test_totals_are_wide_and_open_in_a_spreadsheet(tmp_path):
    write_totals(tmp_path / "t.csv", GRADES)
    assert (tmp_path / "t.csv").read_bytes().startswith(b"\xef\xbb\xbf")
    with (tmp_path / "t.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["student", "points", "of", "hours late", "04.ipynb", "05.ipynb", "x.ipynb"],
        ["Ada Ĺ", "3", "5", "2.5", "1", "2", ""],
        ["'=cmd()", "0", "3", "0.0", "0", "", ""],
        ["a/b", "0", "0", "0.0", "", "", "0"],
        ["a b", "2", "2", "0.0", "2", "", ""],
    ]


def test_each_student_gets_a_page_of_their_own(tmp_path):
    paths = write_feedback(tmp_path / "f", GRADES)
    assert [path.name for path in paths] == ["Ada_Ĺ.html", "cmd.html", "a_b.html", "a_b-2.html"]
    page = Text(paths[0].read_text("utf-8"))
    assert page.active == [] and "the first EOS is <lost>" in page.words
    assert "3 of 5 points, handed in 2.5 hours late" in page.words
    assert "bug_mask" not in Text(paths[2].read_text("utf-8")).words


def test_the_report_counts_who_passed_and_which_hints_came_most_often(tmp_path):
    write_class_report(tmp_path / "r.html", GRADES)
    text = (tmp_path / "r.html").read_text("utf-8")
    page = Text(text)
    assert page.active == [] and "http" not in text
    words = page.words
    assert words[words.index("bug_mask") + 1 :][:4] == ["1 of 4", "✗", "✗", "✓"]  # a/b has no mark
    assert words[words.index("group_advantages") + 1 :][:3] == ["1 of 4", "✓", "⚠"]
    hint = words.index("the first EOS is <lost>")
    assert words[hint - 2 : hint] == ["bug_mask", "2"]
    assert "not a readable notebook" in words


def test_a_note_is_told_without_counting_as_an_exercise(tmp_path):
    note = ExerciseGrade("Ada Ĺ", "04.ipynb", "", 0, 0, "note", "it tried to create /<x>")
    missed = ("bug_mask", "bug_ratio")
    stuck = [ExerciseGrade("b", "05.ipynb", e, 0, 1, "not graded", "ended") for e in missed]
    grades = [*GRADES, note, *stuck]
    write_class_report(tmp_path / "r.html", grades)
    words = Text((tmp_path / "r.html").read_text("utf-8")).words
    assert words[words.index("Notes") :][:7] == [
        "Notes", "student", "notebook", "what happened", "Ada Ĺ", "04.ipynb", "it tried to create /<x>",
    ]  # fmt: skip
    assert words.count("ended") == 1 and words[words.index("bug_mask") + 1] == "1 of 5"
    page = Text(write_feedback(tmp_path / "f", grades)[0].read_text("utf-8")).words
    assert page[page.index("Note: it tried to create /<x>") - 1] == "04.ipynb" and "note" not in page
    found = json.loads(write_gradescope(tmp_path / "g", grades)[0].read_text("utf-8"))
    assert len(found["tests"]) == 3
    assert points_table([*GRADES[:3], note]).splitlines() == [
        "   3 of   5   Ada Ĺ",
        "               04.ipynb: it tried to create /<x>",
    ]


def test_gradescope_gets_a_result_for_each_student(tmp_path):
    path, *_ = write_gradescope(tmp_path, GRADES)
    found = json.loads(path.read_text("utf-8"))
    assert path == tmp_path / "Ada_Ĺ" / "results.json" and found["score"] == 3
    assert found["tests"][1] == {
        "name": "04.ipynb: bug_mask",
        "score": 0,
        "max_score": 2,
        "status": "failed",
        "output": "the first EOS is <lost>",
    }


def test_a_syntax_error_has_its_own_status_and_a_late_file_its_hours(tmp_path):
    ada = submit(tmp_path, "ada", RIGHT, "def my_bug_mask(ids, eos_id:\n    return ids\n")
    os.utime(ada, (1e9, 1e9 + 5400))
    due = datetime.fromtimestamp(1e9)
    by_name = {g.exercise: g for g in grade_folder(tmp_path, QUICK, due=due)}
    assert by_name["group_advantages"].status == "passed"
    assert by_name["bug_mask"].status == "syntax error"
    assert "SyntaxError" in by_name["bug_mask"].hint and by_name["bug_mask"].points == 0
    assert by_name["bug_ddof"].status == "not written yet"
    assert {g.hours_late for g in by_name.values()} == {1.5}
