"""The record of one problem."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from hashlib import sha256
from typing import Any, Literal

Split = Literal["train", "held_out"]


@dataclass(frozen=True)
class Problem:
    """One question with its reference answer; `source` names its origin and so how answers are checked."""

    id: str
    question: str
    answer: str
    source: str


def problem_from_row(row: Any, where: str, default_source: str) -> Problem:
    """A row as a Problem.

    Args:
        row: mapping with id, question, answer, and optionally source.
        where: file and line or the like, the beginning of every error message.
        default_source: for a row without a source.

    Raises:
        ValueError: a field is missing, empty, or not a string.
    """
    if not isinstance(row, Mapping):
        raise ValueError(f"{where}: expected an object with id, question, answer, got {type(row).__name__}")
    row = {"source": default_source} | dict(row)
    values = []
    for name in (f.name for f in fields(Problem)):
        if row.get(name) is None:
            raise ValueError(f"{where}: no {name!r}; there is {', '.join(map(repr, row))}")
        if not isinstance(row[name], str):
            raise ValueError(f"{where}: {name} must be a string, got {row[name]!r}")
        if not row[name].strip():
            raise ValueError(f"{where}: {name} is empty")
        values.append(row[name])
    return Problem(*values)


def problems_identity(problems: Sequence[Problem]) -> dict[str, Any]:
    """Count and SHA-256 of problems: what a record stores to tell problem sets apart."""
    text = "\n".join(f"{p.id}\t{p.question}\t{p.answer}" for p in problems)
    return {"count": len(problems), "sha256": sha256(text.encode("utf-8", "backslashreplace")).hexdigest()}
