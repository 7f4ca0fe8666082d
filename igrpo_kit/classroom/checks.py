"""Checks that name the mistake: `check("group_advantages", my_group_advantages)`."""

import difflib
from typing import Any

import numpy as np

from igrpo_kit.classroom.answers import Mistake, call, within
from igrpo_kit.classroom.exercise import Exercise, FunctionCheck, Result, judge
from igrpo_kit.classroom.exercises import EXERCISES

SECONDS = 10.0
"""Time a check gives an answer."""


def check(name: str, answer: Any) -> Result:
    """Judge an answer: passed, not yet right (with the likely mistake), or not written yet.

    Raises LookupError for a name that no exercise has; nothing that the answer does is raised.
    """
    exercise = find(name)

    def verdict() -> Result:
        wanted = answer
        if isinstance(exercise.verify, FunctionCheck) and answer is not None and answer is not ...:
            wanted = lambda *arguments: call(answer, arguments)  # noqa: E731
        return judge(exercise, wanted, np.random.default_rng())

    try:
        return within(SECONDS, verdict)
    except Mistake as error:
        return Result(name, "not yet right", str(error))


def find(name: str) -> Exercise:
    """The exercise of that name. Raises LookupError, with the nearest names."""
    if name not in EXERCISES:
        near = difflib.get_close_matches(name, EXERCISES)
        raise LookupError(f"no exercise {name!r}" + (f"; did you mean {' or '.join(near)}?" if near else ""))
    return EXERCISES[name]
