"""Supervised fine-tuning: makes the policies from which reinforcement learning starts.

*Pretraining* trains an untrained tiny Llama on one task. `python -m igrpo_kit.training.sft countdown FOLDER`
reproduces the committed policy `tiny` in about a minute on one thread. Part of each batch contains drafts
sampled from the model during training, so that the refinement prompt is familiar when Stage 2 begins.

A *warm start* trains a language model on the form of an answer and stops early. SmolLM2-135M-Instruct neither
solves sums of three numbers nor ends with an answer that can be graded, so under GRPO every group would be
dead. After a few dozen steps on worked solutions, the model writes answers in this form and solves some of
the problems, which leaves room for reinforcement learning. These solutions contain no drafts.
"""

import argparse
import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from igrpo_kit.core.data import models_path, place_when_complete
from igrpo_kit.core.prompts import PAPER_FORMAT, PromptFormat
from igrpo_kit.policies.gguf import fetch_smollm2
from igrpo_kit.policies.load import load_policy
from igrpo_kit.policies.log_probs import completion_log_probs
from igrpo_kit.policies.policy import DRAFT_AFTER, DRAFT_BEFORE, SHIFTED, TINY_VERDICTS, Policy
from igrpo_kit.policies.samplers.encoding import encode_answers, encode_prompts
from igrpo_kit.policies.samplers.hf import HFSampler
from igrpo_kit.policies.samplers.sampler import SamplingSettings
from igrpo_kit.policies.tiny import tiny_model, tiny_tokenizer
from igrpo_kit.tasks import cipher, puzzles, results_first
from igrpo_kit.tasks.sets.gym import sum_problems
from igrpo_kit.training.optimization import make_optimizer, set_learning_rate, supervised_step, warm_up

BATCH, LEARNING_RATE, WARMUP = 32, 3e-3, 50
REFRESH_AT = (0.4, 0.6, 0.8)
"""fractions of the steps at which the pool of own drafts is resampled; there are none before the first"""


@dataclass(frozen=True)
class Task:
    """A pretraining task: questions, target answers, and the format of drafts."""

    draw: Callable[[random.Random], str]
    answer: Callable[[str, random.Random], str]
    prompt_format: PromptFormat
    own_draft: float
    """fraction of drafts that answer the same question; the others answer a different question, so that the
    model sees drafts without learning to copy them"""
    max_new_tokens: int
    steps: int = 1200
    revise: Callable[[str, random.Random], tuple[str, str]] | None = None
    """question -> a draft and its target answer, for half of each batch; None: drafts come from the model"""
    check: Callable[[str, str], puzzles.Check] | None = None
    """if given, only drafts of the model that it finds wrong are shown"""
    verdicts: bool = False
    """whether a quarter of each batch asks for a verdict on an answer, half of them on correct answers"""


def _countdown_answer(question: str, rng: random.Random) -> str:
    return rng.choice(puzzles.countdown_solutions(*puzzles.parse_countdown(question)))


def _addition_answer(question: str, rng: random.Random) -> str:
    direct, scratchpad = puzzles.addition_solutions(question)
    return scratchpad if rng.random() < 0.5 else direct


def _feasible_expression(question: str, rng: random.Random) -> str:
    """Any expression within the limit, not only the best, which leaves room for improvement."""
    numbers, limit = puzzles.parse_countdown(question)
    values = puzzles.countdown_values(numbers)
    return rng.choice(values[rng.choice([v for v in values if 0 <= v <= limit])])


def _not_held_out(draw: Callable[[random.Random], tuple[str, str]]) -> Callable[[random.Random], str]:
    def question(rng: random.Random) -> str:
        while puzzles.is_held_out(drawn := draw(rng)[0]):
            pass
        return drawn

    return question


_COUNTDOWN = Task(
    _not_held_out(lambda rng: puzzles.draw_countdown(rng, 3, 9)), _countdown_answer, DRAFT_BEFORE, 0.0, 12
)
TASKS = {
    "countdown": _COUNTDOWN,
    "countdown-after": replace(_COUNTDOWN, prompt_format=DRAFT_AFTER),
    "countdown-verdicts": replace(_COUNTDOWN, steps=1600, verdicts=True),
    "addition": Task(
        _not_held_out(lambda rng: puzzles.draw_addition(rng, 3)),
        _addition_answer,
        DRAFT_AFTER,
        own_draft=1.0,
        max_new_tokens=24,
        steps=700,
    ),
    "max": Task(
        _not_held_out(lambda rng: puzzles.draw_countdown_max(rng, 4, 9)),
        _feasible_expression,
        DRAFT_BEFORE,
        0.0,
        16,
    ),
}


