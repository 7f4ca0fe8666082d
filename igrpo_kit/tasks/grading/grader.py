r"""Grading of completions against reference answers (golds), safe against hostile text.

math-verify decides whether two answers are equal. This module extracts the answer and runs math-verify in
worker processes with limited memory, which are killed at a wall-clock limit. It needs a POSIX system.

**Extraction**: see `extraction`. A gold is a bare answer or a text with a box; `\sqrt{2}`, `3\pi`,
`\text{Evelyn}`, and `C` are parsed as they are.

**Statuses.** Every grade has one. The reward is 1 for `correct` and 0 for all others.

| status            | meaning                                                                            |
|-------------------|------------------------------------------------------------------------------------|
| `correct`         | equal to the gold                                                                  |
| `incorrect`       | not equal to the gold                                                              |
| `no_answer`       | nothing to grade; decided first, whatever the gold                                 |
| `unparsed_gold`   | the gold does not parse in time, is refused, or equals nothing (1/0): fix the data |
| `unparsed_answer` | the answer does not parse, or is refused                                           |
| `timeout`         | no verdict within the time limit, on this machine under its current load           |
| `error`           | out of memory, not comparable by sympy, or two workers in a row died               |

*Refused* before it reaches a worker: more than 1000 characters, unbalanced braces, brackets nested deeper
than 20, a numeric exponent of 10^6 or more (such as 9^{9^9}), the factorial of a number with six or more
digits.

*Decided without a worker*: plain numbers (18, -1,234.50, 3/4, \frac{3}{4}), whose values determine
math-verify's verdict, and pairs graded before. Pairs that timed out or failed are tried again in the next
call.

**What math-verify accepts and a teacher may not**: units are ignored (5 cm = 5 m), and so are bases (2516_8 =
2516); 50% = 50 and 50% = 0.5; decimals that agree to six places (1/3 = 0.333333); unevaluated sums (2+2 =
4); lists and sets in any order, and (1,2) = 1,2; 5 for x = 5 and x = 5 for 5; 1/2004! = 1/2006!; letters in
any case and order (ab = BA). It is not symmetric: for the gold 1<x<2 the answer (1,2) is correct, but not
the other way around. It also rejects some correct answers: 1e2 for 100, e^{i\pi} for -1. The tests check this
list.
"""

import math
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, cast

from igrpo_kit.tasks.grading.extraction import extract_answer, last_answer, last_box
from igrpo_kit.tasks.grading.pool import Pair, Verdict, WorkerPool

Status = Literal[
    "correct", "incorrect", "no_answer", "unparsed_gold", "unparsed_answer", "timeout", "error"
]  # fmt: skip

MAX_CHARS = 1000
MAX_NESTING = 20
MAX_EXPONENT = 10**6
CACHE_SIZE = 1 << 16

_BRACKET = re.compile(r"\\[\\{}]|[][(){}]")
_POWER = re.compile(r"\^[\s{(+-]*+([0-9]+)(?:\s*+\^[\s{(+-]*+([0-9]+))?")
_LARGE_FACTORIAL = re.compile(r"[0-9]{6,}[\s})]*+!")
_DECIMAL = re.compile(r"-?(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+|[0-9]+)(\.[0-9]+)?")
_FRACTION = re.compile(r"(-?)(?:\\[dtc]?frac\{([0-9]+)\}\{([0-9]+)\}|([1-9][0-9]*)/([1-9][0-9]*))")


@dataclass(frozen=True, slots=True)
class Grade:
    """Reward of a completion (1 or 0), the status, the extracted answer, and the worker's time in seconds."""

    reward: float
    status: Status
    answer: str | None = None
    seconds: float = 0.0


def _bare(text: str) -> str:
    """The answer without delimiters around it; an answer over the length limit is returned unchanged."""
    if len(text) > MAX_CHARS:
        return text
    text, before = text.replace("\\$", "").replace("$", "").strip(), ""
    while text != before:
        before = text
        if text.endswith(".") and not text.endswith(("..", "\\right.")):
            text = text[:-1].rstrip()
        for left, right in (("\\(", "\\)"), ("\\[", "\\]"), ("**", "**")):
            inner = text.removeprefix(left).removesuffix(right)
            if len(inner) == len(text) - len(left + right) and left not in inner and right not in inner:
                text = inner.strip()
    return text


