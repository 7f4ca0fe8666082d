"""What an exercise is, and how an answer to it is judged.

An answer is called on hand-typed and on random arguments. A wrong one is compared with the wrong versions
that an exercise lists: if it agrees with one of them on every case, the learner reads that one's hint.
"""

import html
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal

import numpy as np

from igrpo_kit.classroom.answers import Mistake, NotWritten, call, kind, listed, mismatch, shown

Arguments = tuple[Any, ...]
Status = Literal["passed", "not yet right", "not written yet"]


@dataclass(frozen=True, kw_only=True)
class FunctionCheck:
    """The answer is a function that must do what `reference` does."""

    reference: Callable[..., Any]
    typed: Sequence[tuple[Arguments, Any]]
    """arguments and the right answer for them, typed by hand"""
    random: Callable[[np.random.Generator], Sequence[Arguments]] = lambda rng: []
    """more arguments; the reference gives the right answer"""
    mistakes: Sequence[Callable[..., Any]]
    """wrong versions, as learners write them; the docstring of each is its hint"""
    tolerance: float = 1e-6
    probe: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda answer: answer
    """what is called in place of a function, with plain data: it builds what the function needs, such as a
    sampler, and returns what is compared, such as a loss and its gradient"""

    def probed(self, answer: Any) -> Callable[..., Any]:
        """A learner's function as it is called: on copies of the arguments, its errors as a Mistake."""
        probe = self.probe(answer) if callable(answer) else answer
        return lambda *arguments: call(probe, arguments)

    def __call__(self, answer: Callable[..., Any], rng: np.random.Generator) -> None:
        """Raise Mistake unless the answer, a `probed` function, is right on every case."""
        reference = self.probe(self.reference)
        cases = [(arguments, expected) for arguments, expected in self.typed]
        cases += [(arguments, reference(*arguments)) for arguments in self.random(rng)]
        given = [answer(*arguments) for arguments, _ in cases]
        wrong = [i for i, (_, right) in enumerate(cases) if mismatch(given[i], right, self.tolerance)]
        if not wrong:
            return
        for version in self.mistakes:
            outcomes = [_outcome(self.probe(version), arguments) for arguments, _ in cases]
            if not mismatch(given, outcomes, self.tolerance):
                raise Mistake(inspect.cleandoc(version.__doc__ or ""))
        arguments, right = cases[wrong[0]]
        raise Mistake(f"for {listed(arguments)} it {mismatch(given[wrong[0]], right, self.tolerance)}")


def _outcome(version: Callable[..., Any], arguments: Arguments) -> Any:
    try:
        return version(*arguments)
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError):
        return None  # a wrong version may not work on every case; no answer agrees with that


@dataclass(frozen=True, kw_only=True)
class ValueCheck:
    """The answer is a number or a word."""

    right: Any
    mistakes: Mapping[Any, str]
    """wrong value -> its hint"""
    otherwise: str
    """the hint for any other value"""
    tolerance: float = 1e-6

    def __call__(self, answer: Any, rng: np.random.Generator) -> None:
        """Raise Mistake unless the answer is right."""
        if isinstance(answer, str) and isinstance(self.right, str):
            answer = answer.strip().lower()
        if not mismatch(answer, self.right, self.tolerance):
            return
        if kind(answer) != kind(self.right):
            raise Mistake(f"{kind(self.right)} is wanted, this is {kind(answer)}: {shown(answer)}")
        for value, hint in self.mistakes.items():
            if not mismatch(answer, value, self.tolerance):
                raise Mistake(hint)
        raise Mistake(self.otherwise)


@dataclass(frozen=True)
class Exercise:
    """One exercise of a lesson. Its answer is called `my_` + name in the notebook."""

    name: str
    lesson: str
    """two digits, "04" """
    kind: Literal["code", "prediction", "bug"]
    _: KW_ONLY
    difficulty: Literal[1, 2, 3]
    minutes: int
    verify: FunctionCheck | ValueCheck

    @property
    def points(self) -> int:
        """What a right answer earns: its difficulty."""
        return self.difficulty


_SHOWN = {
    "passed": ("✓", "#009E73"), "not yet right": ("✗", "#D55E00"), "not written yet": ("…", "#777777")
}  # fmt: skip


@dataclass(frozen=True)
class Result:
    """What a check says; a notebook shows it below the cell."""

    name: str
    status: Status
    hint: str
    solution: str = ""
    """source to be shown folded away, once there have been several wrong answers"""

    @classmethod
    def failed(cls, name: str, mistake: Mistake) -> "Result":
        """The result for an answer that is wrong or not written."""
        status: Status = "not written yet" if isinstance(mistake, NotWritten) else "not yet right"
        return cls(name, status, "" if str(mistake) == status else str(mistake))

    def __bool__(self) -> bool:
        return self.status == "passed"

    def __repr__(self) -> str:
        mark, _ = _SHOWN[self.status]
        return f"{mark} {self.name}: {self.status}" + (f". {self.hint}" if self.hint else "")

    def _repr_html_(self) -> str:
        _, color = _SHOWN[self.status]
        style = f"border-left: 4px solid {color}; padding: 0.3em 0.8em"
        folded = f"<details><summary>Solution</summary><pre>{html.escape(self.solution)}</pre></details>"
        shown = html.escape(repr(self)) + (folded if self.solution else "")
        return f'<div role="status" style="{style}">{shown}</div>'


def judge(exercise: Exercise, answer: Any, rng: np.random.Generator) -> Result:
    """The verdict on an answer; a function given as answer raises Mistake itself if its call fails."""
    try:
        if answer is None or answer is ...:
            raise NotWritten("")
        exercise.verify(answer, rng)
    except Mistake as mistake:
        return Result.failed(exercise.name, mistake)
    return Result(exercise.name, "passed", "")
