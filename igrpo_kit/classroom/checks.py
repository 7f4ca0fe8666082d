"""Checks that name the mistake: `check("group_advantages", my_group_advantages)`.

`use` hands a learner's function on to later cells once it passes.
"""

import difflib
from typing import Any

import numpy as np

from igrpo_kit.classroom.answers import Mistake, within
from igrpo_kit.classroom.exercise import FunctionCheck, Result, judge
from igrpo_kit.classroom.exercises import EXERCISES

SECONDS = 10.0
"""the time an answer may take"""


def check(name: str, answer: Any) -> Result:
    """Judge an answer: passed, not yet right (with the likely mistake), or not written yet.

    Raises LookupError, with the nearest names, for a name that no exercise has; nothing that the answer does
    is raised.
    """
    if name not in EXERCISES:
        near = difflib.get_close_matches(name, EXERCISES)
        raise LookupError(f"no exercise {name!r}" + (f"; did you mean {' or '.join(near)}?" if near else ""))
    exercise = EXERCISES[name]

    def verdict() -> Result:
        wanted = answer
        if isinstance(exercise.verify, FunctionCheck) and answer is not None and answer is not ...:
            wanted = exercise.verify.probed(answer)
        return judge(exercise, wanted, np.random.default_rng())

    try:
        return within(SECONDS, verdict)
    except Mistake as mistake:
        return Result.failed(name, mistake)


def use(name: str, answer: Any) -> Any:
    """The learner's function if it passes its check, else the kit's own; prints which of them it is.

    Later cells of a lesson go on with it, so that what a learner wrote does the work.

    Raises LookupError as `check`, and ValueError for an exercise whose answer is no function.
    """
    result = check(name, answer)
    verify = EXERCISES[name].verify
    if not isinstance(verify, FunctionCheck):
        raise ValueError(f"{name!r}: its answer is a value, there is nothing to call")
    print(f"{name}: " + ("yours, from here on" if result else f"the kit's, as yours is {result.status}"))
    return answer if result else verify.reference
