"""Puzzle sets from a seed: Countdown, its graded variant, addition, the revision cipher, results first."""

import random
from collections.abc import Callable
from functools import partial

from igrpo_kit.tasks import puzzles
from igrpo_kit.tasks.cipher import CIPHER_TABLES, cipher_source, draw_cipher
from igrpo_kit.tasks.problem import Problem, Split
from igrpo_kit.tasks.results_first import LEAST_DIGITS, MOST_DIGITS, RESULTS_FIRST, draw_results_first


def draw_problems(
    source: str,
    draw: Callable[[random.Random], tuple[str, str]],
    count: int,
    seed: int,
    split: Split,
    distinct: bool,
) -> list[Problem]:
    """Sample `count` problems from one side of the hash split.

    Args:
        source: source of the problems.
        draw: samples one question and its answer.
        count: number of problems.
        seed: seed of the sampling.
        split: "train" or "held_out", by a hash of the question (`is_held_out`).
        distinct: sample without replacement.

    Raises:
        ValueError: an argument is invalid, or 20,000 draws in a row gave nothing new.
    """
    if count < 1:
        raise ValueError(f"count must be >= 1, got {count}")
    if split not in ("train", "held_out"):
        raise ValueError(f"split must be 'train' or 'held_out', got {split!r}")
    rng, sampled, seen, misses = random.Random(seed), list[tuple[str, str]](), set[str](), 0
    while len(sampled) < count:
        question, answer = draw(rng)
        if puzzles.is_held_out(question) != (split == "held_out") or (distinct and question in seen):
            misses += 1
            if misses > 20_000:
                raise ValueError(
                    f"count: asked for {count} {source} problems on the {split} side, but after "
                    f"{len(sampled)} there was nothing new in 20,000 draws"
                )
            continue
        sampled.append((question, answer))
        seen.add(question)
        misses = 0
    return [Problem(f"{source}/{split}-{seed}-{i}", q, a, source) for i, (q, a) in enumerate(sampled)]


def _check_numbers(num_numbers: int, max_number: int) -> None:
    if not 2 <= num_numbers <= 6:
        raise ValueError(f"num_numbers must lie in 2..6, got {num_numbers}")
    if not 1 <= max_number <= 99:
        raise ValueError(f"max_number must lie in 1..99, got {max_number}")


def countdown_problems(
    count: int,
    *,
    seed: int,
    split: Split = "train",
    distinct: bool = False,
    num_numbers: int = 3,
    max_number: int = 9,
) -> list[Problem]:
    """`count` Countdown problems, such as `3,7,5:26` with the answer `3*7+5`.

    The target (0..99) is to be reached with + - *, each number used exactly once, without brackets. The
    reference answer is one solution; `countdown_solutions` lists all.

    Args:
        count: number of problems.
        seed: seed of the sampling.
        split: by a hash of the question (`is_held_out`).
        distinct: keep each question once, as for an evaluation. Otherwise sampling is independent and
            questions repeat (three numbers up to 9 give 5,765 questions for training and 631 held out).
        num_numbers: 2..6.
        max_number: 1..99.

    Raises:
        ValueError: an argument is out of range, or there are fewer than `count` distinct questions (the
            message names the argument).
    """
    _check_numbers(num_numbers, max_number)
    draw = partial(puzzles.draw_countdown, num_numbers=num_numbers, max_number=max_number)
    return draw_problems("countdown", draw, count, seed, split, distinct)


def countdown_max_problems(
    count: int,
    *,
    seed: int,
    split: Split = "train",
    distinct: bool = False,
    num_numbers: int = 4,
    max_number: int = 9,
) -> list[Problem]:
    """`count` problems of the graded variant, such as `3,7,5,2|50`: the largest value <= 50.

    The reward of an expression is value / best, in [0, 1]. The reference answer is one expression of the best
    value. Arguments and errors as in `countdown_problems`.
    """
    _check_numbers(num_numbers, max_number)
    draw = partial(puzzles.draw_countdown_max, num_numbers=num_numbers, max_number=max_number)
    return draw_problems("countdown-max", draw, count, seed, split, distinct)


def addition_problems(
    count: int, *, seed: int, split: Split = "train", distinct: bool = False, digits: int = 3
) -> list[Problem]:
    """`count` sums of two numbers with exactly `digits` digits, such as `123+456=`.

    An answer is the sum, with or without a scratchpad (`check_addition`, `addition_solutions`). `digits` lies
    in 1..18; other arguments and errors as in `countdown_problems`.
    """
    if not 1 <= digits <= 18:
        raise ValueError(f"digits must lie in 1..18, got {digits}")
    draw = partial(puzzles.draw_addition, digits=digits)
    return draw_problems("addition", draw, count, seed, split, distinct)


def cipher_problems(
    count: int, *, seed: int, split: Split = "train", distinct: bool = False, length: int = 15, table: int = 0
) -> list[Problem]:
    """`count` problems of the revision cipher, such as `314159265358979` (see `tasks.cipher`).

    Args:
        count: number of problems.
        seed: seed of the sampling.
        split: by a hash of the question (`is_held_out`).
        distinct: keep each question once.
        length: digits per question, 1..64.
        table: number of the table, 0..2.

    Raises:
        ValueError: an argument is out of range.
    """
    if not 1 <= length <= 64:
        raise ValueError(f"length must lie in 1..64, got {length}")
    if table not in range(CIPHER_TABLES):
        raise ValueError(f"table must lie in 0..{CIPHER_TABLES - 1}, got {table}")
    draw = partial(draw_cipher, length=length, table=table)
    return draw_problems(cipher_source(table), draw, count, seed, split, distinct)


def results_first_problems(
    count: int, *, seed: int, split: Split = "train", distinct: bool = False, sums: int = 4, digits: int = 3
) -> list[Problem]:
    """`count` problems whose results come before their working, such as `3:1;4|1:6;5|`.

    See `tasks.results_first`.

    Args:
        count: number of problems.
        seed: seed of the sampling.
        split: by a hash of the question (`is_held_out`).
        distinct: keep each question once.
        sums: sums per question, 1..16.
        digits: digits per sum, 2..5.

    Raises:
        ValueError: an argument is out of range.
    """
    for name, value, least, most in (("sums", sums, 1, 16), ("digits", digits, LEAST_DIGITS, MOST_DIGITS)):
        if not least <= value <= most:
            raise ValueError(f"{name} must lie in {least}..{most}, got {value}")
    draw = partial(draw_results_first, sums=sums, digits=digits)
    return draw_problems(RESULTS_FIRST, draw, count, seed, split, distinct)