def _bare_gold(gold: str) -> str:
    begun, content = last_box(gold)
    return _bare(content if begun else gold)


def _well_formed(text: str) -> bool:
    """Whether braces are balanced and no bracket of any kind is nested too deeply."""
    braces = depth = 0
    for bracket in _BRACKET.findall(text):
        if bracket[-1] in "({[":
            depth += 1
        elif bracket != "\\\\":
            depth = max(depth - 1, 0)
        braces += {"{": 1, "}": -1}.get(bracket, 0)
        if braces < 0 or depth > MAX_NESTING:
            return False
    return braces == 0


def _too_large(power: re.Match[str]) -> bool:
    exponent, outer = int(power[1]), int(power[2] or 1)
    return exponent > 1 and min(outer, MAX_EXPONENT) * math.log(exponent) >= math.log(MAX_EXPONENT)


def _refused(text: str) -> bool:
    """Whether a text must not be sent to a worker."""
    return (
        not text
        or len(text) > MAX_CHARS
        or not _well_formed(text)
        or any(map(_too_large, _POWER.finditer(text)))
        or _LARGE_FACTORIAL.search(text) is not None
    )


def _number(text: str) -> tuple[Fraction, bool] | None:
    """Value of a plain number, and whether it is a decimal, which math-verify converts to a float."""
    if match := _DECIMAL.fullmatch(text):
        if match[1] and len(text) > 16:  # more digits than a float holds
            return None
        return Fraction(text.replace(",", "")), match[1] is not None
    if match := _FRACTION.fullmatch(text):
        numerator, denominator = int(match[2] or match[4]), int(match[3] or match[5])
        if denominator:
            return Fraction(-numerator if match[1] else numerator, denominator), False
    return None


def _compare_numbers(gold: str, answer: str) -> Status | None:
    """math-verify's verdict if it follows from the values alone, else None.

    math-verify compares integers and fractions exactly, and rounds to six places if either is a decimal.
    """
    left, right = _number(gold), _number(answer)
    if left is None or right is None:
        return None
    if left[0] == right[0]:
        return "correct"
    exact = not (left[1] or right[1])
    return "incorrect" if exact or abs(left[0] - right[0]) > Fraction(2, 10**6) else None


def _check_texts(name: str, texts: Sequence[str]) -> None:
    if isinstance(texts, str):
        raise TypeError(f"{name} must be a sequence of strings, not one string")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"{name}[{i}] must be a string, got {type(text).__name__}: {text!r:.80}")


