"""Grading a class: `igrpo grade submissions/ --out grades.csv`.

**This runs the learners' code.** Each notebook has a process of its own, with limits of time and memory and
without this process's standard streams, but it can still read and write your files, start processes and use
the network. Python's writes outside its folder are told, not prevented. Grade strangers' notebooks in a
container, or as a user without rights or data of value.
`notebooks/teaching_guide.md` tabulates what each limit does.

The checks run here, in the teacher's process, and send arguments to the learner's functions; a notebook that
replaces `check`, or edits the library in its own process, changes nothing about its grade.

POSIX only: the limits are those of `setrlimit`, and processes are forked and ended as groups.
"""

import contextlib
import csv
import json
import multiprocessing
import os
import re
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import nbformat
from tqdm.auto import tqdm

from igrpo_kit.classroom._grade_worker import serve
from igrpo_kit.classroom.answers import Mistake, NotWritten
from igrpo_kit.classroom.exercise import KITS_OWN, Exercise, FunctionCheck, Result, judge
from igrpo_kit.classroom.exercises import EXERCISES
from igrpo_kit.classroom.transport import decode, encode

# A server that has loaded torch once and forks a child for each notebook: a second instead of five.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["igrpo_kit.classroom._grade_worker"])
_MOST_BYTES = 1 << 24
_MOST_CHARACTERS = 1000
_MOST_WRITES = 3
_ATTEMPT = re.compile(r"^(?:create|change|delete|rename) /.*$", re.MULTILINE)
_MESSAGE_SECONDS = 10.0
"""from the first byte of a message to its last"""
_ENDED = "the notebook ended its own process, or closed its connection, or ran out of memory"
_FORGED = "the notebook wrote into its grader's pipe"


@dataclass(frozen=True)
class Limits:
    """What a submission may use."""

    cell_seconds: float = 60.0
    """per cell, and per call of an answer"""
    notebook_seconds: float = 600.0
    megabytes: int = 8192
    """of address space; importing torch takes about half of it"""


@dataclass(frozen=True)
class ExerciseGrade:
    """What one exercise of one submission earned."""

    student: str
    notebook: str
    exercise: str
    points: int
    of: int
    status: str
    hint: str
    hours_late: float = 0.0
    """how long after the deadline the file was last changed"""


COLUMNS = tuple(field.name for field in fields(ExerciseGrade))


class GradingError(Exception):
    """A submission that could not be run at all."""


class _Submission:
    """A learner's notebook, executed in a process of its own, that answers calls."""

    def __init__(self, path: Path, limits: Limits, folder: str) -> None:
        self.limits, self.deadline = limits, time.monotonic() + limits.notebook_seconds
        self.connection, theirs = _PROCESSES.Pipe()
        self.writes, told = _PROCESSES.Pipe(duplex=False)
        self._sent = theirs, told
        arguments = (theirs, told, str(path.resolve()), folder, limits.cell_seconds, limits.megabytes)
        self.process = _PROCESSES.Process(target=serve, args=arguments, daemon=True)
        self.pid: int | None = None

    def run(self) -> list[str]:
        """Execute its cells; what the failed ones said. Raises GradingError."""
        try:
            self.process.start()
        except (OSError, EOFError) as error:
            raise GradingError(f"no process can be started: {error}") from error
        finally:
            for end in self._sent:
                end.close()
        self.pid = int(self._receive("pid")[1])
        failed: list[str] = self._receive("ready")[1]
        return failed

    def ask(self, name: str, arguments: Sequence[Any] | None) -> Any:
        """The value of a name, or of a call of it. Raises Mistake, NotWritten or GradingError."""
        request = json.dumps([name, None if arguments is None else [encode(a) for a in arguments]])
        try:
            self.connection.send_bytes(request.encode())
        except OSError:
            raise GradingError(_ENDED) from None
        status, content = self._receive("value", "missing", "unwritten", "mistake")
        if status == "missing":
            raise NotWritten(f"no {name} in the notebook")
        if status == "unwritten":
            raise NotWritten(content)
        if status == "mistake":
            raise Mistake(content)
        try:
            return decode(content)
        except Exception as error:  # whatever a forged message can make it raise
            raise Mistake(f"the result cannot be read: {error}") from error

    def _receive(self, *statuses: str) -> tuple[str, Any]:
        """The child's next message. Raises GradingError for none in time, and for one that is no message."""
        if not self.connection.poll(max(0.0, self.deadline - time.monotonic())):
            raise GradingError(f"no end after {self.limits.notebook_seconds:g} s")
        impatience = threading.Timer(_MESSAGE_SECONDS, self._hang_up)
        impatience.start()
        try:
            # Never recv(): it would unpickle what the learner's code may have written to the pipe itself.
            message = self.connection.recv_bytes(_MOST_BYTES)
        except (EOFError, ConnectionError):
            raise GradingError(_ENDED) from None
        except OSError:
            raise GradingError(_FORGED) from None
        finally:
            impatience.cancel()
            impatience.join()
        return _checked(message, statuses)

    def _hang_up(self) -> None:
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(self.connection.fileno())) as ours:
            ours.shutdown(socket.SHUT_RDWR)

    def close(self) -> list[str]:
        """End the process and all that it started; what it did to files outside its folder."""
        if self.pid:
            with contextlib.suppress(
                ProcessLookupError, PermissionError
            ):  # macOS: not permitted once it is dead
                os.killpg(self.pid, signal.SIGKILL)
        if self.process.pid:
            self.process.kill()
            self.process.join()
        self.connection.close()
        os.set_blocking(self.writes.fileno(), False)  # a process that escaped may hold the other end
        told = b""
        with contextlib.suppress(BlockingIOError):
            told = os.read(self.writes.fileno(), 1 << 16)
        self.writes.close()
        return list(dict.fromkeys(_ATTEMPT.findall(told.decode(errors="replace"))))


