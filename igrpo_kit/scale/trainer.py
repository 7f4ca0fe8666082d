"""iGRPO on TRL's GRPOTrainer: Stage 1 before its generation, everything else TRL's own (Algorithm 1).

TRL repeats every prompt G times, draws a completion per row, scores it and trains on it. `IGRPOTrainer` puts
Stage 1 in front: it drafts from q with TRL's own generation (transformers, vLLM colocated or served), scores
with the same reward functions, selects one draft per group, and hands TRL the rows with q' as their prompt. So
log-probs, reference, importance ratios and the loss are conditioned on q', and only refinements are trained.

Groups lie in consecutive rows, over all processes in rank order, and may straddle two of them: rewards and
drafts are therefore gathered before one is selected. Written for the version of TRL named in constraints.txt;
what it relies on beyond the public interface is checked when a trainer is made (`check_trl`).
"""

import inspect
import os
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import trl
from accelerate.utils import broadcast, gather, gather_object
from datasets import Dataset
from jaxtyping import Bool, Float, Int
from torch import Tensor
from trl import GRPOConfig, GRPOTrainer

from igrpo_kit.advantages import dead_groups, group_advantages
from igrpo_kit.checkpoint import load_checkpoint, save_checkpoint
from igrpo_kit.metrics import fill_unscored
from igrpo_kit.problems import Problem
from igrpo_kit.prompts import PAPER_FORMAT, PromptFormat
from igrpo_kit.rewards import text_of
from igrpo_kit.selection import (
    NO_DRAFT,
    select_best_draft,
    select_first_draft,
    select_no_draft,
    select_random_draft,
    select_worst_draft,
)

SELECTORS: dict[str, Callable[[Tensor], Tensor]] = {
    "best": select_best_draft,
    "random": select_random_draft,
    "worst": select_worst_draft,
    "first": select_first_draft,
    "none": select_no_draft,
}
"""The values of `IGRPOConfig.select`: the paper's rule, and its controls."""

WRITTEN_FOR = "1.16.0"
"""The version of TRL this module was written for and tested with."""


@dataclass
class IGRPOConfig(GRPOConfig):
    """GRPOConfig with Stage 1; `num_generations` is G, the refinements per prompt (the paper's 4 + 4).

    Where TRL's defaults are not the paper's objective (Eq. 5) these are: sequence means (`loss_type="grpo"`,
    TRL: "dapo"), no correction for the engine's rounding, the plain k3 estimator of the KL term. The wrappers
    of Table 2 are TRL's flags: `loss_type="dapo"`, and `importance_sampling_level="sequence"` for GSPO.

    An update sees `generation_batch_size / num_generations` prompts: half of it for GRPO with twice the group
    size, so fix the prompts, not the rows, when comparing the two.

    Raises ValueError for what cannot be trained; see the messages.
    """

    num_drafts: int = field(default=4, metadata={"help": "N, the drafts per prompt; 0 is GRPO"})
    select: str = field(
        default="best",
        metadata={"help": "which draft Stage 2 is shown", "choices": list(SELECTORS)},
    )
    max_draft_tokens: int | None = field(
        default=None, metadata={"help": "the draft's end that q' holds; None is all of it"}
    )
    refinement_template: str = field(
        default=PAPER_FORMAT.refinement,
        metadata={"help": "the last user turn of q', with {question} and {draft}: PromptFormat.refinement"},
    )
    num_generations: int | None = field(default=4, metadata={"help": "G, the refinements per prompt"})
    loss_type: str = field(default="grpo", metadata={"help": "as in GRPOConfig; grpo is Eq. 5"})
    vllm_importance_sampling_correction: bool = field(
        default=False, metadata={"help": "as in GRPOConfig; Eq. 5 has no such factor"}
    )
    use_bias_correction_kl: bool = field(
        default=False, metadata={"help": "as in GRPOConfig; Eq. 5's KL term is not multiplied by the ratio"}
    )
