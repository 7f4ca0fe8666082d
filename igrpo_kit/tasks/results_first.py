"""Results first: an answer begins with results that its own working would give, which comes after them.

A question is m sums of n digits, such as `3:1;4|1:6;5|`. Its only correct answer is the last digit of each
sum, and then the running totals in two digits, from the second digit on: `82=04;08|07;12|`. The reward is 1
if all of it is right, results and working. The working is easily learned, so the results limit p.

A causal policy has to add n digits before it may write down anything, once for each sum. But a wrong draft
contains the working, and whoever reads it only has to copy a digit. So a draft can help although *no* skill
to repair is planted: the warm start has no target in which a part of a draft is corrected, only pairs of a
question, with or without an own wrong draft, and its correct answer.

Two choices are for the tiny policy. The mark after a digit depends on its place in the sum, so that the digit
is easily found. And the totals are not modulo 10: with totals such as 3, 4, 8 and 1, 7, 2 the policy learned
to copy but not to add, in up to 1,500 steps, because a digit modulo 10 does not depend on one addend alone.
"""

import random
import re
from collections.abc import Sequence
from itertools import accumulate

from igrpo_kit.tasks.puzzles import Check

RESULTS_FIRST = "results-first"
"""the source of these problems"""
LEAST_DIGITS, MOST_DIGITS = 2, 5
_MARKS, _END = ":;,-", "|"


def _marks(digits: int) -> list[str]:
    """The mark after each digit of a sum."""
    return [*_MARKS[: digits - 1], _END]


def _write(digits: Sequence[int]) -> str:
    return "".join(f"{digit}{mark}" for digit, mark in zip(digits, _marks(len(digits)), strict=True))


def draw_results_first(rng: random.Random, sums: int, digits: int) -> tuple[str, str]:
    """Sample a question of this many sums of `LEAST_DIGITS` to `MOST_DIGITS` digits, and its answer."""
    question = "".join(_write([rng.randrange(10) for _ in range(digits)]) for _ in range(sums))
    return question, results_first_answer(question)


def _sums(question: str) -> list[list[int]]:
    """The digits of each sum. Raises ValueError if the text is not written as `_write` does."""
    sums = [[int(c) for c in re.findall("[0-9]", part)] for part in question.split(_END)[:-1]]
    fits = all(LEAST_DIGITS <= len(digits) <= MOST_DIGITS for digits in sums)
    if not sums or not fits or "".join(map(_write, sums)) != question:
        raise ValueError(f"question: not sums of digits with their marks: {question[:80]!r}")
    return sums


def results_first_answer(question: str) -> str:
    """The correct answer. Raises ValueError if the question is not sums of digits with their marks."""
    results, working = "", ""
    for digits in _sums(question):
        totals = zip(accumulate(digits), _marks(len(digits)), strict=True)
        working += "".join([f"{total:02}{mark}" for total, mark in totals][1:])
        results += str(sum(digits) % 10)
    return f"{results}={working}"


def check_results_first(question: str, answer: str) -> Check:
    """1 and `correct` if results and working are right, else 0."""
    answer = answer.strip()
    if not re.fullmatch(r"[0-9]+=([0-9]{2}[:;,|-])+", answer):
        return 0.0, "unparsed_answer"
    return (1.0, "correct") if answer == results_first_answer(question) else (0.0, "incorrect")
