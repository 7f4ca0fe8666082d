"""What one step's rollout looked like, as one flat row of numbers.

Names with `stage1` speak of the drafts, the others of the group that is trained: iGRPO's refinements,
conditioned on q', or GRPO's completions of q. The two methods' `reward`s are therefore not comparable: a
refinement was shown the best draft.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from igrpo_kit.advantages import dead_groups
from igrpo_kit.analysis.passk import pass_at_k
from igrpo_kit.rewards import status_counts
from igrpo_kit.rollout import NOT_DRAWN, Rollout, Stage
from igrpo_kit.tokens import masked_mean


def fill_unscored(rewards: Float[Tensor, "P G"]) -> Float[Tensor, "P G"]:
    """Rewards with NaN, a completion that could not be scored, replaced by its group's mean of the scored.

    Such a completion then has advantage 0: it is neither rewarded nor punished for a judge's failure. A
    group without any scored completion becomes 0 throughout, which is dead.
    """
    scored = ~rewards.isnan()
    mean = rewards.double().nansum(dim=1, keepdim=True) / scored.sum(dim=1, keepdim=True).clamp(min=1)
    # Where all scored rewards agree, rounding must not make the mean another number: the group is dead.
    low = rewards.nan_to_num(nan=torch.inf).amin(dim=1, keepdim=True)
    high = rewards.nan_to_num(nan=-torch.inf).amax(dim=1, keepdim=True)
    mean = torch.where(scored.any(dim=1, keepdim=True), mean.to(rewards.dtype).clamp(low, high), 0.0)
    return torch.where(scored, rewards, mean)


def _mean(x: Tensor) -> float:
    return x.float().mean().item() if x.numel() else float("nan")


def _stage_metrics(stage: Stage, full_reward: float) -> dict[str, float]:
    samples, rewards = stage.samples, fill_unscored(stage.rewards)
    drawn = torch.tensor([reason != NOT_DRAWN for reason in samples.finish_reasons])
    lengths = samples.mask.sum(dim=1)[drawn].float()
    alike = dead_groups(rewards) if rewards.shape[1] > 1 else torch.ones(len(rewards), dtype=torch.bool)
    if not drawn.all():  # early stopping: a problem's drafts are no group
        alike = torch.full((len(rewards),), torch.nan)
    right = (stage.rewards >= full_reward).all(dim=1)
    return {
        "reward": _mean(stage.rewards[~stage.rewards.isnan()]),
        "right": _mean((stage.rewards >= full_reward).flatten()[drawn]),
        "dead_groups": _mean(alike),
        "all_right_groups": _mean(right),
        "unscored": _mean(stage.rewards.isnan().flatten()[drawn]),
        "entropy": float("nan")
        if samples.entropies is None
        else masked_mean(samples.entropies, samples.mask).item(),
        "length": _mean(lengths),
        "truncated": sum(reason == "length" for reason in samples.finish_reasons) / int(drawn.sum()),
        "tokens": float(samples.mask.sum()),
    }


def _best_draft_metrics(drafts: Stage, num_drafts: int, full_reward: float) -> dict[str, float]:
    """The measured best of N beside Proposition 3.1, with the mean p and, unbiased, with each prompt's own.

    The latter needs more than N samples of q: of N alone it is the measurement itself.
    """
    right, n = drafts.rewards >= full_reward, drafts.rewards.shape[1]
    best = drafts.rewards.nan_to_num(nan=-torch.inf)[:, :num_drafts].amax(dim=1)
    row = {
        "best_draft_reward": _mean(best[best.isfinite()]),
        "best_draft_right": _mean(right[:, :num_drafts].any(dim=1)),
    }
    if not drafts.rewards.isnan().any():  # with early stopping the drafts are no fixed-size sample
        row["best_draft_predicted_from_mean_p"] = 1 - (1 - _mean(right)) ** num_drafts
        if n > num_drafts:
            per_prompt = pass_at_k(n, right.sum(dim=1).numpy(), num_drafts)
            row["best_draft_predicted_per_prompt"] = float(per_prompt.mean())
    return row


def _transition_metrics(rollout: Rollout, full_reward: float) -> dict[str, float]:
    """From the draft that was shown to its refinements: copied, repaired, spoilt."""
    assert rollout.drafts is not None and rollout.selected is not None
    P, G = rollout.refinements.rewards.shape
    shown = [rollout.draft_text(i) for i in range(P)]
    has_draft = torch.tensor([text is not None for text in shown])
    texts = rollout.refinements.samples.texts
    copied = torch.tensor([[texts[i * G + j] == shown[i] for j in range(G)] for i in range(P)])
    draft_reward = rollout.drafts.rewards.gather(1, rollout.selected.clamp(min=0)[:, None]).squeeze(1)
    draft_right = has_draft & (draft_reward >= full_reward)
    right = rollout.refinements.rewards >= full_reward
    return {
        "copy_rate": _mean(copied[has_draft]),
        "copy_rate_of_right": _mean(copied[draft_right]),
        "right_to_wrong": _mean(~right[draft_right]),
        "wrong_to_right": _mean(right[has_draft & ~draft_right]),
    }


def rollout_metrics(rollout: Rollout, *, num_drafts: int, full_reward: float = 1.0) -> dict[str, float]:
    """One flat row: rewards per stage, best draft, dead groups, copies, transitions, entropy, lengths.

    A completion is *right* from `full_reward` on. For GRPO, whose completions are samples of q,
    `num_drafts` says what best-of-N its predictions are for (the budget-matched iGRPO's N).
    Entropies are nats per token, lengths tokens per completion. NaN where a number does not exist.
    """
    row = _stage_metrics(rollout.refinements, full_reward)
    on_q = rollout.refinements
    seconds = {"sampling": on_q.seconds_sampling, "scoring": on_q.seconds_scoring}
    row |= {f"status/{k}": float(v) for k, v in status_counts(on_q.scores.statuses).items()}
    if rollout.drafts is not None:
        on_q = rollout.drafts
        row |= {f"stage1/{k}": v for k, v in _stage_metrics(on_q, full_reward).items()}
        row |= {f"stage1/status/{k}": float(v) for k, v in status_counts(on_q.scores.statuses).items()}
        row |= _transition_metrics(rollout, full_reward)
        seconds["stage1_sampling"] = on_q.seconds_sampling
        seconds["sampling"] += on_q.seconds_sampling
        seconds["scoring"] += on_q.seconds_scoring
    if 0 < num_drafts <= on_q.rewards.shape[1]:
        row |= _best_draft_metrics(on_q, num_drafts, full_reward)
    return row | {f"seconds/{k}": v for k, v in seconds.items()}