CIPHER_LENGTHS, CIPHER_BLOCKS = (8, 12, 15, 19), 6
"""digits of an answer, which set how rare a correct one is; and pairs of a table and a warm start"""
CIPHER_KINDS = {"": DRAFT_BEFORE, "after-": DRAFT_AFTER, "fresh-": DRAFT_BEFORE, "shifted-": SHIFTED}
"""the two template orders, and controls: no skill to repair a draft, nothing shared by q and q'"""


def _cipher_task(kind: str, length: int, table: int) -> Task:
    def answer(question: str, rng: random.Random) -> str:
        return cipher.noisy_answer(question, table, rng)

    def revise(question: str, rng: random.Random) -> tuple[str, str]:
        draft = answer(question, rng)
        if kind == "fresh-":
            return draft, answer(question, rng)
        return draft, cipher.revised_answer(question, draft, table, rng)

    draw = _not_held_out(lambda rng: cipher.draw_cipher(rng, length, table))
    return Task(draw, answer, CIPHER_KINDS[kind], 1.0, length + 1, steps=900, revise=revise)


def cipher_policy(length: int, block: int, kind: str = "") -> str:
    """Name of a policy that is warm-started on the revision cipher, such as `cipher-after-16-0`."""
    return f"cipher-{kind}{length}-{block}"


def prepare_cipher(length: int, block: int, kind: str = "") -> Path:
    """The directory of a warm-started cipher policy, created on the first call (about a minute).

    Block b has table b % 3; blocks 3 to 5 are second warm starts on the same tables.

    Args:
        length: digits of an answer.
        block: 0..5.
        kind: of `CIPHER_KINDS`.
    """
    task = _cipher_task(kind, length, block % cipher.CIPHER_TABLES)
    return _prepare(cipher_policy(length, block, kind), task, seed=block)


def _prepare(name: str, task: Task, seed: int) -> Path:
    """The directory of a policy that is pretrained on a task, created on the first call."""
    target = models_path() / name
    if target.is_dir():
        return target
    *_, (policy, _) = tqdm(pretrain(task, seed=seed), total=task.steps, unit="step", desc=name)
    with place_when_complete(target) as work:
        policy.save(work)
    return target


TASKS["cipher"] = _cipher_task("", 19, 0)
"""the policy `tiny-cipher` of the demo; equal to `prepare_cipher(19, 0)`"""


RESULTS_FIRST_SHAPES, RESULTS_FIRST_BLOCKS = ((4, 3),), 3
"""(sums, digits) of the questions, and warm starts of each"""


def _results_first_task(sums: int, digits: int) -> Task:
    return Task(
        _not_held_out(lambda rng: results_first.draw_results_first(rng, sums, digits)),
        lambda question, rng: results_first.results_first_answer(question),
        DRAFT_BEFORE,
        own_draft=1.0,
        max_new_tokens=results_first_length(sums, digits),
        steps=1000,
        check=results_first.check_results_first,
    )


def results_first_length(sums: int, digits: int) -> int:
    """Tokens of an answer of the tiny policy, with the end token."""
    return sums * (3 * digits - 2) + 2


def results_first_policy(sums: int, digits: int, block: int) -> str:
    """Name of a policy that writes results before their working, such as `results-first-4x3-0`."""
    return f"{results_first.RESULTS_FIRST}-{sums}x{digits}-{block}"


def prepare_results_first(sums: int, digits: int, block: int) -> Path:
    """The directory of a policy that writes results first, created on the first call (about two minutes).

    It is trained on questions and, in the last part, on questions with an own wrong draft in half of each
    batch; the target is always the correct answer. So no skill to repair a draft is planted.

    Args:
        sums: sums per question.
        digits: digits per sum.
        block: the seed of the warm start.
    """
    return _prepare(results_first_policy(sums, digits, block), _results_first_task(sums, digits), seed=block)


