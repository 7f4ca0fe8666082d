"""The child's side of grading a notebook: it runs the learner's cells, then calls the learner's functions.

Nothing here decides whether an answer is right: arguments come in as JSON and results go out as JSON, to a
parent that the learner's code cannot reach. After a cell that fails or never ends, the next one still runs.

Messages are one JSON text each. To the child: [name, null] for a value, [name, [arguments]] for a call. From
it: ["ready", [failed cells]], then for each request ["value", x], ["missing", ""], ["unwritten", why] or
["mistake", why]. In place of a function comes whether it is the kit's own, because its source is here; a
notebook that edits the library in this process can deny it.
"""

import contextlib
import json
import os
import re
import signal
from multiprocessing.connection import Connection
from typing import Any

import nbformat
from IPython.core.interactiveshell import InteractiveShell

from igrpo_kit.classroom.answers import Mistake, NotWritten, is_the_kits
from igrpo_kit.classroom.exercise import FunctionCheck
from igrpo_kit.classroom.exercises import EXERCISES
from igrpo_kit.classroom.transport import decode, encode

try:
    import resource
except ModuleNotFoundError:
    raise ImportError("grading notebooks works on POSIX systems only (Linux, macOS)") from None


_ANSWER = re.compile(r"^(?:def )?(my_\w+)", re.MULTILINE)


class _TooLong(BaseException):
    pass


def _alarm(signum: int, frame: Any) -> None:
    raise _TooLong


@contextlib.contextmanager
def _limit(seconds: float) -> Any:
    signal.signal(signal.SIGALRM, _alarm)
    # Repeated: a bare `except:` inside a loop can swallow one.
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _run_cells(path: str, seconds: float) -> tuple[dict[str, Any], list[str]]:
    """The names a notebook defines, and what its failed cells said."""
    shell = InteractiveShell.instance()
    failed = []
    notebook = nbformat.read(path, as_version=4)
    for i, cell in enumerate(c for c in notebook.cells if c.cell_type == "code"):
        try:
            with _limit(seconds):
                result = shell.run_cell(cell.source, silent=True)
            error = result.error_before_exec or result.error_in_exec
        except _TooLong as too_long:
            error = too_long
        if error is not None:
            late = isinstance(error, _TooLong)
            what = f"no end after {seconds:g} s" if late else f"{type(error).__name__}: {error}"
            if isinstance(error, SyntaxError):  # then none of the cell's answers exists
                what += "".join(f", so no {name}" for name in dict.fromkeys(_ANSWER.findall(cell.source)))
            failed.append(f"code cell {i + 1}: {what}")
    return shell.user_ns, failed


def _reply(names: dict[str, Any], name: str, arguments: Any, seconds: float) -> list[Any]:
    if name not in names:
        return ["missing", ""]
    try:
        with _limit(seconds):
            value = names[name]
            verify = EXERCISES[name.removeprefix("my_")].verify
            if isinstance(verify, FunctionCheck):
                if arguments is None:
                    return ["value", is_the_kits(value, verify.reference)]
                value = verify.probed(value)(*decode(arguments))
            return ["value", encode(value)]
    except _TooLong:
        return ["mistake", f"no answer after {seconds:g} s: is there a loop that never ends?"]
    except NotWritten as error:
        return ["unwritten", str(error)]
    except Mistake as error:
        return ["mistake", str(error)]


def serve(connection: Connection, path: str, folder: str, seconds: float, megabytes: int) -> None:
    """Run the notebook in `folder`, then answer requests until the parent hangs up."""
    os.setsid()  # so that whatever the notebook starts can be ended with it
    os.chdir(folder)
    resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):  # what the learner's code prints, and asks, goes nowhere
        os.dup2(nowhere, stream)
    names, failed = _run_cells(path, seconds)
    connection.send_bytes(json.dumps(["ready", failed]).encode())
    with contextlib.suppress(EOFError):
        while True:
            name, arguments = json.loads(connection.recv_bytes())
            connection.send_bytes(json.dumps(_reply(names, name, arguments, seconds)).encode())
