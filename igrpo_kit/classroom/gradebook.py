"""Grades as files for people: totals for a gradebook, a page for each student, and a report for the teacher.

Everything is made from the rows that `grade.grade_folder` returns. Names and hints come from learners: they
are escaped in HTML, and a cell that begins like a formula gets an apostrophe in CSV.
"""

import csv
import html
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from igrpo_kit.classroom.grade import ExerciseGrade, plain_cell

_MARKS = {
    "passed": ("✓", "#00704F"),
    "not yet right": ("✗", "#B04A00"),
    "syntax error": ("⚠", "#B04A00"),
    "not graded": ("?", "#B04A00"),
    "not written yet": ("…", "#595959"),
}
_STYLE = """
body { font: 16px/1.5 sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em; color: #1A1A1A }
table { border-collapse: collapse; margin: 1em 0 } th, td { border: 1px solid #CCC; padding: .3em .6em }
th { text-align: left; background: #F4F4F4 } td.mark { text-align: center; font-weight: bold }
.scroll { overflow-x: auto } .scroll th:first-child { position: sticky; left: 0 }
"""


def by_student(grades: Sequence[ExerciseGrade]) -> dict[str, list[ExerciseGrade]]:
    """Student -> own grades, in the order of the rows."""
    found: dict[str, list[ExerciseGrade]] = {}
    for grade in grades:
        found.setdefault(grade.student, []).append(grade)
    return found


def write_totals(path: str | Path, grades: Sequence[ExerciseGrade]) -> None:
    """One row per student: points, possible points, hours late, and the points in each notebook.

    UTF-8 with a byte-order mark, so that spreadsheets read names correctly.
    """
    notebooks = list(dict.fromkeys(grade.notebook for grade in grades))
    with open(path, "w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file)
        writer.writerow(["student", "points", "of", "hours late", *map(plain_cell, notebooks)])
        for student, own in by_student(grades).items():
            per_notebook: Mapping[str, int] = Counter()
            for grade in own:
                per_notebook[grade.notebook] += grade.points  # type: ignore[index]
            handed_in = {grade.notebook for grade in own}
            points = [per_notebook[name] if name in handed_in else "" for name in notebooks]
            late = max(grade.hours_late for grade in own)
            row = [student, sum(g.points for g in own), sum(g.of for g in own), f"{late:.1f}", *points]
            writer.writerow(map(plain_cell, row))


def write_feedback(folder: str | Path, grades: Sequence[ExerciseGrade]) -> list[Path]:
    """One HTML page for each student, to hand back: every exercise, where it stands, and its hint."""
    folder, written = Path(folder), []
    folder.mkdir(parents=True, exist_ok=True)
    for name, (student, own) in zip(_file_names(by_student(grades)), by_student(grades).items(), strict=True):
        total = f"{sum(g.points for g in own)} of {sum(g.of for g in own)} points"
        late = max(g.hours_late for g in own)
        parts = [f"<p>{total}{f', handed in {late:.1f} hours late' if late else ''}</p>"]
        for notebook in dict.fromkeys(g.notebook for g in own):
            here = [g for g in own if g.notebook == notebook]
            rows = [
                [g.exercise, f"{g.points} of {g.of}", g.status, g.hint] for g in here if g.status != "note"
            ]
            parts += [
                f"<h2>{html.escape(notebook)}</h2>",
                *(f"<p>Note: {html.escape(g.hint)}</p>" for g in here if g.status == "note"),
                _table([["exercise", "points", "status", "hint"], *rows]),
            ]
        path = folder / f"{name}.html"
        path.write_text(_page(student, "".join(parts)), "utf-8")
        written.append(path)
    return written


def write_class_report(path: str | Path, grades: Sequence[ExerciseGrade]) -> None:
    """One offline HTML page: exercise by student, and the most frequent hints of each exercise."""
    students = by_student(grades)
    exercises = list(dict.fromkeys(grade.exercise for grade in grades if grade.exercise))
    status = {(g.student, g.exercise): g.status for g in grades}
    head = "".join(f"<th>{html.escape(student)}</th>" for student in students)
    lines = []
    for exercise in exercises:
        own = [status.get((student, exercise)) for student in students]
        passed = sum(s == "passed" for s in own)
        cells = "".join(_mark(s) for s in own)
        name = html.escape(exercise)
        lines.append(f"<tr><th>{name}</th><td>{passed} of {len(own)}</td>{cells}</tr>")
    matrix = f"<tr><th>exercise</th><th>passed</th>{head}</tr>{''.join(lines)}"
    hints = [["exercise", "students", "hint"]]
    for exercise in exercises:
        said = Counter(
            g.hint for g in grades if g.exercise == exercise and g.hint and g.status != "not graded"
        )
        hints += [[exercise, str(count), hint] for hint, count in said.most_common(3)]
    legend = ", ".join(f"{mark} {status}" for status, (mark, _) in _MARKS.items())
    parts = [
        f"<p>{legend}; empty: not handed in</p>",
        f'<div class="scroll"><table>{matrix}</table></div>',
        "<h2>Most frequent hints</h2>",
        _table(hints),
    ]
    for title, kind in (("Not graded", "not graded"), ("Notes", "note")):
        # Once for a notebook, not for each of its exercises.
        rows = list(dict.fromkeys((g.student, g.notebook, g.hint) for g in grades if g.status == kind))
        if rows:
            parts += [f"<h2>{title}</h2>", _table([("student", "notebook", "what happened"), *rows])]
    Path(path).write_text(_page("Class report", "".join(parts)), "utf-8")


def write_gradescope(folder: str | Path, grades: Sequence[ExerciseGrade]) -> list[Path]:
    """A `results.json` for each student, in the format of a Gradescope autograder."""
    written = []
    for name, own in zip(_file_names(by_student(grades)), by_student(grades).values(), strict=True):
        tests = [
            {
                "name": f"{g.notebook}: {g.exercise}",
                "score": g.points,
                "max_score": g.of,
                "status": "passed" if g.status == "passed" else "failed",
                "output": g.hint or g.status,
            }
            for g in own
            if g.status != "note"
        ]
        path = Path(folder) / name / "results.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"score": sum(g.points for g in own), "tests": tests}, indent=1), "utf-8")
        written.append(path)
    return written


def _file_names(students: Iterable[str]) -> list[str]:
    """A file name for each student: letters and digits of the name, and a number where two are alike."""
    names: list[str] = []
    for student in students:
        plain = re.sub(r"[^\w-]+", "_", student).strip("_") or "student"
        count = sum(re.fullmatch(rf"{re.escape(plain)}(-\d+)?", name) is not None for name in names)
        names.append(f"{plain}-{count + 1}" if count else plain)
    return names


def _mark(status: str | None) -> str:
    mark, color = ("", "") if status is None else _MARKS[status]
    title = html.escape(status or "not handed in")
    return f'<td class="mark" style="color: {color}" title="{title}">{mark}</td>'


def _table(rows: Sequence[Sequence[Any]]) -> str:
    head, *body = [[html.escape(str(cell)) for cell in row] for row in rows]
    lines = ["".join(f"<th>{cell}</th>" for cell in head)]
    lines += ["".join(f"<td>{cell}</td>" for cell in row) for row in body]
    return f'<div class="scroll"><table>{"".join(f"<tr>{line}</tr>" for line in lines)}</table></div>'


def _page(title: str, body: str) -> str:
    name = html.escape(title)
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width"><title>{name}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{name}</h1>{body}</body></html>\n"
    )
