"""The child's side of grading a notebook: it runs the learner's cells, then calls the learner's functions.

Nothing here decides whether an answer is right: arguments come in as JSON and results go out as JSON, to a
parent that the learner's code cannot reach. After a cell that fails or never ends, the next one still runs.

Messages are one JSON text each. To the child: [name, null] for a value, [name, [arguments]] for a call. From
it: ["pid", its id] before it runs any cell, ["ready", [failed cells]] after the last, then for each request
["value", x], ["missing", ""], ["unwritten", why] or ["mistake", why]. In place of a function comes whether it
is the kit's own, because its source is here; a notebook that edits the library in this process can deny it.
"""

import contextlib
import json
import os
import re
import signal
import sys
import tempfile
from multiprocessing.connection import Connection
from typing import Any

import nbformat
from IPython.core.interactiveshell import InteractiveShell
from platformdirs import user_cache_dir

from igrpo_kit.classroom import _outside_writes
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


def _reply(names: dict[str, Any], name: str, arguments: Any, seconds: float) -> str:
    if name not in names:
        return json.dumps(["missing", ""])
    try:
        with _limit(seconds):
            value = names[name]
            verify = EXERCISES[name.removeprefix("my_")].verify
            if isinstance(verify, FunctionCheck):
                if arguments is None:
                    return json.dumps(["value", is_the_kits(value, verify.reference)])
                value = verify.probed(value)(*decode(arguments))
            return json.dumps(["value", encode(value)])
    except _TooLong:
        why = ["mistake", f"no answer after {seconds:g} s: is there a loop that never ends?"]
    except NotWritten as error:
        why = ["unwritten", str(error)]
    except Mistake as error:
        why = ["mistake", str(error)]
    except Exception as error:  # such as a list that contains itself
        why = ["mistake", f"the result cannot be read: {type(error).__name__}"]
    return json.dumps(why)


def _limit_resources(megabytes: int) -> None:
    wanted = {
        resource.RLIMIT_AS: megabytes << 20,
        resource.RLIMIT_FSIZE: 1 << 30,  # bytes of one file
        resource.RLIMIT_NPROC: 4096,  # of all the user's processes together; root has no limit
    }
    for kind, most in wanted.items():
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))


def _close_all_but(*connections: Connection) -> None:
    """Lead every other descriptor nowhere.

    Among them are pipes of `multiprocessing` that all submissions share. They stay open, on the null device,
    because `multiprocessing` still uses their numbers.
    """
    keep = {connection.fileno() for connection in connections}
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in {0, 1, 2, *map(int, os.listdir("/dev/fd"))} - keep - {nowhere}:
        os.dup2(nowhere, descriptor, inheritable=descriptor < 3)


def _leave_to_a_child(connection: Connection) -> None:
    """Go on in a child process, so that a learner who ends the parent process ends nothing that is shared."""
    child = os.fork()
    if child:
        connection.close()
        os.waitpid(child, 0)
        os._exit(0)


def _keep_caches_in(folder: str) -> None:
    for name in ("TMPDIR", "IPYTHONDIR", "MPLCONFIGDIR"):
        os.environ[name] = folder
    tempfile.tempdir = None  # found anew, from TMPDIR
    sys.dont_write_bytecode = True


def _tell(writes: Connection, attempt: str) -> None:
    os.write(writes.fileno(), attempt.replace("\n", " ").encode("utf-8", "backslashreplace")[:1000] + b"\n")


def serve(
    connection: Connection, writes: Connection, path: str, folder: str, seconds: float, megabytes: int
) -> None:
    """Run the notebook in `folder`, then answer requests until the parent hangs up.

    What the notebook does to files elsewhere goes to `writes`, a line each.
    """
    _close_all_but(connection, writes)
    _leave_to_a_child(connection)
    os.setsid()  # so that whatever the notebook starts can be ended with it
    os.chdir(folder)
    _limit_resources(megabytes)
    _keep_caches_in(folder)
    connection.send_bytes(json.dumps(["pid", str(os.getpid())]).encode())
    os.set_blocking(writes.fileno(), False)
    _outside_writes.watch([folder, user_cache_dir(), "/proc/self"], lambda attempt: _tell(writes, attempt))
    names, failed = _run_cells(path, seconds)
    connection.send_bytes(json.dumps(["ready", failed]).encode())
    with contextlib.suppress(EOFError):
        while True:
            name, arguments = json.loads(connection.recv_bytes())
            connection.send_bytes(_reply(names, name, arguments, seconds).encode())
