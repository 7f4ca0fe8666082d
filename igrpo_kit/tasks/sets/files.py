"""Problems from your own files: JSONL and CSV."""

import csv
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from igrpo_kit.tasks.problem import Problem, problem_from_row


def _jsonl_rows(text: str, path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield f"{path}, line {number}", json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}, line {number}: not JSON ({error})") from error


def _csv_rows(text: str, path: Path) -> Iterator[tuple[str, Any]]:
    reader = csv.DictReader(text.splitlines(keepends=True), strict=True)
    try:
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if None in row:
                raise ValueError(f"{where}: more cells than columns")
            yield where, row
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.reader.line_num}: not CSV ({error})") from error


def load_problems(path: str | Path) -> list[Problem]:
    """The problems of a `.jsonl` file (one object per line) or a `.csv` file (with a header), in UTF-8.

    Columns: `id`, `question`, `answer`, and optionally `source` (default: the file's name); others are
    ignored.

    Raises:
        ValueError: a line is not JSON or CSV, a column is missing, a value is empty or not a string, or an id
            is repeated (the message names file and line); or the file has no problems or is of another type.
    """
    path = Path(path)
    readers = {".jsonl": _jsonl_rows, ".csv": _csv_rows}
    if path.suffix not in readers:
        raise ValueError(f"{path}: expected a .jsonl or .csv file")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error})") from error
    problems, seen = [], dict[str, str]()
    for where, row in readers[path.suffix](text, path):
        problem = problem_from_row(row, where, path.stem)
        if problem.id in seen:
            raise ValueError(f"{where}: id {problem.id!r} was used before, in {seen[problem.id]}")
        seen[problem.id] = where
        problems.append(problem)
    if not problems:
        raise ValueError(f"{path}: no problems in it")
    return problems


def save_problems(problems: Iterable[Problem], path: str | Path) -> None:
    """Write problems as JSONL; equal problems give equal bytes. Raises ValueError for a repeated id."""
    problems = list(problems)
    repeated = [id for id, times in Counter(p.id for p in problems).items() if times > 1]
    if repeated:
        raise ValueError(f"problems: repeated ids {repeated[:5]}")
    lines = "".join(json.dumps(asdict(p), ensure_ascii=False) + "\n" for p in problems)
    Path(path).write_bytes(lines.encode())
