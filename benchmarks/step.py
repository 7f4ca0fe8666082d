"""What an iGRPO step costs against a GRPO step at the same rollout budget: `python -m benchmarks.step`.

32 problems; 4 drafts and 4 refinements against 8 completions of q; sampling, rewards and update of the tiny
policy with everything that makes either fast (shared prefix, dead groups left out), one thread. The learning
rate is 0, so that both meet the same policy at every step.
"""

import copy
import statistics
from collections.abc import Callable

import torch

from benchmarks._record import interleaved_seconds, record
from igrpo_kit.losses import GRPO
from igrpo_kit.policies import Policy, load_policy
from igrpo_kit.problems import countdown_problems
from igrpo_kit.rewards import AccuracyReward
from igrpo_kit.rollout import igrpo_rollout
from igrpo_kit.samplers import SamplingSettings
from igrpo_kit.samplers.hf import HFSampler
from igrpo_kit.training import train_step

PROMPTS, REPETITIONS = 32, 41


def method(policy: Policy, num_drafts: int, num_refinements: int) -> Callable[[], None]:
    """One step after another, each on problems of its own."""
    model = copy.deepcopy(policy.model)
    sampler = HFSampler(model, policy.tokenizer, SamplingSettings(12))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)
    reward, problems = AccuracyReward(), countdown_problems(PROMPTS * (REPETITIONS + 1), seed=0)
    batches = iter([problems[i : i + PROMPTS] for i in range(0, len(problems), PROMPTS)])

    def step() -> None:
        rollout = igrpo_rollout(
            sampler,
            reward,
            next(batches),
            num_drafts=num_drafts,
            num_refinements=num_refinements,
            prompt_format=policy.prompt_format,
            tokenizer=policy.tokenizer,
        )
        train_step(model, optimizer, rollout, GRPO(), temperature=1.0)

    return step


def main() -> None:
    torch.set_num_threads(1)
    policy = load_policy("tiny", device="cpu")
    jobs = {"grpo": method(policy, 0, 8), "igrpo": method(policy, 4, 4)}
    seconds = interleaved_seconds(jobs, REPETITIONS)
    ratios = [i / g for i, g in zip(seconds["igrpo"], seconds["grpo"], strict=True)]
    milliseconds = {f"{name}_ms": round(1000 * statistics.median(seconds[name]), 1) for name in jobs}
    record("igrpo_over_grpo_step", ratios, **milliseconds)


if __name__ == "__main__":
    main()
