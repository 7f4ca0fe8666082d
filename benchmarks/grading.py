"""How fast completions are graded, and what hostile ones among them cost: `python -m benchmarks.grading`.

The mix is our guess at a competition set. Of 100 golds 60 are integers, 14 fractions or decimals, 26 other
things: 8 roots and multiples of pi, 7 points, intervals and sets, 6 polynomials, 5 words, units and matrices.
Of 100 completions 65 are right, half of them written differently from the gold; 27 are wrong, 4 cut off in
their last box, and 4 without one. Each answer ends 1,500 characters of reasoning that quote a draft's box.

No gold comes twice, so neither the cache nor the grouping by gold helps. A rollout, with many completions
for each gold, is faster.
"""

import os
import random
import time
from collections import Counter

from benchmarks._record import record
from igrpo_kit.tasks.grading.extraction import extract_answer
from igrpo_kit.tasks.grading.grader import Grader, _bare, _bare_gold, _decide
from igrpo_kit.tasks.grading.pool import Pair

COUNT, WORKERS = 1000, 2
DEVICE = f"{WORKERS} workers on {os.cpu_count()} cores"
DRAFT = "The draft says \\boxed{%d}; we check each of its steps in turn. "
REASONING = DRAFT + "So far so good. " * 90
HOSTILE = [
    "9^9^9^9",
    "9^{9^{9^9}}",
    "2^{1000000000}",
    "99999999!",
    "(10^9)!",
    "((5!)!)!",
    "(9^9)!",
    "{" * 40 + "1" + "}" * 40,
    "(" * 40 + "1" + ")" * 40,
    r"\frac{1}{" * 19 + "2" + "}" * 19,
    r"\sum_{i=1}^{1000000000} \frac{1}{i}",
    r"\binom{10^9}{5\cdot 10^8}",
    r"\binom{10^8}{5\cdot 10^7}",
    "e^{e^{e^{e^{e}}}}",
    "e^{e^{e^{e^{e^{e}}}}}",
    r"\int \frac{1}{x^{100}+1} dx",
    "(x+y+z+w)^{999}",
    "1+" * 500_000 + "1",
    "\0" * 10**6,
    "__import__('os').system('sleep 60')",
]


def integer(n: int) -> tuple[str, str, str]:
    """A gold made from n; the same, written differently; another answer."""
    return f"{n}", f"{n:,}", f"{n + 1}"


def fraction(n: int) -> tuple[str, str, str]:
    if n % 3 == 0:
        return f"{n}.5", rf"\frac{{{2 * n + 1}}}{{2}}", f"{n}.25"
    return rf"\frac{{{n}}}{{{n + 1}}}", rf"\dfrac{{{2 * n}}}{{{2 * n + 2}}}", f"{n + 2}/{n + 1}"


def root(n: int) -> tuple[str, str, str]:
    if n % 2:
        return rf"{n}\pi", rf"\pi \cdot {n}", rf"\frac{{{n}\pi}}{{2}}"
    return rf"{n}\sqrt{{3}}", rf"\sqrt{{{3 * n * n}}}", rf"{n}\sqrt{{2}}"


def collection(n: int) -> tuple[str, str, str]:
    return [
        (f"({n},{n + 2})", rf"\left({n}, {n + 2}\right)", f"({n},{n + 1})"),
        (rf"[{n},\infty)", rf"\left[{n}, \infty\right)", rf"({n},\infty)"),
        (f"{n},{n + 3}", rf"\{{{n + 3}, {n}\}}", f"{n},{n + 2}"),
    ][n % 3]


def polynomial(n: int) -> tuple[str, str, str]:
    return f"x^2-{n * n}", f"(x-{n})(x+{n})", f"(x-{n})(x+{n + 1})"


def other(n: int) -> tuple[str, str, str]:
    matrix = r"\begin{pmatrix}%d\\%d\end{pmatrix}"
    return [
        (rf"\text{{Player {n}}}", rf"\textbf{{Player {n}}}", rf"\text{{Team {n}}}"),
        (rf"{n}^\circ", f"{n}", rf"{n + 1}^\circ"),
        (matrix % (n, 2), (matrix % (n, 2)).replace("pmatrix", "bmatrix"), matrix % (2, n)),
    ][n % 3]


KINDS = {integer: 60, fraction: 14, root: 8, collection: 7, polynomial: 6, other: 5}


def ordinary(count: int, seed: int) -> tuple[list[str], list[str], Counter[str]]:
    """Golds, completions, and how many of each status they must get. Other seeds draw other numbers."""
    rng = random.Random(seed)
    numbers = rng.sample(range(count * seed + 1000, count * (seed + 1) + 1000), count)
    golds, completions, expected = [], [], Counter[str]()
    for n, kind in zip(numbers, rng.choices(list(KINDS), KINDS.values(), k=count), strict=True):
        gold, same, wrong = kind(n)
        answers = {
            f"\\boxed{{{gold}}}": 33,
            f"\\boxed{{{same}}}": 32,
            f"\\boxed{{{wrong}}}": 27,
            "\\boxed{1": 4,
            "": 4,
        }
        answer = rng.choices(list(answers), answers.values())[0]
        golds.append(gold)
        completions.append(REASONING % (n + 7) + answer if answer else REASONING.replace("\\boxed", "") % n)
        ending = answer.removeprefix("\\boxed{").removesuffix("}")
        status = "correct" if ending in (gold, same) else "incorrect" if ending == wrong else "no_answer"
        expected[status] += 1
    return golds, completions, expected


def shares(golds: list[str], completions: list[str]) -> dict[str, float]:
    """The share of rows that end in extraction, in the numeric fast path, and in a worker."""
    paths: Counter[str] = Counter()
    for gold, completion in zip(golds, completions, strict=True):
        answer = extract_answer(completion)
        if answer is None:
            paths["no_answer"] += 1
        else:
            paths["numeric" if _decide(Pair(_bare_gold(gold), _bare(answer))) else "worker"] += 1
    return {path: round(number / len(golds), 3) for path, number in paths.items()}


def seconds(grader: Grader, golds: list[str], completions: list[str], expected: Counter[str]) -> float:
    """Seconds that one call takes. Raises AssertionError if its verdicts are wrong."""
    start = time.perf_counter()
    grades = grader.grade(golds, completions)
    elapsed = time.perf_counter() - start
    assert Counter(grade.status for grade in grades[: expected.total()]) == expected
    return elapsed


def measure_ordinary() -> None:
    """One grader, warm; every sample is a thousand rows it has not seen."""
    with Grader(WORKERS) as grader:
        seconds(grader, *ordinary(COUNT, seed=1))
        samples = [COUNT / seconds(grader, *ordinary(COUNT, seed)) for seed in range(2, 11)]
    record("grading_per_second", samples, device=DEVICE, shares=shares(*ordinary(COUNT, seed=2)[:2]))


def measure_with_hostile() -> None:
    """A cold grader for each sample, which is mostly the time limits of what does not end."""
    samples = []
    for seed in range(20, 26):
        golds, completions, expected = ordinary(COUNT, seed)
        golds += ["17"] * len(HOSTILE)
        completions += [f"\\boxed{{{text}}}" for text in HOSTILE]
        with Grader(WORKERS) as grader:
            samples.append(seconds(grader, golds, completions, expected))
    record("grading_with_hostile_seconds", samples, device=DEVICE, ordinary=COUNT, hostile=len(HOSTILE))


if __name__ == "__main__":
    measure_ordinary()
    measure_with_hostile()
