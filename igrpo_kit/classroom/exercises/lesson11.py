"""Exercises of lesson 11, when a draft pays."""

import numpy as np
import torch
from torch import Tensor

from igrpo_kit.classroom.exercise import Arguments, Exercise, FunctionCheck, ValueCheck

NEVER = -1
"""no step: fewer than half of the runs got there"""


def waiting_time(p: float, group_size: int, prompts: int) -> float:
    """Expected steps until one of the step's groups is live for the first time."""
    live = 1 - p**group_size - (1 - p) ** group_size
    return 1 / (1 - (1 - live) ** prompts)


def _one_group(p: float, group_size: int, prompts: int) -> float:
    """You wait for one group; a step samples `prompts` of them, and any live one will do."""
    return 1 / (1 - p**group_size - (1 - p) ** group_size)


def _rare_only(p: float, group_size: int, prompts: int) -> float:
    """1 / (P G p) holds for small p only: here it can promise less than one step."""
    return 1 / (prompts * group_size * p)


def _any_correct(p: float, group_size: int, prompts: int) -> float:
    """You wait for a correct completion. A group in which *all* are correct is dead too."""
    return 1 / (1 - (1 - p) ** (group_size * prompts))


def _expected_live(p: float, group_size: int, prompts: int) -> float:
    """P * live is the expected *number* of live groups; the chance of at least one is smaller."""
    return 1 / (prompts * (1 - p**group_size - (1 - p) ** group_size))


def _random_rates(rng: np.random.Generator) -> list[Arguments]:
    return [(float(p), int(rng.integers(2, 9)), int(rng.integers(2, 9))) for p in rng.uniform(0.05, 0.6, 4)]


_WAITING_TIME = FunctionCheck(
    reference=waiting_time,
    typed=[((0.5, 2, 1), 2.0), ((0.5, 2, 2), 4 / 3), ((0.5, 4, 1), 8 / 7), ((0.9, 2, 1), 1 / 0.18)],
    random=_random_rates,
    mistakes=[_one_group, _rare_only, _any_correct, _expected_live],
)


def region(p: float, r: float, prompts: int, steps: int) -> str:
    """Who is expected to start within the run: 'both', 'GRPO', 'iGRPO' or 'neither'."""
    grpo, igrpo = prompts * 8 * p * steps >= 1, prompts * 4 * r * steps >= 1
    return {(True, True): "both", (True, False): "GRPO", (False, True): "iGRPO"}.get((grpo, igrpo), "neither")


def _by_ratio(p: float, r: float, prompts: int, steps: int) -> str:
    """You compare r with p. That says who starts first, not whether either starts within the run."""
    return "iGRPO" if 4 * r > 8 * p else "GRPO"


def _equal_groups(p: float, r: float, prompts: int, steps: int) -> str:
    """Stage 2 of iGRPO 4+4 samples 4 refinements of each prompt, not 8: its drafts are not trained."""
    return region(p, 2 * r, prompts, steps)


def _one_step(p: float, r: float, prompts: int, steps: int) -> str:
    """You ask whether a *single* step is expected to have a success; the run has `steps` of them."""
    return region(p, r, prompts, 1)


def _swapped(p: float, r: float, prompts: int, steps: int) -> str:
    """p and r have changed places: GRPO answers q (p), Stage 2 refines a wrong draft (r)."""
    return region(r, p, prompts, steps)


_REGION = FunctionCheck(
    reference=region,
    typed=[
        ((0.01, 0.05, 32, 200), "both"),
        ((1e-6, 1e-3, 32, 200), "iGRPO"),  # .05 and 25.6 expected successes
        ((1e-6, 1e-6, 32, 200), "neither"),
        ((1e-4, 1e-6, 32, 200), "GRPO"),
        ((1e-6, 2.5e-5, 32, 200), "neither"),  # .64: eight refinements would have made it 1.28
    ],
    mistakes=[_by_ratio, _equal_groups, _one_step, _swapped],
)


def median_step(first_steps: list[int | None]) -> int:
    """The step by which half of *all* runs have reached the level; -1 if fewer than half have."""
    reached = sorted(step for step in first_steps if step is not None)
    needed = (len(first_steps) + 1) // 2
    return reached[needed - 1] if len(reached) >= needed else NEVER


