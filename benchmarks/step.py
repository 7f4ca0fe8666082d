"""What an iGRPO step costs against a GRPO step at the same rollout budget: `python -m benchmarks.step`.

32 problems; 4 drafts and 4 refinements against 8 completions of q; sampling, rewards, update and metrics of
the tiny policy with everything that makes either fast (shared prefix, dead groups left out), one thread.
`igrpo_over_grpo_step` is iGRPO at its fastest, drafting one step ahead, and `igrpo_over_grpo_as_published`
iGRPO with the two stages one after the other. The learning rate is 0, so that all meet the same policy at
every step. Both records also say how many tokens an update computes, which is most of the difference.
"""

from collections.abc import Iterator
from statistics import fmean, median
from typing import Any

import torch

from benchmarks._record import interleaved_seconds, record
from igrpo_kit.policies.load import load_policy
from igrpo_kit.policies.samplers.hf import HFSampler
from igrpo_kit.policies.samplers.sampler import SamplingSettings
from igrpo_kit.tasks.rewards import AccuracyReward
from igrpo_kit.tasks.sets.generated import countdown_problems
from igrpo_kit.training.config import TrainConfig
from igrpo_kit.training.loop import train

PROMPTS, REPETITIONS = 32, 41
METHODS: dict[str, dict[str, Any]] = {
    "grpo": {"num_drafts": 0, "num_refinements": 8},
    "igrpo": {"num_drafts": 4, "num_refinements": 4},
    "igrpo_ahead": {"num_drafts": 4, "num_refinements": 4, "draft_ahead": True},
}


def steps(settings: dict[str, Any]) -> Iterator[dict]:
    """One step after another, each on problems of its own, the same for every method."""
    policy = load_policy("tiny", device="cpu")
    config = TrainConfig(steps=REPETITIONS + 2, prompts_per_step=PROMPTS, learning_rate=0.0, **settings)
    sampler = HFSampler(policy, SamplingSettings(12))
    problems = countdown_problems(PROMPTS * config.steps, seed=0)
    return iter(train(sampler, AccuracyReward(), problems, config, progress=False))


def main() -> None:
    torch.set_num_threads(1)
    runs = {name: steps(settings) for name, settings in METHODS.items()}
    rows: dict[str, list[dict]] = {name: [] for name in METHODS}
    jobs = {name: (lambda name=name: rows[name].append(next(runs[name]))) for name in METHODS}
    seconds = interleaved_seconds(jobs, REPETITIONS)
    recorded = {"igrpo_over_grpo_step": "igrpo_ahead", "igrpo_over_grpo_as_published": "igrpo"}
    for name, method in recorded.items():
        ratios = [mine / grpo for mine, grpo in zip(seconds[method], seconds["grpo"], strict=True)]
        both = ("grpo", method)
        record(
            name,
            ratios,
            milliseconds={each: round(1000 * median(seconds[each]), 1) for each in both},
            updated_tokens={each: round(fmean(r["live_tokens"] for r in rows[each]), 1) for each in both},
            dead_groups={each: round(fmean(r["dead_groups"] for r in rows[each]), 3) for each in both},
        )


if __name__ == "__main__":
    main()