def _checked(message: bytes, statuses: Sequence[str]) -> tuple[str, Any]:
    try:
        status, content = json.loads(message)
    except (ValueError, TypeError, RecursionError):
        status, content = "", ""
    texts = content if status == "ready" and isinstance(content, list) else [content]
    if status not in statuses or (status != "value" and not all(isinstance(text, str) for text in texts)):
        raise GradingError(_FORGED)
    return status, texts if status == "ready" else content


def _plain(text: str) -> str:
    """A learner's text without what a terminal obeys or UTF-8 cannot hold, and not endless."""
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text[:_MOST_CHARACTERS])


def _lesson_of(path: Path) -> str:
    """The lesson's two digits, from the copy's metadata or its file name. Raises GradingError."""
    if not path.is_file():  # reading a named pipe would never end
        raise GradingError("not a file")
    try:
        metadata = nbformat.read(path, as_version=4).metadata
    except Exception as error:
        raise GradingError(f"not a readable notebook: {type(error).__name__}") from error
    own = metadata.get("igrpo_kit")
    lesson = str(own.get("lesson", path.stem) if isinstance(own, dict) else path.stem)[:2]
    if lesson not in {e.lesson for e in EXERCISES.values()}:
        raise GradingError("not the copy of a lesson: its metadata and its name say none with exercises")
    return lesson


def _judge_in(submission: _Submission, exercise: Exercise) -> Result:
    name, is_function = f"my_{exercise.name}", isinstance(exercise.verify, FunctionCheck)
    try:
        if is_function:
            answer: Any = lambda *arguments: submission.ask(name, arguments)  # noqa: E731
        else:
            answer = submission.ask(name, None)
        result = judge(exercise, answer)
        own = result and is_function and submission.ask(name, None) is True
        return replace(result, hint=KITS_OWN) if own else result
    except GradingError:
        raise
    except Mistake as mistake:
        return Result.failed(exercise.name, mistake)
    except Exception as error:  # such as an integer too large for a float
        return Result.failed(exercise.name, Mistake(f"the answer cannot be compared: {error}"))


def _grade(
    submission: _Submission, failed: Sequence[str], exercise: Exercise, student: str, notebook: str
) -> ExerciseGrade:
    result, most = _judge_in(submission, exercise), exercise.points
    hints, status = [result.hint], str(result.status)
    if status == "not written yet":  # mostly because a cell failed
        own = [f for f in failed if "SyntaxError" in f and f"my_{exercise.name}" in f]
        status = "syntax error" if own else status
        hints = own or [*hints, *failed[:2]]
    hint = _plain("; ".join(filter(None, hints)))
    return ExerciseGrade(student, notebook, exercise.name, most if result else 0, most, status, hint)


