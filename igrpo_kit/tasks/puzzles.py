"""Countdown and addition puzzles: sampling, solving, and exact checking.

Each question of the three families is one line of plain text that both a character-level policy and a
language model can read. Answers are checked without `eval` or a general parser, in time linear in the length
of the input. Hostile text is treated as an invalid answer.

| source          | question     | an answer           | reward                                            |
|-----------------|--------------|---------------------|---------------------------------------------------|
| `countdown`     | `3,7,5:26`   | `3*7+5`             | 1 if each number is used once and the value is 26 |
| `countdown-max` | `3,7,5,2|50` | `3*7*2+5`           | value / best value <= 50, 0 above the limit       |
| `addition`      | `123+456=`   | `09,07,05=579`      | 1 if the text after the last `=` is the sum       |

Expressions are chains of whole numbers joined by + - *, with products evaluated first and no brackets.
Questions and generated answers use only the characters `0123456789+-*=,:|`.
"""

import itertools
import random
import re
import zlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType

Check = tuple[float, str]
"""(reward, status); the statuses are those of `grading.Grade`."""

_NUMBER = r"(?:0|[1-9][0-9]*)"
_CHAIN = re.compile(rf"{_NUMBER}(?: *[+*-] *{_NUMBER})*")
_SUM = re.compile(r"0|[1-9][0-9]*|[1-9][0-9]{0,2}(?:,[0-9]{3})+")
_MOST_NUMBERS = 6  # 6! * 3^5 = 174,960 expressions in one table


def is_held_out(question: str) -> bool:
    """Whether a question belongs to the held-out tenth: crc32(question) % 10 == 0.

    The split depends only on the text of the question, so train and held-out sets are disjoint for any seeds
    and sizes. It does not detect equivalent questions: `3,7,5:26` and `7,3,5:26` count as two.
    """
    return zlib.crc32(question.encode()) % 10 == 0


def parse_countdown(question: str) -> tuple[list[int], int]:
    """Numbers and target of a `countdown` or `countdown-max` question.

    Raises:
        ValueError: the question does not have the form `3,7,5:26` or `3,7,5,2|50`.
    """
    match = re.fullmatch(r"([1-9][0-9]{0,5}(?:,[1-9][0-9]{0,5})*)[:|]([0-9]{1,9})", question)
    if match is None:
        raise ValueError(f"question: not a countdown question: {question[:80]!r}")
    return [int(number) for number in match[1].split(",")], int(match[2])


def _fold(numbers: Sequence[int], operators: Sequence[str]) -> int:
    """Value of numbers[0] operators[0] numbers[1] ...: products first, then from left to right."""
    total, term = 0, numbers[0]
    for operator, number in zip(operators, numbers[1:], strict=True):
        if operator == "*":
            term *= number
        else:
            total, term = total + term, number if operator == "+" else -number
    return total + term


def _write(numbers: Sequence[int], operators: Sequence[str]) -> str:
    return str(numbers[0]) + "".join(o + str(n) for o, n in zip(operators, numbers[1:], strict=True))


@lru_cache(maxsize=4096)
def _values(numbers: tuple[int, ...]) -> Mapping[int, tuple[str, ...]]:
    table: dict[int, list[str]] = {}
    for order in sorted(set(itertools.permutations(numbers))):
        for operators in itertools.product("+-*", repeat=len(numbers) - 1):
            table.setdefault(_fold(order, operators), []).append(_write(order, operators))
    return MappingProxyType({value: tuple(expressions) for value, expressions in table.items()})


def countdown_values(numbers: Sequence[int]) -> Mapping[int, tuple[str, ...]]:
    """All values that the numbers can reach, each used exactly once, with the expressions that reach them.

    The result is cached.

    Raises:
        ValueError: there are no numbers, or more than 6.
    """
    if not 1 <= len(numbers) <= _MOST_NUMBERS:
        raise ValueError(f"numbers: needs 1 to {_MOST_NUMBERS} of them, got {len(numbers)}")
    return _values(tuple(sorted(numbers)))


def countdown_solutions(numbers: Sequence[int], target: int) -> list[str]:
    """All expressions that use each number exactly once and equal `target`; empty if there is none."""
    return list(countdown_values(numbers).get(target, ()))


