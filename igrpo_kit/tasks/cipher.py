"""The revision cipher: a task on which revising a wrong answer can succeed far more often than a new one.

A question is k digits x_1..x_k, and its only correct answer is k digits: digit i is T[x_{i-1}, x_i], an entry
of a random table with 110 entries (before x_1 stands a blank). The reward is 1 if all k digits are right.
Every entry also has one wrong digit W and a rate at which a noisy writer puts W in its place.

A policy that is warm-started on noisy answers has p of about (1 - mean noise)^k on the question alone: the
length k sets how rare a correct answer is, and nothing else changes. It is also warm-started on revisions: a
noisy draft, and the same draft with a part of its wrong digits corrected. So the skill to repair a draft is
*planted* (`revised_answer`), and it is removed in the control `fresh` (`noisy_answer` as the revision).

Answers are unique and have a fixed length, so p is exp(log pi(answer | q)) exactly, however small.
"""

import random
import re
from dataclasses import dataclass
from functools import lru_cache

from igrpo_kit.tasks.puzzles import Check

DIGITS = 10
_BLANK = DIGITS  # the left neighbor of the first digit
MOST_NOISE = 0.88
"""an entry's noise is uniform on [0, 0.88], so that the most likely digit of 43 % of the entries is wrong"""
FIX, HOLD = 0.5, 0.97
"""probability that a revision corrects a wrong digit, and that it keeps a right one"""

CIPHER_TABLES = 3
"""tables 0, 1, 2 have a source that `verification` knows"""

Entries = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Table:
    """The 11 x 10 entries of a cipher: the right digit, the wrong one, and how often it takes its place."""

    right: Entries
    wrong: Entries
    noise: tuple[tuple[float, ...], ...]


def cipher_source(table: int) -> str:
    """The `source` of a table's problems."""
    return f"cipher-{table}"


@lru_cache
def cipher_table(number: int) -> Table:
    """The table of this number; each number is another random table."""
    rng = random.Random(f"cipher table {number}")
    right = tuple(tuple(rng.randrange(DIGITS) for _ in range(DIGITS)) for _ in range(DIGITS + 1))
    wrong = tuple(tuple((digit + rng.randrange(1, DIGITS)) % DIGITS for digit in row) for row in right)
    noise = tuple(tuple(MOST_NOISE * rng.random() for _ in row) for row in right)
    return Table(right, wrong, noise)


def _entries(question: str) -> list[tuple[int, int]]:
    """(left neighbor, digit) of each position. Raises ValueError if the question is not digits."""
    if not re.fullmatch(r"[0-9]+", question):
        raise ValueError(f"question: not a cipher question: {question[:80]!r}")
    digits = [int(c) for c in question]
    return list(zip([_BLANK, *digits[:-1]], digits, strict=True))


def draw_cipher(rng: random.Random, length: int, table: int) -> tuple[str, str]:
    """Sample a question of `length` digits, and its answer."""
    question = "".join(str(rng.randrange(DIGITS)) for _ in range(length))
    return question, cipher_answer(question, table)


def cipher_answer(question: str, table: int) -> str:
    """The correct answer. Raises ValueError if the question is not digits."""
    right = cipher_table(table).right
    return "".join(str(right[a][b]) for a, b in _entries(question))


def noisy_answer(question: str, table: int, rng: random.Random) -> str:
    """An answer in which each digit is the entry's wrong one with the entry's noise."""
    t = cipher_table(table)
    written = [(t.wrong if rng.random() < t.noise[a][b] else t.right)[a][b] for a, b in _entries(question)]
    return "".join(map(str, written))


def revised_answer(question: str, draft: str, table: int, rng: random.Random) -> str:
    """A revision of a draft: wrong digits are corrected with probability `FIX`, right ones kept with `HOLD`.

    Raises:
        ValueError: draft and question have different lengths.
    """
    t, entries = cipher_table(table), _entries(question)
    if len(draft) != len(entries):
        raise ValueError(f"draft: {len(entries)} digits are needed, got {draft[:80]!r}")
    chances = [HOLD if d == str(t.right[a][b]) else FIX for d, (a, b) in zip(draft, entries, strict=True)]
    written = [
        (t.right if rng.random() < chance else t.wrong)[a][b]
        for chance, (a, b) in zip(chances, entries, strict=True)
    ]
    return "".join(map(str, written))


def check_cipher(question: str, answer: str, table: int) -> Check:
    """1 and `correct` if every digit is right, else 0."""
    answer = answer.strip()
    if not re.fullmatch(r"[0-9]+", answer):
        return 0.0, "unparsed_answer"
    return (1.0, "correct") if answer == cipher_answer(question, table) else (0.0, "incorrect")


def right_digits(completion: str, answer: str) -> float:
    """Partial credit: fraction of digits that are right in a completion of the answer's length, else 0."""
    if len(completion) != len(answer) or not answer:
        return 0.0
    return sum(a == b for a, b in zip(completion, answer, strict=True)) / len(answer)
