"""Results first: an answer begins with results that its own working would give, which comes after them.

A question is m sums of n digits, such as `3:1;4|1:5;9|`. Its only correct answer is the last digit of each
sum, and then the running sums modulo 10 in the form of the question: `85=3:4;8|1:6;5|`. The reward is 1 if
all of it is right, results and working. The working can be written digit by digit, so the results limit p.
The mark after a digit depends on its place in the sum; without such marks the tiny policy did not find the
middle digits of `314,159` in 1,500 steps of training.

A causal policy has to add n digits before it may write down anything, once for each sum. But a wrong draft
contains the working, and whoever reads it only has to copy a digit. So a draft can help although *no* skill
to repair is planted: the warm start has no target in which a part of a draft is corrected, only pairs of a
question, with or without an own wrong draft, and its correct answer.
"""

import random
import re
from collections.abc import Sequence
from itertools import accumulate

from igrpo_kit.tasks.puzzles import Check

RESULTS_FIRST = "results-first"
"""the source of these problems"""
MOST_DIGITS = 5
_MARKS, _END = ":;,-", "|"


def _write(digits: Sequence[int]) -> str:
    """One sum, or its working: each digit with its mark."""
    marks = [*_MARKS[: len(digits) - 1], _END]
    return "".join(f"{digit}{mark}" for digit, mark in zip(digits, marks, strict=True))


def draw_results_first(rng: random.Random, sums: int, digits: int) -> tuple[str, str]:
    """Sample a question of this many sums of at most `MOST_DIGITS` digits, and its answer."""
    question = "".join(_write([rng.randrange(10) for _ in range(digits)]) for _ in range(sums))
    return question, results_first_answer(question)


def _sums(question: str) -> list[list[int]]:
    """The digits of each sum. Raises ValueError if the text is not written as `_write` does."""
    sums = [[int(c) for c in re.findall("[0-9]", part)] for part in question.split(_END)[:-1]]
    if (
        not sums
        or not all(1 <= len(s) <= MOST_DIGITS for s in sums)
        or "".join(map(_write, sums)) != question
    ):
        raise ValueError(f"question: not sums of digits with their marks: {question[:80]!r}")
    return sums


def results_first_answer(question: str) -> str:
    """The correct answer. Raises ValueError if the question is not sums of digits with their marks."""
    running = [[total % 10 for total in accumulate(digits)] for digits in _sums(question)]
    return "".join(str(totals[-1]) for totals in running) + "=" + "".join(map(_write, running))


def check_results_first(question: str, answer: str) -> Check:
    """1 and `correct` if results and working are right, else 0."""
    answer = answer.strip()
    if not re.fullmatch(r"[0-9]+=([0-9][:;,|-])+", answer):
        return 0.0, "unparsed_answer"
    return (1.0, "correct") if answer == results_first_answer(question) else (0.0, "incorrect")
