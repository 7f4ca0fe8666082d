"""Checks that name the mistake: `check("group_advantages", my_group_advantages)`.

`use` hands a learner's function on to later cells once it passes; `scoreboard` ends a lesson.
"""

import difflib
import html
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from igrpo_kit.classroom.answers import Mistake, is_the_kits, within
from igrpo_kit.classroom.exercise import KITS_OWN, FunctionCheck, Result, judge
from igrpo_kit.classroom.exercises import EXERCISES
from igrpo_kit.classroom.student import solution

SECONDS = 10.0
"""the time an answer may take"""

TRIES = 3
"""wrong answers after which a check shows the solution, folded away"""

_latest: dict[str, Result] = {}
"""exercise -> what its last check in this process said"""
_wrong: Counter[str] = Counter()
"""exercise -> its wrong answers in this process"""


def check(name: str, answer: Any) -> Result:
    """Judge an answer: passed, not yet right (with the likely mistake), or not written yet.

    From the third wrong answer on, the result also carries the solution; `solution(name)` gives it on demand.

    Raises LookupError, with the nearest names, for a name that no exercise has; nothing that the answer does
    is raised.
    """
    if name not in EXERCISES:
        near = difflib.get_close_matches(name, EXERCISES)
        raise LookupError(f"no exercise {name!r}" + (f"; did you mean {' or '.join(near)}?" if near else ""))
    exercise = EXERCISES[name]

    def verdict() -> Result:
        verify = exercise.verify
        if not isinstance(verify, FunctionCheck) or answer is None or answer is ...:
            return judge(exercise, answer)
        result = judge(exercise, verify.probed(answer))
        own = result and is_the_kits(answer, verify.reference)
        return replace(result, hint=KITS_OWN) if own else result

    try:
        result = within(SECONDS, verdict)
    except Mistake as mistake:
        result = Result.failed(name, mistake)
    if result.status == "not yet right":
        _wrong[name] += 1
        if _wrong[name] >= TRIES:
            result = replace(result, solution=solution(name))
    _latest[name] = result
    return result


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


@dataclass(frozen=True)
class Scoreboard:
    """The exercises of a lesson and where they stand; a notebook shows a line for each."""

    results: Sequence[Result]

    def __repr__(self) -> str:
        open_ones = [result.name for result in self.results if not result]
        passed = len(self.results) - len(open_ones)
        return f"{passed} of {len(self.results)} passed" + (f", next: {open_ones[0]}" if open_ones else "")

    def _repr_html_(self) -> str:
        rows = "".join(result._repr_html_() for result in self.results)
        return f'<div><p role="status"><b>{html.escape(repr(self))}</b></p>{rows}</div>'


def scoreboard(lesson: str) -> Scoreboard:
    """How many exercises of a lesson ("04") passed their last check in this notebook, and which is next.

    Raises LookupError for a lesson without exercises.
    """
    names = [exercise.name for exercise in EXERCISES.values() if exercise.lesson == lesson]
    if not names:
        known = sorted({exercise.lesson for exercise in EXERCISES.values()})
        raise LookupError(f"lesson {lesson!r} has no exercise; those that have: {', '.join(known)}")
    return Scoreboard([_latest.get(name, Result(name, "not written yet", "")) for name in names])
