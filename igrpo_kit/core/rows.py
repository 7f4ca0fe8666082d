"""Row files: JSON Lines that survive a crash, and files that are written completely or not at all.

Each append is a single write of whole rows. A process that dies during the write leaves at most an incomplete
last line, which `read_rows` skips, since its writer replaces it. Any other line that does not parse is an
error that names file and line. For a finished record, `read_checked_rows` and `read_columns` are stricter: an
incomplete line is an error too, the contents of each row are checked, and on request bad lines are skipped
with a warning.
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
from msgspec.json import decode as _decode_fast  # six times as fast as json on a metric row

Row = dict[str, Any]
OnError = Literal["raise", "skip"]


def write_atomically(path: str | Path, content: bytes) -> None:
    """Write a file so that, after a crash, it holds either its old content or all of the new content."""
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def jsonable(value: Any) -> Any:
    """A copy that JSON can hold: NaN becomes null (read back as NaN), an infinity becomes a string."""
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    if isinstance(value, dict):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(v) for v in value]
    return value


def row_line(row: Row) -> bytes:
    """A row as one line; a lone surrogate, which UTF-8 cannot encode, becomes its JSON escape."""
    return (json.dumps(jsonable(row), ensure_ascii=False, allow_nan=False) + "\n").encode(
        "utf-8", "backslashreplace"
    )


def append_row(path: str | Path, row: Row) -> None:
    """Append one row as one line in a single write; an incomplete line left by a crash is ended first."""
    append_rows(path, [row])


def append_rows(path: str | Path, rows: Iterable[Row]) -> None:
    """Append rows in a single write, like `append_row`; after a crash, only the first ones may be there."""
    lines = b"".join(map(row_line, rows))
    with open(path, "ab+") as file:
        if file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
            lines = b"\n" + lines
        file.write(lines)


def write_rows(path: str | Path, rows: Sequence[Row]) -> None:
    """Append rows that belong together: after a crash, either all or none of them are in the file."""
    path = Path(path)
    kept = path.read_bytes() if path.exists() else b""
    write_atomically(path, kept + b"".join(map(row_line, rows)))


class _TornError(ValueError):
    """The last line has no end: its write was interrupted."""


def _decode(line: bytes) -> Any:
    try:
        return _decode_fast(line)
    except (MsgspecError, UnicodeDecodeError):
        return json.loads(line)  # also reads lone surrogates, and has the better error message


def _parse(line: bytes) -> Row | ValueError:
    """The row on a line, or the error."""
    try:
        row = _decode(line)
    except ValueError as error:
        if not line.endswith(b"\n"):
            return _TornError("cut off in the middle")
        return ValueError(f"not a JSON row ({error})")
    return row if isinstance(row, dict) else ValueError("not a JSON object")


def _existing(path: str | Path) -> Path:
    path = Path(path)
    packed = path.with_name(path.name + ".gz")
    return packed if packed.exists() else path


def _parsed_lines(path: Path) -> Iterator[tuple[int, Row | ValueError]]:
    """Number and content of each non-blank line; if a packed file is damaged, the error as the last item."""
    number = 0
    with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
        try:
            for number, line in enumerate(file, start=1):
                if not line.isspace():
                    yield number, _parse(line)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            yield number + 1, ValueError(f"the packed file breaks off or is damaged here ({error})")


def read_rows(path: str | Path) -> Iterator[Row]:
    """The rows of a JSONL file, or of its packed form `path`.gz, in order; skips an incomplete last line.

    Raises:
        ValueError: another line does not parse (the message names file and line).
        FileNotFoundError: there is no such file.
    """
    path = _existing(path)
    for number, row in _parsed_lines(path):
        if isinstance(row, _TornError) and path.suffix != ".gz":  # a packed file was complete
            return
        if isinstance(row, ValueError):
            raise ValueError(f"{path}, line {number}: {row}") from row
        yield row


class SkippedLinesWarning(UserWarning):
    """Some lines of a record were skipped, as the caller requested."""


def read_checked_rows(
    path: str | Path, check: Callable[[Row], Row], *, on_error: OnError = "raise"
) -> Iterator[Row]:
    """The rows of a finished record, as `check` returns them.

    Args:
        path: JSONL file, or its packed form `path`.gz.
        check: returns the row, or raises ValueError to reject it.
        on_error: "skip" skips bad lines and lists them in one SkippedLinesWarning.

    Raises:
        ValueError: a line is bad, including an incomplete last line (the message names file and line).
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
    path: str | Path, columns: Sequence[str], *, on_error: OnError = "raise"
) -> dict[str, Float[np.ndarray, " rows"]]:
    """Numeric columns of a file that is too long to hold as rows (a million rows take seconds).

    Args:
        path: JSONL file, or its packed form `path`.gz.
        columns: names of the columns.
        on_error: as in `read_checked_rows`.

    Returns:
        One array per column, NaN where a row has null or no value.

    Raises:
        LookupError: no row has one of the columns.
        ValueError: as in `read_checked_rows`; also for a value that is not a number.
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


def keep_rows(path: str | Path, last_step: int) -> None:
    """Drop the rows after `last_step`, atomically; a run resumed there writes them again."""
    if Path(path).exists():
        kept = (row for row in read_rows(path) if row["step"] <= last_step)
        write_atomically(path, b"".join(map(row_line, kept)))
