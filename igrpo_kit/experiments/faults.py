"""Runs with one planted fault each (lesson 12), recorded by `python -m igrpo_kit.experiments.faults`.

All runs share policy, task and settings, and differ in the seed and in one fault. A record holds metrics and
samples and no settings, so it says nothing about the fault beyond what it did. The strength of each fault is
the first one that was tried, but for the saturated run: 8 and 4 questions left dead groups near 0.7, so it
has 2.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from igrpo_kit.analysis.compare import Record
from igrpo_kit.core.advantages import advantages_of_scored
from igrpo_kit.core.data import data_path
from igrpo_kit.core.losses import GRPO, Objective
from igrpo_kit.core.prompts import Messages
from igrpo_kit.core.rows import Row, read_rows, write_rows
from igrpo_kit.policies.load import load_policy
from igrpo_kit.policies.policy import Policy
from igrpo_kit.policies.samplers.hf import HFSampler
from igrpo_kit.policies.samplers.sampler import Samples, SamplingSettings
from igrpo_kit.tasks.problem import Problem
from igrpo_kit.tasks.rewards import AccuracyReward, Reward, Scores, as_reward
from igrpo_kit.tasks.sets import addition_problems
from igrpo_kit.training.config import IGRPO_STEPS, TrainConfig, Variant
from igrpo_kit.training.loop import train
from igrpo_kit.training.records import RunLog
from igrpo_kit.training.rollout import Rollout
from igrpo_kit.training.update import Trained, trained_stages

STEPS = 100
SHOWN_STEPS = (1, 50, 100)
"""steps whose first problems are recorded in full"""
TEMPERATURE = 0.6
"""at which the sampler of that fault samples; it reports 1, at which the loss scores"""
SYNC_EVERY = 25
"""updates after which the stale sampler receives the weights; it should after each"""
LENGTH_BONUS = 0.02
"""reward per character, beside 1 for a correct answer"""
FEW_PROBLEMS = 2
"""problems of the run that has nothing left to learn"""

KEPT = (
    "step", "reward", "correct", "stage1/correct", "dead_groups", "entropy", "length", "truncated",
    "copy_rate", "tokens", "live_tokens", "tokens_trained", "grad_norm", "ratio_max", "clip_fraction",
    "sampler_gap",
)  # fmt: skip
"""the metrics of the loop that a record holds"""


class ColderSampler(HFSampler):
    """Samples at `TEMPERATURE` while `settings` says 1, as an engine does that has defaults of its own."""

    def sample(self, prompts: Sequence[Messages], num_samples: int) -> Samples:
        """P prompts -> P * num_samples completions, row-major by prompt."""
        reported = self.settings
        self.settings = replace(reported, temperature=TEMPERATURE)
        try:
            return super().sample(prompts, num_samples)
        finally:
            self.settings = reported


class StaleSampler(HFSampler):
    """Samples from a copy of the weights that only every `SYNC_EVERY`-th update reaches."""

    def __init__(self, policy: Policy, settings: SamplingSettings, *, seed: int = 0) -> None:
        super().__init__(policy, settings, seed=seed)
        self.model = copy.deepcopy(policy.model)
        self.updates = -1  # `train` syncs once before its first step

    def sync(self) -> None:
        """Copy the policy's weights, if it is time."""
        self.updates += 1
        if self.updates % SYNC_EVERY == 0:
            self.model.load_state_dict(self.policy.model.state_dict())


class BatchNormalized(GRPO):
    """(R - mean) / std over all P * G rewards: the groups were lost in a `view(-1)`."""

    def advantages(self, rewards: Float[Tensor, "P G"]) -> Float[Tensor, "P G"]:
        """See the class."""
        return (rewards - rewards.mean()) / rewards.std(correction=1)


def without_eos_trained(
    rollout: Rollout, objective: Objective, *, train_drafts: bool = False
) -> list[Trained]:
    """The refinements with the mask `completion_ids != pad_id`, where the pad token is the EOS token."""
    (trained,) = trained_stages(rollout, objective, train_drafts=train_drafts)
    samples = trained.samples
    stopped = torch.tensor([reason == "stop" for reason in samples.finish_reasons])
    last = samples.mask.sum(dim=1) - 1
    mask = samples.mask.clone()
    mask[stopped, last[stopped]] = False
    return [replace(trained, samples=replace(samples, mask=mask))]


def padding_trained(rollout: Rollout, objective: Objective, *, train_drafts: bool = False) -> list[Trained]:
    """The refinements with no mask at all: the padding behind their EOS token is trained as well."""
    (trained,) = trained_stages(rollout, objective, train_drafts=train_drafts)
    samples = trained.samples
    return [replace(trained, samples=replace(samples, mask=torch.ones_like(samples.mask)))]


