"""The settings of a run, its learning-rate schedule, and its variant of the training step.

Tables: https://arxiv.org/abs/2602.09000.
"""

import dataclasses
import math
from collections.abc import Callable

from igrpo_kit.core.losses import GRPO, Objective
from igrpo_kit.core.rows import Row
from igrpo_kit.core.selection import Selector, selector
from igrpo_kit.training.optimization import warm_up
from igrpo_kit.training.rollout import Rollout, igrpo_rollout
from igrpo_kit.training.update import Trained, trained_stages


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that defines a run except the policy, the problems and the reward. Counts are per step.

    For GRPO set `num_drafts=0`. At an equal rollout budget, its `num_refinements` is iGRPO's N + G.

    Raises:
        ValueError: a setting is out of range, or two settings exclude each other.
    """

    steps: int
    prompts_per_step: int = 32
    """P"""
    num_drafts: int = 4
    """N"""
    num_refinements: int = 4
    """G"""
    select: str | Selector = "best"
    """best, worst, random, first, none, or a callable of your own"""
    objective: Objective = dataclasses.field(default_factory=GRPO)
    train_drafts: bool = False
    """our extension: the update also trains the drafts, as an ordinary group conditioned on q"""
    num_iterations: int = 1
    """optimizer steps per rollout (mu); from the second on, the ratio differs from 1 and clipping applies"""
    micro_batches: int = 1
    """number of pieces in which each trained stage's update is computed; the gradient is the same"""
    learning_rate: float = 3e-4
    warmup_steps: int = 10
    min_lr_ratio: float = 1.0
    """final learning rate as a fraction of `learning_rate`; 1 keeps it constant, the paper uses 0.1"""
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    max_draft_tokens: int | None = None
    stop_at: float | None = None
    """stop sampling drafts for a problem at this reward; see `rollout.sample_drafts`"""
    draft_ahead: bool = False
    """sample a step's drafts one step earlier, in one batch with that step's refinements: faster, but
    the drafts are one update old; see `rollout.rollout_with_next_drafts`"""
    bfloat16: bool = False
    """autocast the update to bfloat16; the weights stay in float32"""
    seed: int = 0

    def __post_init__(self) -> None:
        positive = ("steps", "prompts_per_step", "num_iterations", "micro_batches")
        for name in positive:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.num_refinements < 2 or (self.train_drafts and self.num_drafts < 2):
            raise ValueError("num_refinements, and num_drafts if they are trained: a group needs at least 2")
        if self.num_drafts < 0:
            raise ValueError(f"num_drafts must be >= 0, got {self.num_drafts}")
        selector(self.select)
        if self.num_drafts == 0 and (self.train_drafts or self.draft_ahead or self.stop_at is not None):
            raise ValueError("train_drafts, draft_ahead and stop_at need num_drafts >= 1")
        if self.stop_at is not None and (self.train_drafts or self.draft_ahead):
            raise ValueError(
                "stop_at samples drafts one by one, train_drafts and draft_ahead need them at once"
            )
        if self.stop_at is not None and self.select not in ("best", "first"):
            raise ValueError("stop_at leaves the controls other drafts to choose from: select best or first")
        if self.train_drafts and self.draft_ahead:
            raise ValueError(
                "train_drafts needs drafts of the present policy, draft_ahead has the last one's"
            )

    def to_row(self) -> Row:
        """Plain values for `config.json`, with the objective as its name and settings."""
        row = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        row["select"] = (
            self.select if isinstance(self.select, str) else getattr(self.select, "__name__", "own")
        )
        row["objective"] = {"name": type(self.objective).__name__, **dataclasses.asdict(self.objective)}
        return row


@dataclasses.dataclass(frozen=True)
class Variant:
    """A method that runs in the same loop with its own rollout or its own choice of trained completions.

    `rollout` has the signature of `igrpo_rollout`. `trained` has the signature of `trained_stages` and
    returns the completions that enter the update, with their prompts and advantages. See
    `experiments.baselines`.
    """

    name: str
    rollout: Callable[..., Rollout] = igrpo_rollout
    trained: Callable[..., list[Trained]] = trained_stages


IGRPO_STEPS = Variant("igrpo")
"""The paper's method; GRPO if `num_drafts=0`."""


def learning_rate_at(step: int, config: TrainConfig) -> float:
    """Learning rate: linear warm-up over `warmup_steps`, then a cosine decay to `min_lr_ratio` (Table S.2).

    The rate depends on the step alone, so there is no scheduler state to save.

    Args:
        step: step number, counted from 1.
        config: settings of the run.
    """
    if step <= config.warmup_steps:
        return config.learning_rate * warm_up(step, config.warmup_steps)
    done = (step - config.warmup_steps) / max(config.steps - config.warmup_steps, 1)
    low = config.min_lr_ratio
    return config.learning_rate * (low + (1 - low) * (1 + math.cos(math.pi * min(done, 1.0))) / 2)
