"""Natural tasks, screened: does a tiny policy repair own wrong drafts more often than it solves afresh?

`python -m igrpo_kit.experiments.regimes.screen` gives each task of `SCREEN` one warm start on correct
answers, without and with an own wrong draft (nothing that fixes parts of a draft). It then measures, with one
sample for each of `QUESTIONS` held-out questions: p on q; where that sample is wrong, a second sample on q
(`again`), a refinement of the wrong sample (`repair`), and a refinement of another question's wrong sample
(`foreign`); where it is right, a refinement of it (`keep`). A draft that helps has `repair` above both
`again` and `foreign`. Where the answer is unique, exact rates stand beside them. The record is
data/evaluations/natural-screen.json, written after each task; tasks that stand there are skipped.

One warm start each is a screen, not evidence.
"""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from time import process_time
from typing import Any

import torch
from tqdm.auto import tqdm

from igrpo_kit.analysis.stats.intervals import wilson_interval
from igrpo_kit.analysis.transfer import exact_row
from igrpo_kit.core.data import data_path
from igrpo_kit.core.rows import write_atomically
from igrpo_kit.policies.policy import DRAFT_AFTER, DRAFT_BEFORE
from igrpo_kit.policies.samplers.hf import HFSampler
from igrpo_kit.policies.samplers.sampler import Sampler, SamplingSettings
from igrpo_kit.tasks import puzzles, screened
from igrpo_kit.tasks.problem import Problem
from igrpo_kit.training.records import environment
from igrpo_kit.training.sft import Task, pretrain

QUESTIONS = 2048
COLUMNS, VARIABLES, CLAUSES, NUMBERS, CLUES = 80, 8, 32, 4, 6
SCREEN = {
    "carrying": Task(
        partial(screened.draw_columns, columns=COLUMNS),
        lambda question, rng: screened.carried(question),
        DRAFT_BEFORE,
        own_draft=1.0,
        max_new_tokens=COLUMNS + 2,
        steps=350,
        check=screened.check_carried,
    ),
    "countdown with values": Task(
        partial(screened.draw_shown, count=NUMBERS),
        screened.shown_solution,
        DRAFT_BEFORE,
        own_draft=1.0,
        max_new_tokens=24,
        steps=900,
        check=screened.check_shown,
    ),
    "sudoku, q then draft": Task(
        partial(screened.draw_sudoku, clues=CLUES),
        screened.sudoku_solution,
        DRAFT_AFTER,
        own_draft=1.0,
        max_new_tokens=17,
        steps=900,
        check=screened.check_sudoku,
    ),
    "3-SAT": Task(
        partial(screened.draw_clauses, variables=VARIABLES, clauses=CLAUSES),
        partial(screened.satisfying, variables=VARIABLES),
        DRAFT_BEFORE,
        own_draft=1.0,
        max_new_tokens=VARIABLES + 1,
        steps=350,
        check=partial(screened.check_assignment, variables=VARIABLES),
    ),
}
"""task -> its warm start; questions are split by their hash, as everywhere"""


def question_of(task: Task, rng: random.Random, *, held_out: bool) -> str:
    """A question of one side of the hash split."""
    while puzzles.is_held_out(question := task.draw(rng)) != held_out:
        pass
    return question


def held_out_questions(task: Task, count: int, seed: int) -> list[str]:
    """Different questions of the held-out tenth."""
    rng, found = random.Random(seed), dict[str, None]()
    while len(found) < count:
        found[question_of(task, rng, held_out=True)] = None
    return list(found)


def _rate(right: Sequence[bool]) -> dict[str, float | int] | None:
    """A proportion with Wilson's interval; None without trials."""
    if not right:
        return None
    interval = wilson_interval(sum(right), len(right))
    numbers = {"rate": interval.estimate, "low": interval.low, "high": interval.high}
    return {key: round(value, 5) for key, value in numbers.items()} | {"trials": len(right)}


def rates(
    sampler: Sampler, check: Callable[[str, str], puzzles.Check], questions: Sequence[str]
) -> dict[str, Any]:
    """The rates of the module's docstring, and `copy`: a wrong draft was written again."""
    form = sampler.policy.prompt_format

    def refined(rows: Sequence[int], drafts: Sequence[str]) -> list[str]:
        if not rows:
            return []
        pairs = zip(rows, drafts, strict=True)
        return sampler.sample([form.refinement_messages(questions[i], d) for i, d in pairs], 1).texts

    def right(rows: Sequence[int], texts: Sequence[str]) -> list[bool]:
        return [check(questions[i], text)[0] == 1 for i, text in zip(rows, texts, strict=True)]

    texts = sampler.sample([form.problem_messages(q) for q in questions], 2).texts
    first, second, everything = texts[::2], texts[1::2], range(len(questions))
    solved = right(everything, first)
    wrong, good = [i for i in everything if not solved[i]], [i for i in everything if solved[i]]
    drafts = [first[i] for i in wrong]
    repaired = refined(wrong, drafts)
    return {
        "p": _rate(solved),
        "again": _rate(right(wrong, [second[i] for i in wrong])),
        "repair": _rate(right(wrong, repaired)),
        "foreign": _rate(right(wrong, refined(wrong, drafts[-1:] + drafts[:-1]))),
        "keep": _rate(right(good, refined(good, [first[i] for i in good]))),
        "copy": _rate([a == b for a, b in zip(repaired, drafts, strict=True)]),
    }


def screen(task: Task, *, unique: bool) -> dict[str, Any]:
    """One warm start, and what it gave; exact rates too if answers are unique."""
    assert task.check is not None
    start = process_time()
    training = pretrain(replace(task, draw=partial(question_of, task, held_out=False)))
    *_, (policy, loss) = tqdm(training, total=task.steps, unit="step")
    questions, rng = held_out_questions(task, QUESTIONS, seed=1), random.Random(0)
    sampler = HFSampler(policy, SamplingSettings(task.max_new_tokens))
    found = {"steps": task.steps, "last_loss": round(loss, 3), **rates(sampler, task.check, questions)}
    if unique:
        problems = [Problem(q, q, task.answer(q, rng), "screen") for q in questions[:256]]
        found["exact"] = exact_row(sampler, problems)
    return {**found, "processor_seconds": round(process_time() - start), **environment("cpu")}


def main() -> None:
    """Screen the tasks that the record does not have yet."""
    torch.set_num_threads(1)
    path = data_path("evaluations/natural-screen.json")
    record = json.loads(path.read_text()) if path.exists() else {}
    for name, task in SCREEN.items():
        if name not in record:
            record[name] = screen(task, unique=name == "carrying")
            write_atomically(path, (json.dumps(record, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