def after_question_trained(
    rollout: Rollout, objective: Objective, *, train_drafts: bool = False
) -> list[Trained]:
    """The refinements and all of q' behind the question: the prompt's length was taken from q, not from q'.

    The sampler has no log-probs of these tokens; theirs are 0, as everywhere outside the sampled tokens.
    """
    assert rollout.drafts is not None
    samples, G = rollout.refinements.samples, rollout.refinements.rewards.shape[1]
    shared = [
        sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(q, own, strict=False)))
        for q, own in zip(rollout.drafts.samples.prompt_ids, samples.prompt_ids, strict=True)
    ]
    ids, log_probs = list[Tensor](), list[Tensor]()
    for row, (tokens, mask) in enumerate(zip(samples.completion_ids, samples.mask, strict=True)):
        start = shared[row // G]
        behind = tokens.new_tensor(samples.prompt_ids[row // G][start:])
        ids.append(torch.cat([behind, tokens[mask]]))
        log_probs.append(pad(samples.log_probs[row][mask], (len(behind), 0)))
    lengths = torch.tensor([len(row) for row in ids])
    longer = replace(
        samples,
        prompt_ids=[own[:start] for own, start in zip(samples.prompt_ids, shared, strict=True)],
        completion_ids=pad_sequence(ids, batch_first=True),
        mask=torch.arange(int(lengths.max())) < lengths[:, None],
        log_probs=pad_sequence(log_probs, batch_first=True),
        entropies=None,
    )
    advantages = advantages_of_scored(rollout.refinements.rewards, objective.advantages)
    return [Trained(longer, advantages, objective)]


def length_bonus(problems: Sequence[Problem], completions: Sequence[str]) -> Scores:
    """1 for a correct answer, and `LENGTH_BONUS` per character of any answer."""
    scores = AccuracyReward().score(problems, completions)
    values = [v + LENGTH_BONUS * len(text) for v, text in zip(scores.values, completions, strict=True)]
    return Scores(values, scores.statuses)


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What one run does differently; the defaults are the healthy run."""

    sampler: Callable[..., HFSampler] = HFSampler
    reward: Reward = field(default_factory=AccuracyReward)
    objective: Objective = field(default_factory=GRPO)
    variant: Variant = IGRPO_STEPS
    problems: int = 2000


FAULTS: dict[str, Fault] = {
    "healthy": Fault(),
    "temperature": Fault(sampler=ColderSampler),
    "stale": Fault(sampler=StaleSampler),
    "eos": Fault(variant=Variant("eos", trained=without_eos_trained)),
    "padding": Fault(variant=Variant("padding", trained=padding_trained)),
    "draft": Fault(variant=Variant("draft", trained=after_question_trained)),
    "batch": Fault(objective=BatchNormalized()),
    "saturated": Fault(problems=FEW_PROBLEMS),
    "length": Fault(reward=as_reward(length_bonus)),
}
CASES = {
    "a": "batch",
    "b": "eos",
    "c": "length",
    "d": "stale",
    "e": "healthy",
    "f": "saturated",
    "g": "temperature",
    "h": "draft",
    "example": "padding",
}
"""case of lesson 12 -> its fault; the position is the seed"""


def record_case(case: str, folder: str | Path, *, steps: int = STEPS) -> None:
    """Train one case and write its `metrics.jsonl` and `samples.jsonl` into `folder`, floats to 6 digits."""
    fault, seed = FAULTS[CASES[case]], list(CASES).index(case)
    sampler = fault.sampler(load_policy("tiny-addition"), SamplingSettings(max_new_tokens=24), seed=seed)
    problems = addition_problems(fault.problems, seed=seed)
    config = TrainConfig(steps=steps, learning_rate=1.5e-4, objective=fault.objective, seed=seed)
    with TemporaryDirectory() as full:
        run = train(
            sampler, fault.reward, problems, config,
            variant=fault.variant, folder=full, samples_every=1, progress=False,
        )  # fmt: skip
        rows = [{name: _rounded(row[name]) for name in KEPT} for row in run]
        samples = [row for row in read_rows(Path(full) / RunLog.SAMPLES) if row["step"] in SHOWN_STEPS]
    Path(folder).mkdir(parents=True, exist_ok=True)
    write_rows(Path(folder) / RunLog.METRICS, rows)
    write_rows(Path(folder) / RunLog.SAMPLES, samples)


def _rounded(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value


def read_flight(case: str) -> tuple[Record, list[Row]]:
    """The metrics of a committed case ("a" to "h", or "example") as a record, and its samples.

    Raises FileNotFoundError for a case that there is not.
    """
    folder = data_path(f"flight/{case}")
    metrics, samples = (list(read_rows(folder / name)) for name in (RunLog.METRICS, RunLog.SAMPLES))
    return Record(f"case {case}", 0, metrics, []), samples


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in CASES:
        record_case(name, data_path("flight") / name)
