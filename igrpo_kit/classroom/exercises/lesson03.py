"""Exercises of lesson 03, GRPO by hand."""

import numpy as np
import torch
from torch import Tensor

from igrpo_kit.advantages import group_advantages
from igrpo_kit.classroom.exercise import Arguments, Exercise, FunctionCheck


def _random_rewards(rng: np.random.Generator) -> list[Arguments]:
    graded, binary = rng.random((3, 4)), rng.integers(0, 2, (5, 8)).astype(float)
    return [(torch.tensor(graded),), (torch.tensor(binary),)]


def _population_std(rewards: Tensor) -> Tensor:
    """You divide by the population standard deviation (ddof = 0); the paper says sample (ddof = 1)."""
    centred, std = rewards - rewards.mean(1, keepdim=True), rewards.std(1, keepdim=True, correction=0)
    return torch.where(std == 0, 0.0, centred / std)


def _over_the_batch(rewards: Tensor) -> Tensor:
    """Mean and std are taken over the whole batch; each group, a row, is to be compared with itself."""
    return (rewards - rewards.mean()) / rewards.std()


def _only_centred(rewards: Tensor) -> Tensor:
    """You subtract the mean, but do not divide by the standard deviation."""
    return rewards - rewards.mean(dim=1, keepdim=True)


def _nan_where_dead(rewards: Tensor) -> Tensor:
    """A dead group gives 0/0 = NaN; Eq. 4 sets its advantages to exactly 0."""
    return (rewards - rewards.mean(dim=1, keepdim=True)) / rewards.std(dim=1, keepdim=True)


EXERCISES = [
    Exercise(
        name="group_advantages",
        lesson="03",
        kind="code",
        difficulty=1,
        minutes=5,
        verify=FunctionCheck(
            reference=group_advantages,
            typed=[
                (
                    (torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]]),),
                    torch.tensor([[1.5, -0.5, -0.5, -0.5], [0.0, 0.0, 0.0, 0.0]]),
                )
            ],
            random=_random_rewards,
            mistakes=[_population_std, _over_the_batch, _only_centred, _nan_where_dead],
        ),
    ),
]
