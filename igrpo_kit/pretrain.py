"""Teach a tiny Llama one task by supervised learning: the base that reinforcement learning starts from.

`python -m igrpo_kit.pretrain countdown data/policies/tiny` makes the committed policy again, in about a
minute on one thread. Part of the batches shows a draft, sampled from the model itself as it learns, so that
the refinement prompt is nothing new to it when Stage 2 begins.
"""

import argparse
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from igrpo_kit import puzzles
from igrpo_kit.policies import (
    DRAFT_AFTER,
    DRAFT_BEFORE,
    TINY_VERDICTS,
    Policy,
    tiny_model,
    tiny_tokenizer,
)
from igrpo_kit.prompts import PromptFormat
from igrpo_kit.samplers import SamplingSettings
from igrpo_kit.samplers.hf import HFSampler, encode_prompts

BATCH, LEARNING_RATE, WARMUP = 32, 3e-3, 50
REFRESH_AT = (0.4, 0.6, 0.8)
"""shares of the steps at which the pool of own drafts is drawn anew; before the first there are no drafts"""


@dataclass(frozen=True)
class Task:
    """What is learnt: questions, what a good answer to one is, and how drafts are shown."""

    draw: Callable[[random.Random], str]
    answer: Callable[[str, random.Random], str]
    prompt_format: PromptFormat
    own_draft: float
    """share of the drafts shown that answer the same question; the others answer another one, so that the
    model gets used to drafts without a habit of copying them"""
    max_new_tokens: int
    steps: int = 1200
    verdicts: bool = False
    """whether a quarter of each batch asks for a verdict on an answer, right or wrong with equal chance"""


def _countdown_answer(question: str, rng: random.Random) -> str:
    return rng.choice(puzzles.countdown_solutions(*puzzles.parse_countdown(question)))


def _addition_answer(question: str, rng: random.Random) -> str:
    direct, scratchpad = puzzles.addition_solutions(question)
    return scratchpad if rng.random() < 0.5 else direct


def _feasible_expression(question: str, rng: random.Random) -> str:
    """Any expression under the limit, not the best: there is something left to learn."""
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


class _Batches:
    """Question-answer rows, from some point on half of them with a draft, as padded ids and labels."""

    def __init__(self, task: Task, policy: Policy, seed: int) -> None:
        self.task, self.policy, self.rng = task, policy, random.Random(seed)
        self.sampler = HFSampler(
            policy.model, policy.tokenizer, SamplingSettings(task.max_new_tokens), seed=seed
        )
        self.pool: list[tuple[str, str]] = []

    def refresh(self, questions: int = 1024, drafts: int = 4) -> None:
        drawn = [self.task.draw(self.rng) for _ in range(questions)]
        prompts = [self.policy.prompt_format.problem_messages(q) for q in drawn]
        texts = self.sampler.sample(prompts, drafts).texts
        self.pool = [(drawn[i // drafts], text) for i, text in enumerate(texts)]

    def _row(self, with_draft: bool) -> tuple[list[dict[str, str]], str]:
        form = self.policy.prompt_format
        if not with_draft:
            question = self.task.draw(self.rng)
            return form.problem_messages(question), self.task.answer(question, self.rng)
        question, draft = self.rng.choice(self.pool)
        if self.rng.random() >= self.task.own_draft:
            draft = self.rng.choice(self.pool)[1]
        return form.refinement_messages(question, draft), self.task.answer(question, self.rng)

    def _verdict_row(self) -> tuple[list[dict[str, str]], str]:
        """An expression of the question's numbers, and whether it hits the target."""
        question = self.task.draw(self.rng)
        numbers, target = puzzles.parse_countdown(question)
        values = puzzles.countdown_values(numbers)
        others = [value for value in values if 0 <= value <= 99 and value != target]
        right = self.rng.random() < 0.5 or not others
        expression = self.rng.choice(values[target if right else self.rng.choice(others)])
        messages = TINY_VERDICTS.prompt.refinement_messages(question, expression)
        return messages, TINY_VERDICTS.right if right else TINY_VERDICTS.wrong

    def next(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids [BATCH, L] and labels of the same shape, -100 where nothing is to be learnt."""
        asked = BATCH // 4 if self.task.verdicts else 0
        rows = [self._row(bool(self.pool) and i < BATCH // 2) for i in range(BATCH - asked)]
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
    """Yield the policy, one object that learns, and the loss (nats per answer token) after every step."""
    steps = task.steps if steps is None else steps
    tokenizer = tiny_tokenizer()
    policy = Policy("tiny", tiny_model(tokenizer, seed), tokenizer, task.prompt_format)
    optimizer = torch.optim.AdamW(
        policy.model.parameters(), LEARNING_RATE, weight_decay=0.01, betas=(0.9, 0.98), fused=True
    )
    batches = _Batches(task, policy, seed)
    refresh_at = {round(share * steps) for share in REFRESH_AT}
    policy.model.train()
    for step in range(steps):
        if step in refresh_at:
            batches.refresh()
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1, (step + 1) / WARMUP) * (1 - 0.9 * step / steps)
        ids, labels = batches.next()
        hidden = policy.model.model(input_ids=ids[:, :-1]).last_hidden_state
        learnt = labels[:, 1:] != -100
        loss = cross_entropy(policy.model.lm_head(hidden[learnt]), labels[:, 1:][learnt])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.model.parameters(), 1.0)
        optimizer.step()
        yield policy, loss.item()
    policy.model.eval()


def main(arguments: list[str] | None = None) -> None:
    """Pretrain one task and save the policy with a record of how it was made."""
    parser = argparse.ArgumentParser(prog="python -m igrpo_kit.pretrain", description=__doc__)
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
        "command": f"python -m igrpo_kit.pretrain {options.task} FOLDER --seed {options.seed}",
        "parameters": sum(p.numel() for p in policy.model.parameters()),
        "steps": task.steps,
        "last_loss": round(loss, 4),
        "seconds": round(perf_counter() - start, 1),
        "torch": torch.__version__,
    }
    (options.folder / "record.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
