"""Objectives that exist only to be compared with: controls of the step size."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from igrpo_kit.core.advantages import dead_groups
from igrpo_kit.core.losses import GRPO


@dataclass(frozen=True)
class HalvedGRPO(GRPO):
    """GRPO with half the gradient. AdamW divides it by its recent size, so only gradient clipping notices."""

    def advantages(self, rewards: Float[Tensor, "P G"]) -> Float[Tensor, "P G"]:
        """Half of GRPO's; see `group_advantages`."""
        return super().advantages(rewards) / 2


@dataclass(frozen=True)
class LiveGroupsGRPO(GRPO):
    """GRPO with the mean over the live groups of a step, so that dead groups do not shrink the gradient."""

    def advantages(self, rewards: Float[Tensor, "P G"]) -> Float[Tensor, "P G"]:
        """GRPO's times P / (number of live groups), so that a mean over P becomes one over live groups."""
        dead = dead_groups(rewards)
        return super().advantages(rewards) * (len(dead) / max(1, int((~dead).sum())))