class _Batches:
    """Padded question-answer batches; once there is a pool of drafts, half of the rows contain a draft."""

    def __init__(self, task: Task, policy: Policy, seed: int) -> None:
        self.task, self.policy, self.rng = task, policy, random.Random(seed)
        self.sampler = HFSampler(policy, SamplingSettings(task.max_new_tokens), seed=seed)
        self.pool: list[tuple[str, str]] = []

    def refresh(self, questions: int = 1024, drafts: int = 4) -> None:
        drawn = [self.task.draw(self.rng) for _ in range(questions)]
        prompts = [self.policy.prompt_format.problem_messages(q) for q in drawn]
        texts = self.sampler.sample(prompts, drafts).texts
        pool = [(drawn[i // drafts], text) for i, text in enumerate(texts)]
        check = self.task.check
        self.pool = pool if check is None else [row for row in pool if check(*row)[0] < 1]

    def _row(self, with_draft: bool) -> tuple[list[dict[str, str]], str]:
        form = self.policy.prompt_format
        if with_draft and self.task.revise is not None:
            question = self.task.draw(self.rng)
            draft, answer = self.task.revise(question, self.rng)
            return form.refinement_messages(question, draft), answer
        if not with_draft:
            question = self.task.draw(self.rng)
            return form.problem_messages(question), self.task.answer(question, self.rng)
        question, draft = self.rng.choice(self.pool)
        if self.rng.random() >= self.task.own_draft:
            draft = self.rng.choice(self.pool)[1]
        return form.refinement_messages(question, draft), self.task.answer(question, self.rng)

    def _verdict_row(self) -> tuple[list[dict[str, str]], str]:
        """The prompt for a verdict on an expression of the question's numbers, and the correct verdict."""
        question = self.task.draw(self.rng)
        numbers, target = puzzles.parse_countdown(question)
        values = puzzles.countdown_values(numbers)
        others = [value for value in values if 0 <= value <= 99 and value != target]
        correct = self.rng.random() < 0.5 or not others
        expression = self.rng.choice(values[target if correct else self.rng.choice(others)])
        messages = TINY_VERDICTS.prompt.refinement_messages(question, expression)
        return messages, TINY_VERDICTS.correct if correct else TINY_VERDICTS.incorrect

    def next(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids [BATCH, L] and labels of the same shape, -100 for tokens without loss."""
        asked = BATCH // 4 if self.task.verdicts else 0
        drafts = bool(self.pool) or self.task.revise is not None
        rows = [self._row(drafts and i < BATCH // 2) for i in range(BATCH - asked)]
        rows += [self._verdict_row() for _ in range(asked)]
        tokenizer: Any = self.policy.tokenizer
        prompts = encode_prompts(tokenizer, [messages for messages, _ in rows])
        answers = tokenizer(
            [answer + tokenizer.eos_token for _, answer in rows], add_special_tokens=False
        ).input_ids
        length = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
        ids = torch.full((BATCH, length), tokenizer.pad_token_id)
        labels = torch.full((BATCH, length), -100)
        for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            end = len(prompt) + len(answer)
            ids[i, :end] = torch.tensor(prompt + answer)
            labels[i, len(prompt) : end] = torch.tensor(answer)
        return ids, labels


def pretrain(task: Task, *, seed: int = 0, steps: int | None = None) -> Iterator[tuple[Policy, float]]:
    """Train an untrained tiny model on one task.

    Args:
        task: questions and target answers.
        seed: of the initial weights and the batches.
        steps: number of steps; None uses `task.steps`.

    Yields:
        The policy (the same object each time) and the loss in nats per answer token, after every step.
    """
    steps = task.steps if steps is None else steps
    tokenizer = tiny_tokenizer()
    policy = Policy("tiny", tiny_model(tokenizer, seed), tokenizer, task.prompt_format)
    optimizer = make_optimizer(policy.model, weight_decay=0.01, betas=(0.9, 0.98))
    batches = _Batches(task, policy, seed)
    refresh_at = {round(share * steps) for share in REFRESH_AT}
    policy.model.train()
    for step in range(steps):
        if step in refresh_at and task.revise is None:
            batches.refresh()
        set_learning_rate(optimizer, LEARNING_RATE * warm_up(step + 1, WARMUP) * (1 - 0.9 * step / steps))
        ids, labels = batches.next()
        hidden = policy.model.model(input_ids=ids[:, :-1]).last_hidden_state
        learned = labels[:, 1:] != -100
        loss = cross_entropy(policy.model.lm_head(hidden[learned]), labels[:, 1:][learned])
        yield policy, supervised_step(policy.model, optimizer, loss)
    policy.model.eval()


def main(arguments: list[str] | None = None) -> None:
    """Pretrain one task, and save the policy with a record of its training."""
    parser = argparse.ArgumentParser(prog="python -m igrpo_kit.training.sft", description=__doc__)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    task, start = TASKS[options.task], perf_counter()
    with tqdm(pretrain(task, seed=options.seed), total=task.steps, unit="step") as bar:
        for policy, loss in bar:  # noqa: B007  (the last policy is the one)
            bar.set_postfix(loss=f"{loss:.3f}")
    policy.save(options.folder)
    record = {
        "command": f"python -m igrpo_kit.training.sft {options.task} FOLDER --seed {options.seed}",
        "parameters": sum(p.numel() for p in policy.model.parameters()),
        "steps": task.steps,
        "last_loss": round(loss, 4),
        "seconds": round(perf_counter() - start, 1),
        "torch": torch.__version__,
    }
    (options.folder / "record.json").write_text(json.dumps(record, indent=1) + "\n")


def worked_sum(question: str) -> str:
    """The target solution of a question `... 2 - 5 - 3 =`: `2 - 5 = -3, -3 - 3 = <answer>-6</answer>`.

    Raises:
        ValueError: the question is not a sum of three numbers.
    """
    found = re.search(r"(\d+) ([+-]) (\d+) ([+-]) (\d+) =$", question)
    if found is None:
        raise ValueError(f"question: not a sum of three numbers: {question!r}")
    a, first, b, second, c = found.groups()
    half = int(a) + int(first + b)
    return f"{a} {first} {b} = {half}, {half} {second} {c} = <answer>{half + int(second + c)}</answer>"


WARM_START_BATCH, WARM_START_LEARNING_RATE, WARM_START_WARMUP = 16, 3e-4, 5
PLAIN_FORMAT = PromptFormat(system=None, refinement=PAPER_FORMAT.refinement)
"""Only the question, with the draft in the paper's position; small models do not follow long instructions."""


def warm_start(
    policy: Policy,
    pairs: Sequence[tuple[str, str]],
    *,
    batch: int = WARM_START_BATCH,
    learning_rate: float = WARM_START_LEARNING_RATE,
) -> Iterator[float]:
    """Train on (question, answer) pairs, each once and in order.

    Args:
        policy: trained in place.
        pairs: questions and their target answers.
        batch: pairs per step.
        learning_rate: peak, reached after a short warm-up.

    Yields:
        The loss of each step, in nats per answer token.
    """
    model, tokenizer = policy.model, policy.tokenizer
    optimizer = make_optimizer(model)
    for step, start in enumerate(range(0, len(pairs), batch), start=1):
        rows = pairs[start : start + batch]
        prompts = encode_prompts(tokenizer, [policy.prompt_format.problem_messages(q) for q, _ in rows])
        ids, mask = encode_answers(tokenizer, [answer for _, answer in rows], model.device)
        set_learning_rate(optimizer, learning_rate * warm_up(step, WARM_START_WARMUP))
        loss = -completion_log_probs(model, prompts, ids, mask).sum() / mask.sum()
        yield supervised_step(model, optimizer, loss)


WARM_START_STEPS = 20
"""the first multiple of 10 at which a quarter of 96 samples on training problems was correct (33 samples)"""


def prepare_smollm2_sums() -> Path:
    """The directory of SmolLM2-135M after a warm start on `sum_problems`, created on the first call.

    Raises:
        RuntimeError: see `fetch_smollm2`.
    """
    target = models_path() / "smollm2-sums"
    if target.is_dir():
        return target
    policy = replace(load_policy(fetch_smollm2()), prompt_format=PLAIN_FORMAT)
    problems = sum_problems(WARM_START_STEPS * WARM_START_BATCH, seed=3)
    pairs = [(p.question, worked_sum(p.question)) for p in problems]
    losses = list(tqdm(warm_start(policy, pairs), total=WARM_START_STEPS, unit="step", desc="warm start"))
    with place_when_complete(target) as work:
        policy.save(work)
        record = {"steps": WARM_START_STEPS, "batch": WARM_START_BATCH, "losses": losses}
        record["learning_rate"] = WARM_START_LEARNING_RATE
        (work / "record.json").write_text(json.dumps(record, indent=1) + "\n")
    return target


if __name__ == "__main__":
    main()
