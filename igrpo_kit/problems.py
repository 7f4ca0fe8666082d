"""Problem sets: drawn, or read from a file; and how an answer is checked where that can be exact.

| from                         | source                                   | checked by                       |
|------------------------------|------------------------------------------|----------------------------------|
| `countdown_problems`, ...    | `countdown`, `countdown-max`, `addition` | `verify`, exactly: see `puzzles` |
| `reasoning_gym_problems`     | `reasoning-gym/<dataset>`                | `verify`, by its own scorer      |
| `presets.load_preset` (hub)  | the preset's name                        | `grading.Grader`                 |
| `load_problems` (JSONL, CSV) | what the file says                       | whichever fits the source        |

`python -m igrpo_kit.problems data/problems` draws the sets that lie in `data/problems/` anew.
"""

import csv
import json
import random
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from igrpo_kit import puzzles
from igrpo_kit.grading import Grade, extract_answer
from igrpo_kit.puzzles import Verdict

Split = Literal["train", "held_out"]


@dataclass(frozen=True)
class Problem:
    """One question with its reference answer; `source` says where it is from and so how it is checked."""

    id: str
    question: str
    answer: str
    source: str


# ---------------------------------------------------------------- drawing


def _draw_problems(
    source: str,
    draw: Callable[[random.Random], tuple[str, str]],
    count: int,
    seed: int,
    split: Split,
    distinct: bool,
) -> list[Problem]:
    """`count` problems from one side of the hash split, drawn with replacement unless `distinct`."""
    if count < 1:
        raise ValueError(f"count must be >= 1, got {count}")
    if split not in ("train", "held_out"):
        raise ValueError(f"split must be 'train' or 'held_out', got {split!r}")
    rng, drawn, seen, misses = random.Random(seed), list[tuple[str, str]](), set[str](), 0
    while len(drawn) < count:
        question, answer = draw(rng)
        if puzzles.is_held_out(question) != (split == "held_out") or (distinct and question in seen):
            misses += 1
            if misses > 20_000:
                raise ValueError(
                    f"count: asked for {count} {source} problems on the {split} side, but after {len(drawn)} "
                    "there was nothing new in 20,000 draws"
                )
            continue
        drawn.append((question, answer))
        seen.add(question)
        misses = 0
    return [Problem(f"{source}/{split}-{seed}-{i}", q, a, source) for i, (q, a) in enumerate(drawn)]


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

    Reach the target (0..99) with + - *, each number used exactly once, no brackets. The answer is one
    solution; `countdown_solutions` lists all. `split` is a hash of the question (`is_held_out`). Draws are
    independent, so questions repeat (of three numbers up to 9 there are 5,765 for training and 631 held
    out); `distinct=True` keeps each once, as an evaluation wants it.

    Raises ValueError naming the argument, also if there are not `count` distinct questions.
    """
    _check_numbers(num_numbers, max_number)
    draw = partial(puzzles.draw_countdown, num_numbers=num_numbers, max_number=max_number)
    return _draw_problems("countdown", draw, count, seed, split, distinct)


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

    The reward of an expression is value / best, in [0, 1]; the answer is one expression of the best value.
    Raises ValueError as `countdown_problems`.
    """
    _check_numbers(num_numbers, max_number)
    draw = partial(puzzles.draw_countdown_max, num_numbers=num_numbers, max_number=max_number)
    return _draw_problems("countdown-max", draw, count, seed, split, distinct)


def addition_problems(
    count: int, *, seed: int, split: Split = "train", distinct: bool = False, digits: int = 3
) -> list[Problem]:
    """`count` sums of two numbers of exactly `digits` digits, such as `123+456=`.

    An answer is the sum, after a scratchpad or without one (`check_addition`, `addition_solutions`).
    Raises ValueError naming the argument, also if there are not `count` distinct questions.
    """
    if not 1 <= digits <= 18:
        raise ValueError(f"digits must lie in 1..18, got {digits}")
    draw = partial(puzzles.draw_addition, digits=digits)
    return _draw_problems("addition", draw, count, seed, split, distinct)


# ---------------------------------------------------------------- reasoning-gym

GYM_DATASETS = (
    "basic_arithmetic",
    "chain_sum",
    "gcd",
    "gsm_symbolic",
    "lcm",
    "leg_counting",
    "products",
    "simple_equations",
)
"""The reasoning-gym datasets used here: every answer is one number, and the scorer reads nothing else of an
entry. Others need the entry's metadata, and some put the model's text through `eval`: those are refused."""

_GYM_SOURCES = {f"reasoning-gym/{dataset}": dataset for dataset in GYM_DATASETS}
_GYM_SIZE = 100_000  # virtual: entries are made when asked for, and do not depend on the size
_GYM_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]{0,30}|[1-9][0-9]{0,2}(?:,[0-9]{3}){1,10})(?:\.[0-9]{1,30})?")