def draw_countdown(rng: random.Random, num_numbers: int, max_number: int) -> tuple[str, str]:
    """Sample a `countdown` question and one solution: a random expression with a value in 0..99.

    The more expressions reach a target, the more likely it is.

    Args:
        rng: source of the random numbers.
        num_numbers: how many numbers the question has.
        max_number: the largest number; the smallest is 1.
    """
    while True:
        numbers = [rng.randint(1, max_number) for _ in range(num_numbers)]
        order = rng.sample(numbers, num_numbers)
        operators = rng.choices("+-*", k=num_numbers - 1)
        if 0 <= (target := _fold(order, operators)) <= 99:
            return f"{','.join(map(str, numbers))}:{target}", _write(order, operators)


def draw_countdown_max(rng: random.Random, num_numbers: int, max_number: int) -> tuple[str, str]:
    """Sample a `countdown-max` question with a limit in 10..99, and one expression of the best value.

    Arguments as in `draw_countdown`.
    """
    while True:
        numbers = [rng.randint(1, max_number) for _ in range(num_numbers)]
        limit = rng.randint(10, 99)
        if (best := _best(tuple(sorted(numbers)), limit)) > 0:
            return f"{','.join(map(str, numbers))}|{limit}", countdown_solutions(numbers, best)[0]


@lru_cache(maxsize=65536)
def _best(numbers: tuple[int, ...], limit: int) -> int:
    return max((value for value in countdown_values(numbers) if value <= limit), default=0)


def draw_addition(rng: random.Random, digits: int) -> tuple[str, str]:
    """Sample an `addition` question of two numbers with exactly `digits` digits, and the sum."""
    low, high = 10 ** (digits - 1), 10**digits - 1
    a, b = rng.randint(low, high), rng.randint(low, high)
    return f"{a}+{b}=", str(a + b)


def _addends(question: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]{1,18})\+([0-9]{1,18})=", question)
    if match is None:
        raise ValueError(f"question: not an addition question: {question[:80]!r}")
    return int(match[1]), int(match[2])


def addition_solutions(question: str) -> list[str]:
    """The two ways to write an answer: directly, and with a scratchpad.

    The scratchpad lists the column sums from right to left, including the carry, with two digits each, and
    then the sum: 123+456 -> `09,07,05=579`, 678+456 -> `14,13,11=1134`.

    Raises:
        ValueError: the question is not an addition.
    """
    a, b = _addends(question)
    columns, carry, left, right = list[str](), 0, a, b
    while left or right or not columns:
        column = left % 10 + right % 10 + carry
        columns.append(f"{column:02d}")
        carry, left, right = column // 10, left // 10, right // 10
    return [str(a + b), f"{','.join(columns)}={a + b}"]


def _chain_value(numbers: Sequence[int], answer: str) -> int | str:
    """Value of the answer, or the status that says why it has none. LaTeX's signs for * are accepted."""
    for times in (r"\times", r"\cdot", "×", "·"):
        answer = answer.replace(times, "*")
    if not _CHAIN.fullmatch(answer := answer.strip()):
        return "unparsed_answer"
    used = re.findall("[0-9]+", answer)
    if sorted(used) != sorted(map(str, numbers)):  # as text: a huge number is never converted to int
        return "incorrect"
    return _fold([int(number) for number in used], re.findall("[+*-]", answer))


def check_countdown(question: str, answer: str) -> Check:
    """1 and `correct` if the answer uses each number exactly once and equals the target, else 0."""
    numbers, target = parse_countdown(question)
    value = _chain_value(numbers, answer)
    if isinstance(value, str):
        return 0.0, value
    return (1.0, "correct") if value == target else (0.0, "incorrect")


def check_countdown_max(question: str, answer: str) -> Check:
    """value / best for a value in 0..limit, else 0.

    Only the best value is `correct`; a partial reward comes with `incorrect`.
    """
    numbers, limit = parse_countdown(question)
    value = _chain_value(numbers, answer)
    if isinstance(value, str):
        return 0.0, value
    best = _best(tuple(sorted(numbers)), limit)
    if not 0 < value <= limit:
        return 0.0, "incorrect"
    return value / best, "correct" if value == best else "incorrect"


def check_addition(question: str, answer: str) -> Check:
    """1 and `correct` if the text after the last `=` is the sum; without a `=`, the whole text is the answer.

    Everything before it is scratchpad and is not checked. The sum is written without leading zeros, with or
    without thousands separators.
    """
    a, b = _addends(question)
    last = answer.rpartition("=")[2].strip()
    if not _SUM.fullmatch(last):
        return 0.0, "unparsed_answer"
    return (1.0, "correct") if last.replace(",", "") == str(a + b) else (0.0, "incorrect")
