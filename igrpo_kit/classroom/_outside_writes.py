"""What a learner's code creates, changes or deletes outside its folder, seen through Python's audit events.

An event comes before the attempt, so an attempt that fails is told as well. Not seen: what a started process
or compiled code does (`torch.save` opens its file in C++). This is for accidents; who wants to can evade it.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

_MOST = 50
_OPENED_TO_WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_EVENTS = {  # audit event -> what it does, and which arguments are the paths
    "open": ("change", [0]),
    "os.chmod": ("change", [0]),
    "os.chown": ("change", [0]),
    "os.link": ("create", [1]),
    "os.mkdir": ("create", [0]),
    "os.remove": ("delete", [0]),
    "os.rename": ("rename", [0, 1]),
    "os.rmdir": ("delete", [0]),
    "os.symlink": ("create", [1]),
    "os.truncate": ("change", [0]),
    "os.utime": ("change", [0]),
    "shutil.rmtree": ("delete", [0]),
    "sqlite3.connect": ("change", [0]),
}


def attempts(event: str, arguments: Sequence[Any], allowed: Sequence[str]) -> list[str]:
    """What an audit event is about to do outside the `allowed` folders: "create /a", "delete /b"."""
    if event not in _EVENTS or (event == "open" and not arguments[2] & _OPENED_TO_WRITE):
        return []
    verb, places = _EVENTS[event]
    found = []
    for argument in (arguments[i] for i in places):
        if not isinstance(argument, str | bytes | os.PathLike):  # an open file's number
            continue
        given = os.path.abspath(os.fsdecode(argument))
        # A change goes through a link; the other three concern the link itself.
        parent, name = os.path.split(given)
        path = os.path.realpath(given) if verb == "change" else os.path.join(os.path.realpath(parent), name)
        exists = os.path.lexists(path)
        if (verb, exists) in {("create", True), ("delete", False)}:  # such as makedirs(exist_ok=True)
            continue
        if path != os.devnull and not any(path == a or path.startswith(f"{a}{os.sep}") for a in allowed):
            found.append(f"{verb if exists or verb != 'change' else 'create'} {path}")
    return found


def watch(allowed: Sequence[str], tell: Callable[[str], None]) -> None:
    """Call `tell` once for each attempt outside the `allowed` folders, until this process ends."""
    allowed, told = [os.path.realpath(folder) for folder in allowed], set[str]()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _EVENTS:
            with contextlib.suppress(
                OSError, TypeError, ValueError
            ):  # then the attempt itself fails, or no one listens
                for attempt in attempts(event, arguments, allowed):
                    if attempt not in told and len(told) < _MOST:
                        told.add(attempt)
                        tell(attempt)

    sys.addaudithook(hook)
