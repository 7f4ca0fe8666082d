"""Results first: an answer begins with results that its own working would give, which comes after them.

A question is m sums of n digits, such as `314,159,265`. Its only correct answer is the last digit of each
sum, and then the running sums modulo 10: `853:348,165,283`. The reward is 1 if all of it is right, results
and working. The working can be written digit by digit, so the results limit p.

A causal policy has to add n digits before it may write down anything, once for each sum. But a wrong draft
contains the working, and whoever reads it only has to copy a digit. So a draft can help although *no* skill
to repair is planted: the warm start has no target in which a part of a draft is corrected, only pairs of a
question, with or without an own wrong draft, and its correct answer.
"""

import random
import re
from itertools import accumulate

from igrpo_kit.tasks.puzzles import Check

RESULTS_FIRST = "results-first"
"""the source of these problems"""


def draw_results_first(rng: random.Random, sums: int, digits: int) -> tuple[str, str]:
    """Sample a question of this many sums of this many digits, and its answer."""
    groups = ["".join(str(rng.randrange(10)) for _ in range(digits)) for _ in range(sums)]
    question = ",".join(groups)
    return question, results_first_answer(question)


def results_first_answer(question: str) -> str:
    """The correct answer. Raises ValueError if the question is not groups of digits."""
    if not re.fullmatch(r"[0-9]+(,[0-9]+)*", question):
        raise ValueError(f"question: not groups of digits: {question[:80]!r}")
    running = [
        "".join(str(total % 10) for total in accumulate(map(int, group))) for group in question.split(",")
    ]
    return "".join(sums[-1] for sums in running) + ":" + ",".join(running)


def check_results_first(question: str, answer: str) -> Check:
    """1 and `correct` if results and working are right, else 0."""
    answer = answer.strip()
    if not re.fullmatch(r"[0-9]+:[0-9]+(,[0-9]+)*", answer):
        return 0.0, "unparsed_answer"
    return (1.0, "correct") if answer == results_first_answer(question) else (0.0, "incorrect")
