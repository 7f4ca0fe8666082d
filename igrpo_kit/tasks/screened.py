"""Tasks of the screen `experiments.regimes.screen`: carrying, 3-SAT, Countdown with values, sudoku.

| task      | question                         | an answer                                               |
|-----------|----------------------------------|---------------------------------------------------------|
| carrying  | `3907`, columns of base 4        | `11113`, the same number in normal form (343)           |
| 3-SAT     | `+0-3+7-1-2+3`, clauses of three | `10110101`, one value for each variable                 |
| Countdown | `3,7,5:26`                       | `3*7=21+5=26`, each number once, with the value so far  |
| sudoku    | `1--4...`, 16 cells, row by row  | `1234...`, every row, column and 2 x 2 box has 1 to 4   |

Each task has a function that samples a question, one that gives a correct answer, and a check. The answer of
*carrying* is unique. All characters are among those of the tiny policy.
"""

import itertools
import random
import re
from collections.abc import Mapping
from functools import lru_cache

from igrpo_kit.tasks.puzzles import Check, parse_countdown

CORRECT: Check = (1.0, "correct")
INCORRECT: Check = (0.0, "incorrect")
UNPARSED: Check = (0.0, "unparsed_answer")


def draw_columns(rng: random.Random, columns: int) -> str:
    """Column sums of three numbers in base 4, the most significant first: each 0 to 9."""
    return "".join(str(sum(rng.randrange(4) for _ in range(3))) for _ in range(columns))


def carried(question: str) -> str:
    """The columns in normal form: base-4 digits, one more than there are columns."""
    number = 0
    for column in question:
        number = 4 * number + int(column)
    return "".join(str(number >> 2 * i & 3) for i in reversed(range(len(question) + 1)))


def check_carried(question: str, answer: str) -> Check:
    """Whether the answer is the normal form."""
    if not re.fullmatch(r"[0-3]+", answer):
        return UNPARSED
    return CORRECT if answer == carried(question) else INCORRECT


def _satisfies(values: str, question: str) -> bool:
    signs, variables = question[::2], question[1::2]
    true = [(sign == "+") == (values[int(v)] == "1") for sign, v in zip(signs, variables, strict=True)]
    return all(any(true[i : i + 3]) for i in range(0, len(true), 3))


def draw_clauses(rng: random.Random, variables: int, clauses: int) -> str:
    """Clauses of three different variables that a hidden assignment satisfies."""
    hidden, question = f"{rng.getrandbits(variables):0{variables}b}", ""
    for _ in range(clauses):
        while not _satisfies(hidden, clause := _clause(rng, variables)):
            pass
        question += clause
    return question


def _clause(rng: random.Random, variables: int) -> str:
    return "".join(rng.choice("+-") + str(v) for v in rng.sample(range(variables), 3))


def satisfying(question: str, rng: random.Random, variables: int) -> str:
    """A random satisfying assignment."""
    found = [v for v in map("".join, itertools.product("01", repeat=variables)) if _satisfies(v, question)]
    return rng.choice(found)


def check_assignment(question: str, answer: str, variables: int) -> Check:
    """Whether the answer satisfies all clauses."""
    if not re.fullmatch(rf"[01]{{{variables}}}", answer):
        return UNPARSED
    return CORRECT if _satisfies(answer, question) else INCORRECT


_STEP = re.compile(r"([+*-])([0-9]+)=([0-9]+)")
_SHOWN = re.compile(r"([0-9]+)((?:[+*-][0-9]+=[0-9]+)+)")


def _apply(operator: str, a: int, b: int) -> int:
    return {"+": a + b, "-": a - b, "*": a * b}[operator]


@lru_cache(maxsize=4096)
def _shown(numbers: tuple[int, ...]) -> Mapping[int, tuple[str, ...]]:
    """Value -> the ways to reach it from left to right, with all values on the way in 0..99."""
    found: dict[int, list[str]] = {}
    for order in sorted(set(itertools.permutations(numbers))):
        for operators in itertools.product("+-*", repeat=len(numbers) - 1):
            value, text = order[0], str(order[0])
            for operator, number in zip(operators, order[1:], strict=True):
                value = _apply(operator, value, number)
                text += f"{operator}{number}={value}"
                if not 0 <= value <= 99:
                    break
            else:
                found.setdefault(value, []).append(text)
    return {value: tuple(texts) for value, texts in found.items()}


def draw_shown(rng: random.Random, count: int) -> str:
    """A Countdown question with this many numbers from 1 to 9, solved from left to right within 0..99."""
    numbers = [rng.randint(1, 9) for _ in range(count)]
    ways = _shown(tuple(sorted(numbers)))
    weights = [len(texts) for texts in ways.values()]
    return f"{','.join(map(str, numbers))}:{rng.choices(list(ways), weights)[0]}"


def shown_solution(question: str, rng: random.Random) -> str:
    """A random solution with its values."""
    numbers, target = parse_countdown(question)
    return rng.choice(_shown(tuple(sorted(numbers)))[target])


def check_shown(question: str, answer: str) -> Check:
    """Whether each number is used once, every value is right, and the last is the target."""
    numbers, target = parse_countdown(question)
    if len(answer) > 200 or (parsed := _SHOWN.fullmatch(answer)) is None:
        return UNPARSED
    value = int(parsed[1])
    used = [value]
    for operator, number, shown in _STEP.findall(parsed[2]):
        used.append(int(number))
        value = _apply(operator, value, used[-1])
        if value != int(shown):
            return INCORRECT
    return CORRECT if sorted(used) == sorted(numbers) and value == target else INCORRECT


_UNITS = [
    *([4 * row + column for column in range(4)] for row in range(4)),
    *([4 * row + column for row in range(4)] for column in range(4)),
    *([4 * (top + i) + left + j for i in (0, 1) for j in (0, 1)] for top in (0, 2) for left in (0, 2)),
]


def _is_grid(cells: str) -> bool:
    return all({cells[i] for i in unit} == set("1234") for unit in _UNITS)


@lru_cache
def sudoku_grids() -> tuple[str, ...]:
    """All 288 grids."""
    rows = list(map("".join, itertools.permutations("1234")))
    tops = [a + b for a in rows for b in rows if len(set(a[:2] + b[:2])) == len(set(a[2:] + b[2:])) == 4]
    return tuple(top + bottom for top in tops for bottom in tops if _is_grid(top + bottom))


def _agrees(grid: str, question: str) -> bool:
    return all(clue in ("-", cell) for clue, cell in zip(question, grid, strict=True))


def draw_sudoku(rng: random.Random, clues: int) -> str:
    """A grid of which this many cells are shown; more than one grid may fit."""
    shown = set(rng.sample(range(16), clues))
    return "".join(cell if i in shown else "-" for i, cell in enumerate(rng.choice(sudoku_grids())))


def sudoku_solution(question: str, rng: random.Random) -> str:
    """A random grid that fits."""
    return rng.choice([grid for grid in sudoku_grids() if _agrees(grid, question)])


def check_sudoku(question: str, answer: str) -> Check:
    """Whether the answer is a grid that fits."""
    if not re.fullmatch(r"[1-4]{16}", answer):
        return UNPARSED
    return CORRECT if _is_grid(answer) and _agrees(answer, question) else INCORRECT