@lru_cache
def _gym(dataset: str, config: tuple[tuple[str, Any], ...] = ()) -> Any:
    if dataset not in GYM_DATASETS:
        raise ValueError(f"dataset: {dataset!r} is not one of {', '.join(GYM_DATASETS)}")
    try:
        import reasoning_gym  # optional: in the [train] extra
    except ImportError as error:
        raise ImportError("reasoning-gym is not installed: pip install reasoning-gym") from error
    return reasoning_gym.create_dataset(dataset, **{"size": _GYM_SIZE, "seed": 0, **dict(config)})


def _check_gym(dataset: str, gold: str, answer: str) -> Verdict:
    """reasoning-gym's own scorer, made binary (Eq. 6).

    It gives 0.01 or a share for wrong answers; normalised within a group of failures, such crumbs would
    become full advantages. It also takes the first number of a text, or a text that contains the gold:
    so it is handed one plain number or nothing.
    """
    answer = answer.replace(r"\$", "").strip().strip("$").strip()
    if not _GYM_NUMBER.fullmatch(answer):
        return 0.0, "unparsed_answer"
    score = _gym(dataset).score_answer(answer.replace(",", ""), {"answer": gold})
    return (1.0, "correct") if score == 1.0 else (0.0, "incorrect")


def reasoning_gym_problems(
    dataset: str, count: int, *, seed: int, split: Split = "train", **config: Any
) -> list[Problem]:
    """`count` different problems of a reasoning-gym dataset (one of `GYM_DATASETS`), such as `gsm_symbolic`.

    `config` goes to reasoning-gym, e.g. `max_terms=3` for `chain_sum`. The split is the hash of the question.
    Left out are repeated questions and entries whose own answer its scorer rejects (the few negative
    answers of `gsm_symbolic`, which it cannot read).

    Raises ValueError for an unknown dataset or a count that does not come together, ImportError without
    the package.
    """
    entries = _gym(dataset, (*sorted(config.items()), ("seed", seed)))
    source, indices = f"reasoning-gym/{dataset}", iter(range(_GYM_SIZE))

    def draw(_: random.Random) -> tuple[str, str]:
        for index in indices:
            entry = entries[index]
            if _check_gym(dataset, entry["answer"], entry["answer"])[0] == 1.0:
                return entry["question"], entry["answer"]
        raise ValueError(f"count: reasoning-gym's {dataset} has not {count} different {split} questions")

    return _draw_problems(source, draw, count, seed, split, distinct=True)


# ---------------------------------------------------------------- checking

_EXACT: dict[str, Callable[[str, str], Verdict]] = {
    "countdown": puzzles.check_countdown,
    "countdown-max": puzzles.check_countdown_max,
    "addition": puzzles.check_addition,
}
_OPENED = re.compile(r"\\(?:boxed|fbox)\s*\{|<answer>")


def has_exact_verifier(source: str) -> bool:
    """Whether `verify` can check problems of this source; the others need a `grading.Grader`."""
    return source in _EXACT or source in _GYM_SOURCES


def _written_answer(completion: str) -> str:
    answer = extract_answer(completion)
    if answer is None:
        answer = "" if _OPENED.search(completion) else completion
    return answer


def answer_of(problem: Problem, completion: str) -> str | None:
    """What a completion answers, for a majority vote: the text that its problem's verifier or grader judges.

    White space around it and, for `addition`, the scratchpad before the last `=` are left out. None where
    there is no answer.
    """
    exact = has_exact_verifier(problem.source)
    answer = _written_answer(completion) if exact else extract_answer(completion) or ""
    if problem.source == "addition":
        answer = answer.rpartition("=")[2]
    return answer.strip() or None


