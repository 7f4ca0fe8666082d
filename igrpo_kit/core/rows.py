"""Row files: JSON Lines that a crash cannot corrupt, and files that are written whole or not at all.

Rows are appended whole, in one write each; a process that dies in the middle leaves at most a torn last line,
which `read_rows` skips, since its writer replaces it. Anything else that does not parse is an error naming
file and line. For a finished record `read_checked_rows` and `read_columns` are stricter: a torn line is an
error too, the contents of each row are checked, and on request bad lines are skipped with a warning.
"""

import gzip
import json
import math
import os
import warnings
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from msgspec import MsgspecError
from msgspec.json import decode as _decode_fast  # a metric row six times as fast as the standard library

Row = dict[str, Any]
OnError = Literal["raise", "skip"]


def write_atomically(path: Path, content: bytes) -> None:
    """The file holds either its old content or all of the new one, whenever the process dies."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def jsonable(value: Any) -> Any:
    """JSON has no NaN: a missing number is null, and reads back as NaN where a number is expected."""
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    if isinstance(value, dict):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(v) for v in value]
    return value


def row_line(row: Row) -> bytes:
    """A row as one line; a lone surrogate, which UTF-8 cannot hold, becomes its JSON escape."""
    return (json.dumps(jsonable(row), ensure_ascii=False, allow_nan=False) + "\n").encode(
        "utf-8", "backslashreplace"
    )


def append_row(path: Path, row: Row) -> None:
    """Append one row as one line in one write; a torn line left by a crash is closed off first."""
    append_rows(path, [row])


def append_rows(path: Path, rows: Iterable[Row]) -> None:
    """Append rows in one write, as `append_row` does with one; a crash may leave only the first of them."""
    lines = b"".join(map(row_line, rows))
    with open(path, "ab+") as file:
        if file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
            lines = b"\n" + lines
        file.write(lines)


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Append several rows that belong together, in one write: all of them or, after a crash, none."""
    kept = path.read_bytes() if path.exists() else b""
    write_atomically(path, kept + b"".join(map(row_line, rows)))


class _TornError(ValueError):
    """The last line has no end: its write was cut."""


def _decode(line: bytes) -> Any:
    try:
        return _decode_fast(line)
    except (MsgspecError, UnicodeDecodeError):
        return json.loads(line)  # the arbiter: it also reads lone surrogates, and says what is wrong


def _parse(line: bytes) -> Row | ValueError:
    """A line's row, or what is wrong with it."""
    try:
        row = _decode(line)
    except ValueError as error:
        if not line.endswith(b"\n"):
            return _TornError("cut off in the middle")
        return ValueError(f"not a JSON row ({error})")
    return row if isinstance(row, dict) else ValueError("not a JSON object")


def _existing(path: Path) -> Path:
    packed = path.with_name(path.name + ".gz")
    return packed if packed.exists() else path


def _parsed_lines(path: Path) -> Iterator[tuple[int, Row | ValueError]]:
    """Number and content of each line that is not blank; where a packed file breaks off, that as the last."""
    number = 0
    with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
        try:
            for number, line in enumerate(file, start=1):
                if not line.isspace():
                    yield number, _parse(line)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            yield number + 1, ValueError(f"the packed file breaks off or is damaged here ({error})")


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a JSONL file, or of its packed form `path`.gz, in order; a torn last line is skipped.

    Raises ValueError naming file and line where anything else does not parse, and FileNotFoundError.
    """
    path = _existing(path)
    for number, row in _parsed_lines(path):
        if isinstance(row, _TornError) and path.suffix != ".gz":  # what is packed was whole
            return
        if isinstance(row, ValueError):
            raise ValueError(f"{path}, line {number}: {row}") from row
        yield row


class SkippedLinesWarning(UserWarning):
    """Lines of a record were left out, because the caller asked for the rest."""


def read_checked_rows(
    path: Path, check: Callable[[Row], Row], *, on_error: OnError = "raise"
) -> Iterator[Row]:
    """The rows of a finished record as `check` returns them; it raises ValueError for a row it refuses.

    Raises ValueError naming file and line for whatever is wrong, a torn last line included. With
    on_error="skip" such lines are left out, and one SkippedLinesWarning says which and why.
    """
    path, skipped, number = _existing(path), [], 0
    for number, row in _parsed_lines(path):
        try:
            if isinstance(row, ValueError):
                raise row
            checked = check(row)
        except ValueError as problem:
            if on_error == "raise":
                hint = 'on_error="skip" reads the rest'
                raise ValueError(f"{path}, line {number}: {problem} ({hint})") from problem
            skipped.append(f"line {number}: {problem}")
        else:
            yield checked
    if skipped:
        shown = "; ".join(skipped[:5]) + ("; ..." if len(skipped) > 5 else "")
        message = f"{path}: left out {len(skipped)} of {number} lines: {shown}"
        warnings.warn(message, SkippedLinesWarning, stacklevel=2)


def _number(row: Row, name: str) -> float:
    value = row.get(name)
    if value is None:
        return math.nan
    if isinstance(value, bool) or not (isinstance(value, int | float) or value in ("inf", "-inf")):
        raise ValueError(f"{name!r} is not a number: {value!r:.60}")
    return float(value)


def read_columns(
    path: Path, columns: Sequence[str], *, on_error: OnError = "raise"
) -> dict[str, Float[np.ndarray, " rows"]]:
    """Some numbers of every row as arrays: for files too long to be held as rows (a million take seconds).

    NaN where a row has null or nothing. Raises LookupError for a column that no row has, and ValueError as
    `read_checked_rows` does, also for a value that is no number.
    """
    found = {name: array("d") for name in columns}
    seen: set[str] = set()

    def collect(row: Row) -> Row:
        values = [_number(row, name) for name in columns]
        for name, value in zip(columns, values, strict=True):
            found[name].append(value)
        seen.update(row)
        return row

    for _ in read_checked_rows(path, collect, on_error=on_error):
        pass
    missing = sorted(set(columns) - seen)
    if missing:
        raise LookupError(f"{path}: no row has {', '.join(map(repr, missing))}")
    return {name: np.array(values) for name, values in found.items()}


def keep_rows(path: Path, last_step: int) -> None:
    """Drop the rows after `last_step`, atomically: a run resumed there writes them anew."""
    if path.exists():
        kept = (row for row in read_rows(path) if row["step"] <= last_step)
        write_atomically(path, b"".join(map(row_line, kept)))
