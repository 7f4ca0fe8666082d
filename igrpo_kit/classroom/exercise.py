"""What an exercise is, and how an answer to it is judged.

An answer is called on hand-typed and on random arguments, the same ones every time. A wrong one is compared
with the wrong versions that an exercise lists: if it agrees with one of them on every case, the learner reads
that one's hint. Else `detectors` look for a slip that can happen anywhere; the last resort is the first
difference.
"""

import html
import inspect
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal

import numpy as np

from igrpo_kit.classroom.answers import Mistake, NotWritten, call, kind, listed, mismatch, shown
from igrpo_kit.classroom.detectors import (
    CHANGES,
    COMMON,
    always_the_same,
    argument_names,
    changed,
    misuses,
    moved,
    pattern,
    same_kind,
)

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
        cases = [arguments for arguments, _ in self.typed] + list(self.random(rng))
        right = [expected for _, expected in self.typed]
        right += [reference(*arguments) for arguments in cases[len(right) :]]
        given = [answer(*arguments) for arguments in cases]
        if any(self._differ(*pair) for pair in zip(given, right, strict=True)):
            raise Mistake(self._hint(answer, cases, given, right))

    def _differ(self, got: Any, expected: Any) -> str:
        return mismatch(got, expected, self.tolerance)

    def _hint(
        self,
        answer: Callable[..., Any],
        cases: Sequence[Arguments],
        given: Sequence[Any],
        right: Sequence[Any],
    ) -> str:
        """The listed mistake, two at once, another slip, or the first difference."""
        differences = ((i, self._differ(*pair)) for i, pair in enumerate(zip(given, right, strict=True)))
        first_difference = next(f"for {listed(cases[i])}: {words}" for i, words in differences if words)
        if not same_kind(given, right):
            return first_difference
        outcomes: list[tuple[str, list[Any]]] = []
        for version in self.mistakes:
            hint = inspect.cleandoc(version.__doc__ or "")
            outcomes.append((hint, [_outcome(self.probe(version), arguments) for arguments in cases]))
            if not self._differ(given, outcomes[-1][1]):
                return hint
        words = always_the_same(given, right, self.tolerance)
        if words := words or changed(given, right, CHANGES, self.tolerance):
            return _sentence(words)
        for hint, outcome in outcomes:
            if words := changed(given, outcome, COMMON, self.tolerance):
                return f"{hint} Besides, {words}."
        names = argument_names(len(cases[0]), self.probe(self.reference), self.reference)
        if words := self._ignored(answer, cases, given, names):
            return _sentence(words)
        for words, version in misuses(self.reference, names, cases[0]):
            if self._agree(given, self.probe(version), cases):
                return _sentence(words)
        if words := pattern(given, right, cases, self.tolerance):
            return _sentence(words)
        return first_difference

    def _agree(self, given: Sequence[Any], version: Callable[..., Any], cases: Sequence[Arguments]) -> bool:
        pairs = zip(given, cases, strict=True)
        return not any(self._differ(value, _outcome(version, arguments)) for value, arguments in pairs)

    def _ignored(
        self,
        answer: Callable[..., Any],
        cases: Sequence[Arguments],
        given: Sequence[Any],
        names: Sequence[str],
    ) -> str:
        """The argument on which the reference depends and the answer does not."""
        reference = self.probe(self.reference)
        for i, name in enumerate(names):
            others = [(*a[:i], moved(a[i]), *a[i + 1 :]) for a in cases]
            matters = [k for k, other in enumerate(others) if self._matters(reference, cases[k], other)]
            if matters and not any(self._differ(_outcome(answer, others[k]), given[k]) for k in matters):
                return f"your result does not depend on `{name}`"
        return ""

    def _matters(self, reference: Callable[..., Any], arguments: Arguments, other: Arguments) -> bool:
        outcome = _outcome(reference, other)
        return outcome is not None and bool(self._differ(outcome, reference(*arguments)))


def _sentence(words: str) -> str:
    return f"{words[0].upper() if words[0] != '`' else '`'}{words[1:]}."


def _outcome(version: Callable[..., Any], arguments: Arguments) -> Any:
    try:
        return version(*arguments)
    except Exception:  # a wrong version may fail in any way; no answer agrees with that
        return None


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
    def seed(self) -> int:
        """Of its random cases: a verdict can be repeated."""
        return zlib.crc32(self.name.encode())

    @property
    def points(self) -> int:
        """What a right answer earns: its difficulty."""
        return self.difficulty


_SHOWN = {
    "passed": ("✓", "#009E73"), "not yet right": ("✗", "#D55E00"), "not written yet": ("…", "#777777")
}  # fmt: skip


KITS_OWN = "This is the kit's own function, or its code"
"""said of an answer that passes; it is no less right"""


@dataclass(frozen=True)
class Result:
    """What a check says; a notebook shows it below the cell."""

    name: str
    status: Status
    hint: str
    """what is wrong; of what passed, KITS_OWN if it is"""
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


def judge(exercise: Exercise, answer: Any) -> Result:
    """The verdict on an answer; a function given as answer raises Mistake itself if its call fails."""
    try:
        if answer is None or answer is ...:
            raise NotWritten("")
        exercise.verify(answer, np.random.default_rng(exercise.seed))
    except Mistake as mistake:
        return Result.failed(exercise.name, mistake)
    return Result(exercise.name, "passed", "")