def verify(problem: Problem, completion: str) -> Verdict:
    """(reward, status) of a completion, by the exact verifier of the problem's source.

    The answer is what `extract_answer` finds (the last `\\boxed{}`, else the last `<answer>`); in a text
    with neither it is the whole text, which is how a tiny policy answers. An answer slot that was opened
    and not closed is `no_answer`.

    Raises ValueError if the source has no exact verifier or the question is not one of its kind.
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
    return _check_gym(_GYM_SOURCES[problem.source], problem.answer, answer)


@runtime_checkable
class SupportsGrading(Protocol):
    """What is asked of a grader: `grading.Grader`, or a scripted one."""

    def grade(self, golds: Sequence[str], completions: Sequence[str]) -> list[Grade]:
        """One grade per row."""


def check_golds(problems: Sequence[Problem], grader: SupportsGrading) -> dict[str, str]:
    """The problems whose reference answer is not even accepted for itself: {id: status}; empty is good.

    Such a problem gives every completion the same reward, so run this once on every new problem set.
    Procedural sources are checked by `verify`, all others by the grader.
    """
    graded = [p for p in problems if not has_exact_verifier(p.source)]
    grades = grader.grade([p.answer for p in graded], [f"<answer>{p.answer}</answer>" for p in graded])
    statuses: dict[str, str] = {p.id: grade.status for p, grade in zip(graded, grades, strict=True)}
    statuses |= {p.id: verify(p, p.answer)[1] for p in problems if has_exact_verifier(p.source)}
    return {p.id: statuses[p.id] for p in problems if statuses[p.id] != "correct"}


# ---------------------------------------------------------------- files


def problem_from_row(row: Any, where: str, default_source: str) -> Problem:
    """A row as a Problem; ValueError, beginning with `where`, if a field is missing, empty or no string."""
    if not isinstance(row, Mapping):
        raise ValueError(f"{where}: expected an object with id, question, answer, got {type(row).__name__}")
    row = {"source": default_source} | dict(row)
    values = []
    for name in (f.name for f in fields(Problem)):
        if row.get(name) is None:
            raise ValueError(f"{where}: no {name!r}; there is {', '.join(map(repr, row))}")
        if not isinstance(row[name], str):
            raise ValueError(f"{where}: {name} must be a string, got {row[name]!r}")
        if not row[name].strip():
            raise ValueError(f"{where}: {name} is empty")
        values.append(row[name])
    return Problem(*values)


def _jsonl_rows(text: str, path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield f"{path}, line {number}", json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}, line {number}: not JSON ({error})") from error


def _csv_rows(text: str, path: Path) -> Iterator[tuple[str, Any]]:
    reader = csv.DictReader(text.splitlines(keepends=True), strict=True)
    try:
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if None in row:
                raise ValueError(f"{where}: more cells than columns")
            yield where, row
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.reader.line_num}: not CSV ({error})") from error


def load_problems(path: str | Path) -> list[Problem]:
    """The problems of a `.jsonl` file (one object a line) or a `.csv` file (with a header), UTF-8.

    Columns: `id`, `question`, `answer`, and optionally `source` (else the file's name); others are ignored.

    Raises ValueError naming file and line: not JSON or CSV, a missing column, a value that is empty or not
    a string, a repeated id; and for a file without problems or of another kind.
    """
    path = Path(path)
    readers = {".jsonl": _jsonl_rows, ".csv": _csv_rows}
    if path.suffix not in readers:
        raise ValueError(f"{path}: expected a .jsonl or .csv file")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error})") from error
    problems, seen = [], dict[str, str]()
    for where, row in readers[path.suffix](text, path):
        problem = problem_from_row(row, where, path.stem)
        if problem.id in seen:
            raise ValueError(f"{where}: id {problem.id!r} was used before, in {seen[problem.id]}")
        seen[problem.id] = where
        problems.append(problem)
    if not problems:
        raise ValueError(f"{path}: no problems in it")
    return problems


def save_problems(problems: Iterable[Problem], path: str | Path) -> None:
    """Write problems as JSONL, the same bytes for the same problems. Raises ValueError for a repeated id."""
    problems = list(problems)
    repeated = [id for id, times in Counter(p.id for p in problems).items() if times > 1]
    if repeated:
        raise ValueError(f"problems: repeated ids {repeated[:5]}")
    lines = "".join(json.dumps(asdict(p), ensure_ascii=False) + "\n" for p in problems)
    Path(path).write_bytes(lines.encode())


# ---------------------------------------------------------------- the sets in data/problems/

SHIPPED: dict[str, Callable[[], list[Problem]]] = {
    "countdown-train": partial(countdown_problems, 1000, seed=0, distinct=True),
    "countdown-held-out": partial(countdown_problems, 256, seed=0, split="held_out", distinct=True),
    "countdown-max-held-out": partial(countdown_max_problems, 256, seed=0, split="held_out", distinct=True),
    "addition-held-out": partial(addition_problems, 256, seed=0, split="held_out", distinct=True),
    "gsm-symbolic-train": partial(reasoning_gym_problems, "gsm_symbolic", 500, seed=0),
    "gsm-symbolic-held-out": partial(reasoning_gym_problems, "gsm_symbolic", 200, seed=0, split="held_out"),
}
"""What lies in `data/problems/`, and how each set is drawn."""


def write_shipped(folder: str | Path) -> None:
    """Draw the shipped sets anew into `folder`: the same bytes each time."""
    for name, draw in SHIPPED.items():
        save_problems(draw(), Path(folder) / f"{name}.jsonl")


if __name__ == "__main__":
    write_shipped(*sys.argv[1:])