def _of_the_reached(first_steps: list[int | None]) -> int:
    """You leave out the runs that never got there. They are the slow ones: what remains looks too early."""
    reached = sorted(step for step in first_steps if step is not None)
    return reached[(len(reached) + 1) // 2 - 1] if reached else NEVER


def _as_the_end(first_steps: list[int | None]) -> int:
    """You count a run that did not get there as if it had at the last step. It is only known to be later."""
    return median_step([200 if step is None else step for step in first_steps])


def _mean_step(first_steps: list[int | None]) -> float:
    """That is a mean; with censored runs a mean is not known, a median may be."""
    reached = [step for step in first_steps if step is not None]
    return sum(reached) / len(reached) if reached else NEVER


def _last_reached(first_steps: list[int | None]) -> int:
    """That is when the *last* run that got there did."""
    return max((step for step in first_steps if step is not None), default=NEVER)


_MEDIAN_STEP = FunctionCheck(
    reference=median_step,
    typed=[
        (([80, 100, 120, 140],), 100),
        (([80, None, 120, 100],), 100),
        (([80, None, None, 100, 60],), 100),
        (([150, None, None, 100, None, None],), NEVER),
        (([None, None],), NEVER),
        (([60, 190, 70, None],), 70),
    ],
    mistakes=[_of_the_reached, _as_the_end, _mean_step, _last_reached],
)


def misses(ours: dict[int, list[float]], theirs: dict[int, list[float]]) -> list[int]:
    """The lengths at which the prediction is false: some p of ours < .9, or a mean over .02 below theirs."""
    mean = {n: sum(p) / len(p) - sum(theirs[n]) / len(theirs[n]) for n, p in ours.items()}
    return [n for n, p in ours.items() if min(p) < 0.9 or mean[n] < -0.02]


def _on_average(ours: dict[int, list[float]], theirs: dict[int, list[float]]) -> list[int]:
    """'In every seed': a mean of .9 can hide a seed that failed."""
    return [
        n
        for n, p in ours.items()
        if sum(p) / len(p) < 0.9 or sum(p) / len(p) - sum(theirs[n]) / len(theirs[n]) < -0.02
    ]


def _seeds_only(ours: dict[int, list[float]], theirs: dict[int, list[float]]) -> list[int]:
    """The second half is missing: nowhere below the other method by more than .02."""
    return [n for n, p in ours.items() if min(p) < 0.9]


def _any_difference(ours: dict[int, list[float]], theirs: dict[int, list[float]]) -> list[int]:
    """Being more than .02 *above* is no miss: the prediction is about one direction only."""
    mean = {n: sum(p) / len(p) - sum(theirs[n]) / len(theirs[n]) for n, p in ours.items()}
    return [n for n, p in ours.items() if min(p) < 0.9 or abs(mean[n]) > 0.02]


def _no_margin(ours: dict[int, list[float]], theirs: dict[int, list[float]]) -> list[int]:
    """You count every mean below theirs; the prediction allows .02."""
    mean = {n: sum(p) / len(p) - sum(theirs[n]) / len(theirs[n]) for n, p in ours.items()}
    return [n for n, p in ours.items() if min(p) < 0.9 or mean[n] < 0]


_MISSES = FunctionCheck(
    reference=misses,
    typed=[
        (({8: [0.95, 0.97]}, {8: [0.96, 0.97]}), []),
        (
            (
                {8: [0.95, 0.93], 12: [0.99, 0.89], 15: [0.97, 0.97], 19: [0.96, 0.98]},
                {8: [0.98, 0.99], 12: [0.93, 0.95], 15: [0.98, 0.98], 19: [0.1, 0.0]},
            ),
            [8, 12],
        ),
    ],
    mistakes=[_on_average, _seeds_only, _any_difference, _no_margin],
)


def switch_rule(draft_rewards: Tensor) -> bool:
    """Whether at least 1/8 of the draft groups are live; rewards are [P, N]."""
    live = draft_rewards.amax(dim=1) > draft_rewards.amin(dim=1)
    return live.float().mean().item() >= 1 / 8


def _mean_reward(draft_rewards: Tensor) -> bool:
    """That is the share of correct *drafts*; the rule counts groups with both rewards."""
    return draft_rewards.mean().item() >= 1 / 8


def _some_correct(draft_rewards: Tensor) -> bool:
    """A group whose drafts are *all* correct is dead: it has nothing to learn from either."""
    return (draft_rewards.amax(dim=1) > 0).float().mean().item() >= 1 / 8


def _more_than(draft_rewards: Tensor) -> bool:
    """'At least' 1/8: exactly 1/8 switches."""
    live = draft_rewards.amax(dim=1) > draft_rewards.amin(dim=1)
    return live.float().mean().item() > 1 / 8


def _any_live(draft_rewards: Tensor) -> bool:
    """One live group may be luck; the rule wants at least 1/8 of them."""
    return bool((draft_rewards.amax(dim=1) > draft_rewards.amin(dim=1)).any())


def _dead_share(draft_rewards: Tensor) -> bool:
    """You measure the *dead* groups."""
    dead = draft_rewards.amax(dim=1) == draft_rewards.amin(dim=1)
    return dead.float().mean().item() >= 1 / 8


def _groups(live: int, all_correct: int, wrong: int) -> Tensor:
    rows = live * [[1.0, 0.0, 0.0, 0.0]] + all_correct * [[1.0] * 4] + wrong * [[0.0] * 4]
    return torch.tensor(rows)


_SWITCH_RULE = FunctionCheck(
    reference=switch_rule,
    typed=[
        ((_groups(1, 0, 7),), True),
        ((_groups(1, 0, 8),), False),
        ((_groups(0, 8, 0),), False),
        ((_groups(0, 0, 8),), False),
        ((_groups(8, 0, 0),), True),
    ],
    mistakes=[_mean_reward, _some_correct, _more_than, _any_live, _dead_share],
)


def artifacts(ours: dict[float, float], theirs: dict[float, float]) -> list[float]:
    """Shared rates at which the sign of ours - theirs is not that of best against best."""
    at_best = max(ours.values()) - max(theirs.values())
    return [rate for rate in ours if (ours[rate] - theirs[rate]) * at_best < 0]


def _agreeing(ours: dict[float, float], theirs: dict[float, float]) -> list[float]:
    """Those are the rates that agree with the comparison at the best rates; the others are wanted."""
    return [rate for rate in ours if rate not in artifacts(ours, theirs)]


def _at_our_best(ours: dict[float, float], theirs: dict[float, float]) -> list[float]:
    """You compare both at *our* best rate. Each method gets its own."""
    best = max(ours, key=ours.__getitem__)
    at_best = ours[best] - theirs[best]
    return [rate for rate in ours if (ours[rate] - theirs[rate]) * at_best < 0]


def _on_average_rates(ours: dict[float, float], theirs: dict[float, float]) -> list[float]:
    """You average over rates. Nobody would use the bad ones: compare best with best."""
    mean = sum(ours.values()) / len(ours) - sum(theirs.values()) / len(theirs)
    return [rate for rate in ours if (ours[rate] - theirs[rate]) * mean < 0]


_ARTIFACTS = FunctionCheck(
    reference=artifacts,
    typed=[
        (({1e-4: 0.2, 3e-4: 0.6, 6e-4: 0.1}, {1e-4: 0.9, 3e-4: 0.1, 6e-4: 0.0}), [3e-4, 6e-4]),
        (({1e-4: 0.5, 3e-4: 0.9}, {1e-4: 0.8, 3e-4: 0.1}), [1e-4]),
        (({1e-4: 0.6, 3e-4: 0.6, 6e-4: 0.5}, {1e-4: 0.7, 3e-4: 0.0, 6e-4: 0.0}), [3e-4, 6e-4]),
    ],
    mistakes=[_agreeing, _at_our_best, _on_average_rates],
)

_SOLVED_DEAD = ValueCheck(
    right=0.8145,
    mistakes={
        0.95: "That is the chance that one refinement is correct; a group is dead if all four agree.",
        0.1855: "That is the share of *live* groups.",
        0.05: "That is the chance that one refinement is incorrect.",
    },
    otherwise="All four correct, or all four incorrect: 0.95^4 + 0.05^4. Give three digits.",
    tolerance=1e-3,
)

EXERCISES = [
    Exercise("waiting_time", "11", "code", difficulty=2, minutes=8, verify=_WAITING_TIME),
    Exercise("region", "11", "code", difficulty=1, minutes=6, verify=_REGION),
    Exercise("artifacts", "11", "code", difficulty=2, minutes=8, verify=_ARTIFACTS),
    Exercise("median_step", "11", "code", difficulty=2, minutes=8, verify=_MEDIAN_STEP),
    Exercise("misses", "11", "code", difficulty=2, minutes=8, verify=_MISSES),
    Exercise("solved_dead", "11", "prediction", difficulty=1, minutes=3, verify=_SOLVED_DEAD),
    Exercise("switch_rule", "11", "code", difficulty=2, minutes=6, verify=_SWITCH_RULE),
]
