"""How a step's time grows with the batch: `python -m benchmarks.growth`.

Prompts P, completion length Lo (the end of sequence is made a token that is never sampled, so every
completion runs to the limit) and rollouts N + G are each doubled three times from a common start. The
exponent b of time ~ size^b is a least-squares fit in log-log, one for each round of measurements; the value
is that of the length, the steepest. 1 is proportional; below 1, fixed costs are still being shared out.
"""

import numpy as np
import torch

from benchmarks._record import interleaved_seconds, record
from igrpo_kit.policies.load import load_policy
from igrpo_kit.policies.samplers.hf import HFSampler
from igrpo_kit.policies.samplers.sampler import SamplingSettings
from igrpo_kit.tasks.rewards import AccuracyReward
from igrpo_kit.tasks.sets.generated import countdown_problems
from igrpo_kit.training.config import TrainConfig
from igrpo_kit.training.loop import train

START = {"prompts": 16, "length": 12, "rollouts": 4}
REPETITIONS = 7


def steps(prompts: int, length: int, rollouts: int):
    """An endless supply of iGRPO steps of this size, at learning rate 0."""
    policy = load_policy("tiny", device="cpu")
    policy.model.generation_config.eos_token_id = policy.tokenizer.pad_token_id
    policy.tokenizer.eos_token = policy.tokenizer.pad_token
    sampler = HFSampler(policy, SamplingSettings(length))
    config = TrainConfig(
        steps=10_000,
        prompts_per_step=prompts,
        num_drafts=rollouts // 2,
        num_refinements=rollouts // 2,
        learning_rate=0.0,
    )
    problems = countdown_problems(512, seed=0)
    return train(sampler, AccuracyReward(), problems, config, progress=False)


def main() -> None:
    torch.set_num_threads(1)
    fits: dict[str, list[float]] = {}
    for name, start in START.items():
        sizes = [start * 2**i for i in range(4)]
        runs = {str(size): steps(**{**START, name: size}) for size in sizes}
        jobs = {size: (lambda run=run: next(run)) for size, run in runs.items()}
        seconds = interleaved_seconds(jobs, REPETITIONS)
        rounds = zip(*(seconds[str(size)] for size in sizes), strict=True)
        fits[name] = [float(np.polyfit(np.log(sizes), np.log(times), 1)[0]) for times in rounds]
    exponents = {name: round(float(np.median(fit)), 3) for name, fit in fits.items()}
    record("growth", fits["length"], exponents=exponents, doubled="three times from", start=START)


if __name__ == "__main__":
    main()