def _available_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Grader:
    """Grades completions against golds, in worker processes that start on first use.

    One Grader may be used by several threads at once, and with asyncio: `await
    asyncio.to_thread(grader.grade, golds, completions)`. Close it or use it as a context manager; in any case
    its workers end with the interpreter.

    Args:
        num_workers: number of processes; by default one for each CPU, at most 8.
        time_limit: wall-clock seconds for a gold or an answer.
        memory_mb: address space of a worker in MiB, at least 256.
        fallback: where a completion begins neither box nor tag, let math-verify extract an answer from its
            last 1000 characters ("The answer is 18.").

    Raises:
        ValueError: an argument is out of range (the message names it).
    """

    def __init__(
        self,
        num_workers: int | None = None,
        *,
        time_limit: float = 2.0,
        memory_mb: int = 1024,
        fallback: bool = False,
    ) -> None:
        if num_workers is None:
            num_workers = min(_available_cpus(), 8)
        for name, value in (("num_workers", num_workers), ("time_limit", time_limit)):
            if value <= 0:
                raise ValueError(f"{name} must be positive, got {value}")
        if memory_mb < 256:
            raise ValueError(f"memory_mb must be at least 256 for sympy to load, got {memory_mb}")
        self._fallback = fallback
        self._time_limit = time_limit
        self._pool = WorkerPool(num_workers, time_limit, memory_mb << 20)
        self._seen: OrderedDict[Pair, Verdict] = OrderedDict()
        self._seen_lock = threading.Lock()

    def grade(self, golds: Sequence[str], completions: Sequence[str]) -> list[Grade]:
        """Grade each completion against the gold of the same row, in order.

        A pair that occurs in several rows is graded once.

        Raises:
            ValueError: the lengths differ.
            TypeError: an item is not a string.
            RuntimeError: the Grader is closed, was forked, or cannot start a worker.
        """
        _check_texts("golds", golds)
        _check_texts("completions", completions)
        if len(golds) != len(completions):
            raise ValueError(f"{len(golds)} golds for {len(completions)} completions")
        answers = [extract_answer(completion) for completion in completions]
        pairs = [self._pair(*row) for row in zip(golds, completions, answers, strict=True)]
        verdicts = self._judge([pair for pair in pairs if pair is not None])
        return [
            Grade(0.0, "no_answer") if pair is None else _grade(verdicts[pair], answer)
            for pair, answer in zip(pairs, answers, strict=True)
        ]

    def unparsed_golds(self, golds: Sequence[str]) -> list[int]:
        """Rows whose gold does not parse, so that no completion can be correct. Raises as `grade` does."""
        _check_texts("golds", golds)
        pairs = [Pair(_bare_gold(gold)) for gold in golds]
        verdicts = self._judge(pairs)
        return [i for i, pair in enumerate(pairs) if verdicts[pair].status != "correct"]

    def _pair(self, gold: str, completion: str, answer: str | None) -> Pair | None:
        if answer is not None:
            return Pair(_bare_gold(gold), _bare(answer))
        if self._fallback and not last_answer(completion)[0] and completion.strip():
            return Pair(_bare_gold(gold), completion[-MAX_CHARS:], whole=True)
        return None

    def _judge(self, pairs: Sequence[Pair]) -> dict[Pair, Verdict]:
        """Verdicts that need no worker, and the pool's verdicts on the rest."""
        known: dict[Pair, Verdict] = {}
        asked: list[Pair] = []
        for pair in dict.fromkeys(pairs):
            verdict = self._recall(pair) or _decide(pair)
            if verdict is None:
                asked.append(pair)
            else:
                known[pair] = verdict
        judged = self._pool.judge(asked)
        self._remember(judged)
        return known | judged

    def _recall(self, pair: Pair) -> Verdict | None:
        with self._seen_lock:
            for key in (Pair(pair.gold), pair):
                verdict = self._seen.get(key)
                if verdict and (key == pair or verdict.status == "unparsed_gold"):
                    self._seen.move_to_end(key)
                    return verdict._replace(seconds=0.0)
        return None

    def _remember(self, verdicts: dict[Pair, Verdict]) -> None:
        with self._seen_lock:
            for pair, verdict in verdicts.items():
                # Not after an error or timeout: the cause may be the machine, and a later try may succeed.
                if verdict.status != "error" and verdict.seconds < self._time_limit:
                    self._seen[pair] = verdict
                    self._seen.move_to_end(pair)
            while len(self._seen) > CACHE_SIZE:
                self._seen.popitem(last=False)

    def close(self) -> None:
        """End the workers at once. A closed Grader cannot grade."""
        self._pool.close()

    def __enter__(self) -> "Grader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _decide(pair: Pair) -> Verdict | None:
    """The verdict if it needs no worker, else None."""
    if _refused(pair.gold):
        return Verdict("unparsed_gold")
    if pair.answer is None:
        return Verdict("correct") if _number(pair.gold) else None
    if pair.whole:
        return None
    if _refused(pair.answer):
        return Verdict("unparsed_answer")
    status = _compare_numbers(pair.gold, pair.answer)
    return Verdict(status) if status else None


def _grade(verdict: Verdict, answer: str | None) -> Grade:
    status = cast(Status, verdict.status)
    return Grade(float(status == "correct"), status, answer or verdict.extracted, verdict.seconds)
