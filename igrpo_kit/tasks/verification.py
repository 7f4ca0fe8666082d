"""Answer checking by the source of the problem, exact wherever a program can decide.

| problems from                | source                                   | checked by                       |
|------------------------------|------------------------------------------|----------------------------------|
| `countdown_problems`, ...    | `countdown`, `countdown-max`, `addition` | `verify`, exactly: see `puzzles` |
| `cipher_problems`            | `cipher-<table>`                         | `verify`, exactly: see `cipher`  |
| `results_first_problems`     | `results-first`                          | `verify`, exactly                |
| `reasoning_gym_problems`     | `reasoning-gym/<dataset>`                | `verify`, by its own scorer      |
| `load_hub_set` (hub)         | the name of the set                      | `grading.Grader`                 |
| `load_problems` (JSONL, CSV) | as given in the file                     | whichever fits the source        |
"""

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol, runtime_checkable

from igrpo_kit.tasks import puzzles
from igrpo_kit.tasks.cipher import CIPHER_TABLES, check_cipher, cipher_source
from igrpo_kit.tasks.grading.extraction import extract_answer
from igrpo_kit.tasks.grading.grader import Grade
from igrpo_kit.tasks.problem import Problem
from igrpo_kit.tasks.puzzles import Check
from igrpo_kit.tasks.results_first import RESULTS_FIRST, check_results_first
from igrpo_kit.tasks.sets.gym import GYM_SOURCES, check_gym

_EXACT: dict[str, Callable[[str, str], Check]] = {
    "countdown": puzzles.check_countdown,
    "countdown-max": puzzles.check_countdown_max,
    "addition": puzzles.check_addition,
    **{cipher_source(table): partial(check_cipher, table=table) for table in range(CIPHER_TABLES)},
    RESULTS_FIRST: check_results_first,
}
_UNIQUE = frozenset([RESULTS_FIRST, *map(cipher_source, range(CIPHER_TABLES))])
_OPENED = re.compile(r"\\(?:boxed|fbox)\s*\{|<answer>")


def has_exact_verifier(source: str) -> bool:
    """Whether `verify` can check problems of this source; the others need a `grading.Grader`."""
    return source in _EXACT or source in GYM_SOURCES


def has_unique_answer(source: str) -> bool:
    """Whether problems of this source have one correct answer, which is written in one way.

    Then exp(log pi(answer | prompt)) is the probability of a correct completion, for a policy that writes the
    answer alone. Countdown has several solutions, and a sum may have a scratchpad.
    """
    return source in _UNIQUE


def _written_answer(completion: str) -> str:
    answer = extract_answer(completion)
    if answer is None:
        answer = "" if _OPENED.search(completion) else completion
    return answer


def answer_of(problem: Problem, completion: str) -> str | None:
    """The answer in a completion, for a majority vote: the text that the verifier or the grader checks.

    Surrounding white space and, for `addition`, the scratchpad before the last `=` are removed. None if there
    is no answer.
    """
    exact = has_exact_verifier(problem.source)
    answer = _written_answer(completion) if exact else extract_answer(completion) or ""
    if problem.source == "addition":
        answer = answer.rpartition("=")[2]
    return answer.strip() or None


def verify(problem: Problem, completion: str) -> Check:
    r"""(reward, status) of a completion from the exact verifier of the problem's source.

    The answer is what `extract_answer` finds (the last `\boxed{}`, else the last `<answer>`). If the text has
    neither, the whole text is the answer, as a tiny policy writes it. An answer slot that is opened but not
    closed has the status `no_answer`.

    Raises:
        ValueError: the source has no exact verifier, or the question does not have the source's format.
    """
    if not has_exact_verifier(problem.source):
        raise ValueError(
            f"problem {problem.id}: source {problem.source!r} has no exact verifier; use a Grader"
        )
    answer = _written_answer(completion)
    if not answer.strip():
        return 0.0, "no_answer"
    if problem.source in _EXACT:
        return _EXACT[problem.source](problem.question, answer)
    return check_gym(GYM_SOURCES[problem.source], problem.answer, answer)


@runtime_checkable
class SupportsGrading(Protocol):
    """Interface of a grader: `grading.Grader`, or a scripted one."""

    def grade(self, golds: Sequence[str], completions: Sequence[str]) -> list[Grade]:
        """One grade per row."""


def check_golds(problems: Sequence[Problem], grader: SupportsGrading) -> dict[str, str]:
    """Problems whose reference answer is not graded as correct itself: {id: status}, empty if there are none.

    Such a problem gives every completion the same reward, so run this once on every new problem set.
    Procedural sources are checked by `verify`, all others by the grader.
    """
    graded = [p for p in problems if not has_exact_verifier(p.source)]
    grades = grader.grade([p.answer for p in graded], [f"<answer>{p.answer}</answer>" for p in graded])
    statuses: dict[str, str] = {p.id: grade.status for p, grade in zip(graded, grades, strict=True)}
    statuses |= {p.id: verify(p, p.answer)[1] for p in problems if has_exact_verifier(p.source)}
    return {p.id: statuses[p.id] for p in problems if statuses[p.id] != "correct"}
