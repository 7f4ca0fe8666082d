"""How much faster an update is with each group's prompt encoded once: `python -m benchmarks.shared_prefix`.

The update of one iGRPO step on the tiny policy: 32 refinement prompts q' with 4 refinements each; forward,
backward, clipping and AdamW, one thread. The same for GRPO's 8 completions of q is recorded beside it.
"""

import copy
import statistics
from collections.abc import Callable

import torch

from benchmarks._record import interleaved_seconds, record
from igrpo_kit.policies.load import load_policy
from igrpo_kit.policies.log_probs import completion_log_probs
from igrpo_kit.policies.policy import Policy
from igrpo_kit.policies.samplers.hf import HFSampler
from igrpo_kit.policies.samplers.sampler import Samples, SamplingSettings
from igrpo_kit.tasks.sets.generated import countdown_problems

PROMPTS, REPETITIONS = 32, 21


def sample_step(policy: Policy) -> dict[str, Samples]:
    """What one step of either method is trained on."""
    sampler = HFSampler(policy, SamplingSettings(12))
    asked, questions = policy.prompt_format, [p.question for p in countdown_problems(PROMPTS, seed=0)]
    drafts = sampler.sample([asked.problem_messages(q) for q in questions], 8)
    refined = [asked.refinement_messages(q, drafts.texts[8 * i]) for i, q in enumerate(questions)]
    return {"igrpo": sampler.sample(refined, 4), "grpo": drafts}


def update(model: torch.nn.Module, samples: Samples, *, shared_prefix: bool) -> Callable[[], None]:
    """One optimizer step on `samples`, of a copy of the model and with learning rate 0."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)
    weights = torch.linspace(-1, 1, len(samples.texts))[:, None]  # in place of advantages

    def step() -> None:
        optimizer.zero_grad()
        log_probs = completion_log_probs(
            model, samples.prompt_ids, samples.completion_ids, samples.mask, shared_prefix=shared_prefix
        )
        (weights * log_probs).sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def main() -> None:
    torch.set_num_threads(1)
    policy = load_policy("tiny", device="cpu")
    ratios = {}
    for method, samples in sample_step(policy).items():
        jobs = {
            name: update(policy.model, samples, shared_prefix=name == "shared")
            for name in ("padded", "shared")
        }
        seconds = interleaved_seconds(jobs, REPETITIONS)
        ratios[method] = [p / s for p, s in zip(seconds["padded"], seconds["shared"], strict=True)]
    record("shared_prefix_speedup", ratios["igrpo"], grpo=round(statistics.median(ratios["grpo"]), 3))


if __name__ == "__main__":
    main()