def _note(attempts: Sequence[str]) -> str:
    rest = len(attempts) - _MOST_WRITES
    more = f", and {rest} more" if rest > 0 else ""
    return _plain(f"outside its folder it tried to {', '.join(attempts[:_MOST_WRITES])}{more}")


def grade_notebook(path: str | Path, student: str, limits: Limits | None = None) -> list[ExerciseGrade]:
    """Every exercise of one submission, graded. What goes wrong in it is in the grades, never raised.

    A row of status "note", without an exercise and points, says what it did to files outside its folder.

    Args:
        path: the student copy handed in; its metadata names the lesson.
        student: the name to put in the grades.
        limits: seconds, memory and output allowed; the defaults of `Limits` if not given.
    """
    path = Path(path)
    student, notebook = _plain(student), _plain(path.name)
    try:
        lesson = _lesson_of(path)
    except GradingError as error:
        return [ExerciseGrade(student, notebook, "", 0, 0, "not graded", str(error))]
    exercises = [e for e in EXERCISES.values() if e.lesson == lesson]
    grades: list[ExerciseGrade] = []
    # What a notebook leaves there may resist its removal.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        submission = _Submission(path, limits or Limits(), folder)
        try:
            failed = submission.run()
            for exercise in exercises:
                grades.append(_grade(submission, failed, exercise, student, notebook))
        except GradingError as error:
            rest = exercises[len(grades) :]
            grades += [
                ExerciseGrade(student, notebook, e.name, 0, e.points, "not graded", str(error)) for e in rest
            ]
        finally:
            attempts = submission.close()
    if attempts:
        grades.append(ExerciseGrade(student, notebook, "", 0, 0, "note", _note(attempts)))
    return grades


def grade_folder(
    submissions: str | Path, limits: Limits | None = None, *, due: datetime | None = None
) -> list[ExerciseGrade]:
    """Every notebook below `submissions`, a folder per student or one file each, graded side by side.

    Args:
        submissions: the folder.
        limits: as for `grade_notebook`, for each notebook.
        due: the deadline; a file that was changed later is late. Copying can change that time.

    Raises:
        ValueError: there is no notebook.
    """
    submissions = Path(submissions)
    paths = sorted(p for p in submissions.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
    if not paths:
        raise ValueError(f"{submissions}: holds no notebook")
    students = [str(p.relative_to(submissions).parent) if p.parent != submissions else p.stem for p in paths]

    def graded(path: Path, student: str) -> list[ExerciseGrade]:
        late = max(0.0, (path.stat().st_mtime - due.timestamp()) / 3600) if due and path.exists() else 0.0
        return [replace(grade, hours_late=round(late, 2)) for grade in grade_notebook(path, student, limits)]

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        done = pool.map(graded, paths, students)
        return [grade for grades in tqdm(done, total=len(paths), unit="notebook") for grade in grades]


def write_grades(path: str | Path, grades: Sequence[ExerciseGrade]) -> None:
    """One CSV row per exercise of a submission."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(map(plain_cell, astuple(grade)) for grade in grades)


def points_table(grades: Sequence[ExerciseGrade]) -> str:
    """Points per student, one line each, with how many exercises could not be graded, and the notes."""
    lines = []
    for student in dict.fromkeys(grade.student for grade in grades):
        own = [grade for grade in grades if grade.student == student]
        line = f"{sum(g.points for g in own):4d} of {sum(g.of for g in own):3d}   {student}"
        stuck = sum(g.status == "not graded" for g in own)
        lines.append(line + (f"   ({stuck} not graded, see the hints)" if stuck else ""))
        lines += [f"{'':15}{g.notebook}: {g.hint}" for g in own if g.status == "note"]
    return "\n".join(lines)


def plain_cell(value: Any) -> Any:
    """A value for a cell that no spreadsheet runs: a text that begins like a formula gets an apostrophe."""
    formula = isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))
    return f"'{value}" if formula else value
