"""A supervised warm start: teach a small language model the form of an answer, and stop early.

SmolLM2-135M-Instruct does not solve sums of three numbers, nor does it end on an answer that can be graded:
under GRPO every group would be dead. A few dozen steps on worked solutions give it the form and some of the
substance ("cold start"), and leave the rest to reinforcement learning. No draft is ever shown here: what the
policy makes of one in Stage 2 is its own.
"""

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from igrpo_kit.fetch import MODELS, fetch_smollm2
from igrpo_kit.policies import Policy, load_policy
from igrpo_kit.problems import Problem, Split, reasoning_gym_problems
from igrpo_kit.prompts import PAPER_FORMAT, PromptFormat
from igrpo_kit.samplers.hf import encode_prompts
from igrpo_kit.scoring import completion_log_probs

PLAIN_FORMAT = PromptFormat(system=None, refinement=PAPER_FORMAT.refinement)
"""The question alone, and the draft where the paper has it; a model this small gets no long instructions."""

BATCH, LEARNING_RATE, WARMUP = 16, 3e-4, 5


def sum_problems(count: int, *, seed: int, split: Split = "train", distinct: bool = True) -> list[Problem]:
    """`count` different sums and differences of three one-digit numbers, in words: reasoning-gym's chain_sum.

    Raises ValueError for `distinct=False`, and as `reasoning_gym_problems`.
    """
    if not distinct:
        raise ValueError("distinct: these problems are always distinct")
    terms = {"min_terms": 3, "max_terms": 3, "min_digits": 1, "max_digits": 1}
    return reasoning_gym_problems("chain_sum", count, seed=seed, split=split, **terms)


def worked_sum(question: str) -> str:
    """The solution taught for a question `... 2 - 5 - 3 =`: `2 - 5 = -3, -3 - 3 = <answer>-6</answer>`.

    Raises ValueError where the question is no such sum.
    """
    found = re.search(r"(\d+) ([+-]) (\d+) ([+-]) (\d+) =$", question)
    if found is None:
        raise ValueError(f"question: not a sum of three numbers: {question!r}")
    a, first, b, second, c = found.groups()
    half = int(a) + int(first + b)
    return f"{a} {first} {b} = {half}, {half} {second} {c} = <answer>{half + int(second + c)}</answer>"


def warm_start(
    policy: Policy,
    pairs: Sequence[tuple[str, str]],
    *,
    batch: int = BATCH,
    learning_rate: float = LEARNING_RATE,
) -> Iterator[float]:
    """Train on (question, answer) pairs, each once and in order; yields the loss, nats per answer token."""
    model, tokenizer = policy.model, policy.tokenizer
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    for step, start in enumerate(range(0, len(pairs), batch), start=1):
        rows = pairs[start : start + batch]
        prompts = encode_prompts(tokenizer, [policy.prompt_format.problem_messages(q) for q, _ in rows])
        ids, mask = _answer_ids(tokenizer, [answer for _, answer in rows], model.device)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1.0, step / WARMUP)
        loss = -completion_log_probs(model, prompts, ids, mask).sum() / mask.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        yield loss.item()


def _answer_ids(
    tokenizer: Any, answers: Sequence[str], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids [B, T] of the answers, each with its end-of-sequence token, and the mask that is True on them."""
    rows = tokenizer([a + tokenizer.eos_token for a in answers], add_special_tokens=False).input_ids
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)
    mask = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in rows], device=device)
    return ids, mask


STEPS = 20
"""after which a quarter of 96 samples on training problems was right, looked at every 10 steps (then 33)"""


def prepare_smollm2_sums(models: Path = MODELS) -> Path:
    """The directory of SmolLM2-135M after a warm start on `sum_problems`, made on the first call.

    It takes its place only when it is complete. Raises RuntimeError as `fetch_smollm2`.
    """
    target = models / "smollm2-sums"
    if target.is_dir():
        return target
    policy = replace(load_policy(fetch_smollm2(models)), prompt_format=PLAIN_FORMAT)
    pairs = [(p.question, worked_sum(p.question)) for p in sum_problems(STEPS * BATCH, seed=3)]
    losses = list(tqdm(warm_start(policy, pairs), total=STEPS, unit="step", desc="warm start"))
    with tempfile.TemporaryDirectory(dir=models, prefix=".warm-") as scratch:
        work = Path(scratch) / target.name
        policy.save(work)
        record = {"steps": STEPS, "batch": BATCH, "learning_rate": LEARNING_RATE, "losses": losses}
        (work / "record.json").write_text(json.dumps(record, indent=1) + "\n")
        with contextlib.suppress(OSError):  # another process was faster: its copy is as good
            os.replace(work, target)
    return target
