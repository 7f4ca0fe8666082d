"""The lessons without their solutions: `igrpo student` generates `notebooks/` from `notebooks/solutions/`.

In a source, the lines between `### BEGIN SOLUTION` and `### END SOLUTION` (nbgrader's markers) are the answer
to an exercise. In a function they become `raise NotImplementedError("not written yet")`; at the top level
each name they assign becomes None. `check` reports both as not written yet, so Run All completes.
"""

import ast
import html
import os
import posixpath
import re
import textwrap
from pathlib import Path

import nbformat

from igrpo_kit.core.data import lessons_path

BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
STUB = 'raise NotImplementedError("not written yet")'
_LINK = re.compile(r"\]\((?![a-z]+:|#)([^)\s]+)\)")  # not to a web page, nor within the notebook
_REGION = re.compile(rf"^([ \t]*){BEGIN}[ \t]*\n(.*?)^[ \t]*{END}[ \t]*(?:\n|\Z)", re.MULTILINE | re.DOTALL)


def without_solutions(source: str) -> str:
    """Code with a stub for each solution. Raises ValueError for a marker without its partner."""
    stubbed = _REGION.sub(lambda found: _stub(found[1], found[2]), source)
    if BEGIN in stubbed or END in stubbed:
        raise ValueError(f"{BEGIN} and {END} must stand in pairs, each on a line of its own")
    return stubbed.rstrip("\n")


def solutions_in(source: str) -> list[str]:
    """The solutions in code, as they stand between the markers, without their indentation."""
    return [textwrap.dedent(found[2]).rstrip() for found in _REGION.finditer(source)]


def _stub(indent: str, solution: str) -> str:
    if indent:
        return f"{indent}{STUB}\n"
    targets = [
        name.id
        for statement in ast.parse(solution).body
        for target in (statement.targets if isinstance(statement, ast.Assign) else [])
        for name in ast.walk(target)
        if isinstance(name, ast.Name)
    ]
    if not targets:
        raise ValueError("a solution outside a function must assign the answer to a name")
    return "".join(f"{name} = None  # not written yet\n" for name in targets)


def student_notebook(
    lesson: nbformat.NotebookNode, name: str, *, back: str = ".", solutions: bool = False
) -> nbformat.NotebookNode:
    """A lesson's student copy; with `solutions`, each is folded away below its cell.

    `name` is the lesson's, "04_grpo_by_hand"; it is kept in the metadata, where grading looks for it. `back`
    is the relative path from the copy's folder to the lesson's, for links.
    Raises ValueError naming the cell whose markers are out of order.
    """
    cells = []
    for cell in map(nbformat.from_dict, lesson.cells):
        cells.append(cell)
        if cell.cell_type == "markdown":
            cell.source = _LINK.sub(lambda found: f"]({_moved(found[1], back)})", cell.source)
        if cell.cell_type == "code":
            answers = solutions_in(cell.source)
            try:
                cell.source = without_solutions(cell.source)
            except (SyntaxError, ValueError) as error:
                raise ValueError(f"{name}, cell {cell.id!r}: {error}") from error
            if solutions and answers:
                cells.append(_folded(cell.id, answers))
    metadata = {**lesson.metadata, "igrpo_kit": {"lesson": name}}
    return nbformat.from_dict({**lesson, "cells": cells, "metadata": metadata})


def _moved(link: str, back: str) -> str:
    """A link as it reads one folder elsewhere; lessons lie beside each other there as well."""
    return link if re.fullmatch(r"\d\d_\w+\.ipynb(#.*)?", link) else posixpath.normpath(f"{back}/{link}")


def _folded(cell_id: str, answers: list[str]) -> nbformat.NotebookNode:
    code = html.escape("\n...\n".join(answers))
    source = f"<details><summary>Solution</summary>\n\n<pre><code>{code}</code></pre>\n\n</details>"
    return nbformat.v4.new_markdown_cell(source, id=f"{cell_id}-solution"[:64])


def solution(name: str) -> str:
    """The kit's answer to an exercise, as source; `check` shows it after three wrong answers.

    Raises LookupError for a name that no exercise has.
    """
    for path in sorted(sources_path().glob("*.ipynb")):
        for cell in nbformat.read(path, as_version=4).cells:
            answers = solutions_in(cell.source) if cell.cell_type == "code" else []
            if answers and re.search(rf"\bmy_{re.escape(name)}\b", cell.source):
                return "\n...\n".join(answers)
    raise LookupError(f"no exercise {name!r} has a solution in {sources_path()}")


def sources_path() -> Path:
    """Folder of the lessons with their solutions."""
    return lessons_path() / "solutions"


def copy_lessons(out: str | Path) -> tuple[list[Path], list[Path]]:
    """Copy the lessons and the teaching guide to `out`: the files written, and those left as they were."""
    out, written, kept = Path(out), [], []
    out.mkdir(parents=True, exist_ok=True)
    for source in sorted([*lessons_path().glob("*.ipynb"), *lessons_path().glob("*.md")]):
        target = out / source.name
        try:
            with open(target, "xb") as file:  # fails if the file exists, however recently
                file.write(source.read_bytes())
            written.append(target)
        except FileExistsError:
            kept.append(target)
    return written, kept


def write_student_copies(
    lessons: str | Path, out: str | Path, *, solutions: bool = False, force: bool = False
) -> list[Path]:
    """A student copy in `out` of every lesson in `lessons`; the files of all copies.

    Raises:
        ValueError: a lesson's markers are out of order, or the copies would replace the lessons.
        FileExistsError: without `force`, a file has other content than its copy; it may be somebody's work.
            Nothing is written in either case.
    """
    lessons, out = Path(lessons), Path(out)
    if out.resolve() == lessons.resolve():
        raise ValueError(f"{out}: the copies would replace the lessons")
    back = Path(os.path.relpath(lessons, out)).as_posix()
    sources = {path: nbformat.read(path, as_version=4) for path in sorted(lessons.glob("*.ipynb"))}
    if not any(solutions_in(cell.source) for lesson in sources.values() for cell in lesson.cells):
        raise ValueError(f"{lessons}: no lesson with a solution to take out")
    copies = {
        out / path.name: student_notebook(lesson, path.stem, back=back, solutions=solutions)
        for path, lesson in sources.items()
    }
    texts = {path: nbformat.writes(copy) + "\n" for path, copy in copies.items()}
    theirs = [path for path, text in texts.items() if path.exists() and path.read_text("utf-8") != text]
    if theirs and not force:
        raise FileExistsError(
            f"{', '.join(map(str, theirs))}: exists with other content and was not touched, nor was anything "
            "else; another --out keeps it, --force replaces it"
        )
    out.mkdir(parents=True, exist_ok=True)
    for path, text in texts.items():
        path.write_text(text, "utf-8")
    return list(copies)
