"""A whole optimization step against TRL's GRPOTrainer: `python -m benchmarks.step_over_trl`.

The same tiny policy, 32 questions, 8 completions each of at most 12 tokens, the same reward object, AdamW, no
gradient checkpointing, float32, one thread; the learning rate is 0, so that both sample from the same policy
throughout and their lengths stay equal. Each of TRL's steps is preceded by one of ours, in one process.
"""

import copy
import tempfile
from time import process_time

import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from benchmarks._record import record
from igrpo_kit.policies.load import load_policy
from igrpo_kit.policies.samplers.hf import HFSampler
from igrpo_kit.policies.samplers.sampler import SamplingSettings
from igrpo_kit.tasks.rewards import AccuracyReward
from igrpo_kit.tasks.sets.generated import countdown_problems
from igrpo_kit.training.config import TrainConfig
from igrpo_kit.training.loop import train

PROMPTS, GROUP, MAX_NEW_TOKENS, REPETITIONS = 32, 8, 12, 15


class Interleaved(TrainerCallback):
    """Runs one of our steps before each of TRL's, and keeps the processor seconds of both."""

    def __init__(self, ours) -> None:
        self.ours = ours
        self.seconds = {"ours": [], "trl": []}

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        start = process_time()
        next(self.ours)
        self.start = process_time()
        self.seconds["ours"].append(self.start - start)

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.seconds["trl"].append(process_time() - self.start)


def main() -> None:
    torch.set_num_threads(1)
    policy, theirs = load_policy("tiny", device="cpu"), load_policy("tiny", device="cpu")
    problems = countdown_problems(PROMPTS * (REPETITIONS + 1), seed=0)
    rows = [
        {"prompt": policy.prompt_format.problem_messages(p.question), "question": p.question,
         "answer": p.answer, "source": p.source}
        for p in problems
    ]  # fmt: skip
    config = TrainConfig(
        steps=REPETITIONS + 1,
        prompts_per_step=PROMPTS,
        num_drafts=0,
        num_refinements=GROUP,
        learning_rate=0.0,
    )
    sampler = HFSampler(policy, SamplingSettings(MAX_NEW_TOKENS))
    clock = Interleaved(iter(train(sampler, AccuracyReward(), problems, config, progress=False)))
    with tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            model=copy.deepcopy(theirs.model),
            processing_class=theirs.tokenizer,
            reward_funcs=AccuracyReward(),
            train_dataset=Dataset.from_list(rows),
            callbacks=[clock],
            args=GRPOConfig(
                output_dir=folder, use_cpu=True, bf16=False, report_to="none", save_strategy="no",
                logging_strategy="no", disable_tqdm=True, max_steps=REPETITIONS + 1, learning_rate=0.0,
                per_device_train_batch_size=PROMPTS * GROUP, num_generations=GROUP, loss_type="grpo",
                max_completion_length=MAX_NEW_TOKENS, temperature=1.0, beta=0.0, gradient_checkpointing=False,
            ),
        )  # fmt: skip
        trainer.train()
    pairs = list(zip(clock.seconds["ours"], clock.seconds["trl"], strict=True))[1:]  # the first warms up
    ours, trl = (sorted(column)[len(pairs) // 2] for column in zip(*pairs, strict=True))
    record(
        "step_over_trl", [mine / trl for mine, trl in pairs],
        milliseconds={"ours": round(1000 * ours, 1), "trl": round(1000 * trl, 1)},
    )  # fmt: skip


if __name__ == "__main__":
    main()
