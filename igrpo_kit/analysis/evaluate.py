"""What a policy can do after training: K samples per problem under three ways of asking.

- `q`: single-shot from the question, the paper's way (Section 3.2.1) and the only one that needs no draft.
- `own_draft`: one sample from q is shown as the draft, whatever it is worth. Needs no reward.
- `best_of_n`: the best of N samples is shown. Needs the reward at inference: an oracle, so compare it with
  best-of-N of the baseline, not with its single shot.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from igrpo_kit.metrics import rollout_metrics
from igrpo_kit.problems import Problem
from igrpo_kit.prompts import PromptFormat
from igrpo_kit.rewards import Reward
from igrpo_kit.rollout import RewardFunction, igrpo_rollout
from igrpo_kit.runlog import Row
from igrpo_kit.samplers import Sampler

Protocol = Literal["q", "own_draft", "best_of_n"]


@dataclass(frozen=True)
class Evaluation:
    """K graded samples for each problem, counted: enough for any pass@k and its interval."""

    protocol: str
    temperature: float
    num_samples: int
    right: list[int]
    """per problem, how many of its K samples reached the full reward"""
    reward: list[float]
    """per problem, the mean reward of its K samples"""
    draft_right: list[int] | None
    """per problem, how many of the K drafts that were shown were right; None where none was shown"""
    entropy: float
    """nats per token, over the samples that were graded"""
    length: float
    """tokens per sample"""

    def to_row(self) -> Row:
        """Plain values for a JSONL file."""
        return asdict(self)


def evaluate(
    sampler: Sampler,
    reward: Reward | RewardFunction,
    problems: Sequence[Problem],
    *,
    num_samples: int,
    protocol: Protocol = "q",
    num_drafts: int = 4,
    prompt_format: PromptFormat,
    tokenizer: Any = None,
    full_reward: float = 1.0,
) -> Evaluation:
    """Sample and grade K = `num_samples` completions per problem at the sampler's temperature.

    Under `own_draft` and `best_of_n` every one of the K samples gets a draft of its own, so samples of one
    problem stay independent. `num_drafts` is best_of_n's N.

    Raises ValueError for an unknown protocol.
    """
    if protocol not in ("q", "own_draft", "best_of_n"):
        raise ValueError(f'protocol: "q", "own_draft" or "best_of_n", got {protocol!r}')
    asked = list(problems)
    counts: dict[str, Any] = {"num_drafts": 0, "num_refinements": num_samples}
    if protocol != "q":  # a draft of its own for every sample
        asked = [problem for problem in problems for _ in range(num_samples)]
        counts = {"num_drafts": 1 if protocol == "own_draft" else num_drafts, "num_refinements": 1}
    rollout = igrpo_rollout(
        sampler, reward, asked, prompt_format=prompt_format, tokenizer=tokenizer, **counts
    )
    shape = (len(problems), num_samples)
    rewards = rollout.refinements.rewards.view(shape)
    draft_right = None
    if rollout.drafts is not None and rollout.selected is not None:
        shown = rollout.drafts.rewards.gather(1, rollout.selected[:, None]).view(shape)
        draft_right = (shown >= full_reward).sum(dim=1).tolist()
    row = rollout_metrics(rollout, num_drafts=0)
    return Evaluation(
        protocol=protocol,
        temperature=sampler.settings.temperature,
        num_samples=num_samples,
        right=(rewards >= full_reward).sum(dim=1).tolist(),
        reward=[round(x, 6) for x in rewards.nanmean(dim=1).tolist()],
        draft_right=draft_right,
        entropy=row["entropy"],
        length=row["length"],
    )
