"""A small IGRPOTrainer on tests/tiny_models.py, made alike by the tests and by every process of `torchrun`.

Run as a module it trains and writes what happened: `torchrun -m tests.scale.trainer_worker OUT [sample]`.
"""

import json
import os
import random
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import DistributedType, PartialState
from datasets import Dataset

from igrpo_kit.scale.trainer import IGRPOConfig, IGRPOTrainer
from igrpo_kit.tasks.rewards import text_of
from tests import tiny_models

TEMPLATE = "{question}:{draft}="
QUESTIONS = [f"{a}+{b}" for a in range(3, 6) for b in range(2, 6)]


def digit_share(prompts: Any, completions: Any, **columns: Any) -> list[float]:
    """The share of digits in a completion: graded, so groups are seldom dead."""
    texts = [text_of(completion) for completion in completions]
    return [sum(c.isdigit() for c in text) / (len(text) + 1) for text in texts]


class Recorded(IGRPOTrainer):
    """Real sampling; `calls` keeps what the engine was asked and what it answered, as token ids."""

    def _generate_single_turn(self, prompt_ids: Any, *rest: Any) -> Any:
        completions, log_probs = self.sample(prompt_ids, *rest)
        self.calls = [*getattr(self, "calls", []), (prompt_ids, completions)]
        return completions, log_probs

    def sample(self, *call: Any) -> Any:
        return super()._generate_single_turn(*call)


class Scripted(Recorded):
    """Samples what depends on the prompt and the row's number over all processes, and nothing else."""

    def sample(self, prompt_ids: list[list[int]], *rest: Any) -> Any:
        first = self.accelerator.process_index * len(prompt_ids)
        completions = []
        for row, ids in enumerate(prompt_ids):
            rng = random.Random(f"{ids} {first + row}")
            text = rng.choices(range(4, tiny_models.VOCABULARY), k=rng.randint(1, 5))
            completions.append([*text, tiny_models.EOS])
        return completions, None


def config(out: Path, **options: Any) -> IGRPOConfig:
    """On the CPU in float32, logging every step, saving nothing."""
    defaults = {
        "use_cpu": True,
        "bf16": False,
        "report_to": [],
        "disable_tqdm": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "max_steps": 2,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-2,
        "max_grad_norm": 1e6,
        "max_completion_length": 6,
        "shuffle_dataset": False,
        "refinement_template": TEMPLATE,
    }
    return IGRPOConfig(output_dir=str(out), **(defaults | options))


def dataset(questions: list[str] = QUESTIONS) -> Dataset:
    """Chat prompts, and a column for the rewards."""
    rows = [{"prompt": [{"role": "user", "content": q}], "answer": q[::-1]} for q in questions]
    return Dataset.from_list(rows)


def trainer(
    args: IGRPOConfig, kind: type[IGRPOTrainer] = IGRPOTrainer, reward: Any = digit_share, **options: Any
) -> IGRPOTrainer:
    """A trainer of the random Llama."""
    options = {"train_dataset": dataset(), "processing_class": tiny_models.tokenizer()} | options
    return kind(options.pop("model", None) or tiny_models.llama(), reward, args, **options)


def main(out: Path, kind: type[IGRPOTrainer], batch_size: int) -> None:
    """Train two steps and write this process's view of them."""
    args = config(out, per_device_train_batch_size=batch_size)
    if os.environ.get(
        "ACCELERATE_USE_FSDP"
    ):  # accelerate shards on a GPU only, and on a CPU silently does not
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    run = trainer(args, kind)
    run.train()
    parameters = list(run.model_wrapped.parameters())
    sharded = sum(type(p).__name__ == "DTensor" or hasattr(p, "ds_id") for p in parameters)
    report = {
        "log": run.state.log_history,
        "processes": run.accelerator.num_processes,
        "backend": str(run.accelerator.distributed_type),
        "fsdp": run.is_fsdp_enabled,
        "sharded": sharded,
        "weights": None if sharded else sum(p.detach().double().abs().sum().item() for p in parameters),
    }
    (out / f"rank-{run.accelerator.process_index}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), Recorded if "sample" in sys.argv else Scripted, 6)
