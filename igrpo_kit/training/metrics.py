"""Metrics of one step's rollout, as one flat row of numbers.

Names that begin with `stage1/` refer to the drafts. The other names refer to the group that is trained:
iGRPO's refinements, conditioned on q', or GRPO's completions, conditioned on q. The `reward` of the two
methods is therefore not comparable: iGRPO's refinements are conditioned on the best draft.

Propositions and equations: https://arxiv.org/abs/2602.09000.
"""

import torch
from torch import Tensor

from igrpo_kit.core.advantages import dead_groups
from igrpo_kit.core.passk import pass_at_k
from igrpo_kit.core.tokens import masked_mean
from igrpo_kit.tasks.rewards import status_counts
from igrpo_kit.training.rollout import NOT_SAMPLED, Rollout, Stage


def _mean(x: Tensor) -> float:
    return x.float().mean().item() if x.numel() else float("nan")


def _stage_metrics(stage: Stage) -> dict[str, float]:
    samples, rewards = stage.samples, stage.rewards
    sampled = torch.tensor([reason != NOT_SAMPLED for reason in samples.finish_reasons])
    lengths = samples.mask.sum(dim=1)[sampled].float()
    alike = dead_groups(rewards) if rewards.shape[1] > 1 else torch.ones(len(rewards), dtype=torch.bool)
    if not sampled.all():  # with early stopping, a problem's drafts do not form a group
        alike = torch.full((len(rewards),), torch.nan)
    return {
        "reward": _mean(stage.rewards[~stage.rewards.isnan()]),
        "correct": _mean(stage.correct.flatten()[sampled]),
        "dead_groups": _mean(alike),
        "all_correct_groups": _mean(stage.correct.all(dim=1)),
        "unscored": _mean(stage.rewards.isnan().flatten()[sampled]),
        "entropy": float("nan")
        if samples.entropies is None
        else masked_mean(samples.entropies, samples.mask).item(),
        "length": _mean(lengths),
        "truncated": sum(reason == "length" for reason in samples.finish_reasons) / int(sampled.sum()),
        "tokens": float(samples.mask.sum()),
    }


def _best_draft_metrics(drafts: Stage, num_drafts: int) -> dict[str, float]:
    """Measured best of N, and the predictions of Proposition 3.1 from the mean p and from each prompt's p.

    The second prediction is unbiased. It needs more than N samples of q: with N it equals the measurement.
    """
    n = drafts.rewards.shape[1]
    best = drafts.rewards.nan_to_num(nan=-torch.inf)[:, :num_drafts].amax(dim=1)
    row = {
        "best_draft_reward": _mean(best[best.isfinite()]),
        "best_draft_correct": _mean(drafts.correct[:, :num_drafts].any(dim=1)),
    }
    if not drafts.rewards.isnan().any():  # with early stopping, the number of drafts is not fixed
        row["best_draft_predicted_from_mean_p"] = 1 - (1 - _mean(drafts.correct)) ** num_drafts
        if n > num_drafts:
            per_prompt = pass_at_k(n, drafts.correct.sum(dim=1).numpy(), num_drafts)
            row["best_draft_predicted_per_prompt"] = float(per_prompt.mean())
    return row


def _transition_metrics(rollout: Rollout) -> dict[str, float]:
    """Rates and counts of copied, repaired and regressed refinements, relative to their draft."""
    assert rollout.drafts is not None and rollout.shown_rewards is not None
    P, G = rollout.refinements.rewards.shape
    shown = [rollout.draft_text(i) for i in range(P)]
    has_draft = torch.tensor([text is not None for text in shown])
    texts = rollout.refinements.samples.texts
    copied = torch.tensor([[texts[i * G + j] == shown[i] for j in range(G)] for i in range(P)])
    of_correct = rollout.shown_rewards >= rollout.drafts.full_reward
    became = rollout.refinements.correct
    from_correct, from_incorrect = became[of_correct], became[has_draft & ~of_correct]
    return {
        "copy_rate": _mean(copied[has_draft]),
        "copy_rate_of_correct": _mean(copied[of_correct]),
        "regressed": _mean(~from_correct),
        "repaired": _mean(from_incorrect),
        "transitions/kept": int(from_correct.sum()),
        "transitions/regressed": int((~from_correct).sum()),
        "transitions/repaired": int(from_incorrect.sum()),
        "transitions/still_incorrect": int((~from_incorrect).sum()),
    }


def rollout_metrics(rollout: Rollout, *, num_drafts: int) -> dict[str, float]:
    """One flat row: rewards by stage, best draft, dead groups, copies, transitions, entropy and lengths.

    A completion is *correct* if its reward is at least the reward's `full_reward`. Entropies are in nats per
    token, lengths in tokens per completion, times in seconds. A number that is undefined is NaN.

    Args:
        rollout: the rollout of one step.
        num_drafts: N of the best-of-N metrics. For GRPO, whose completions are all sampled from q, use the N
            of iGRPO at the same rollout budget.
    """
    row = _stage_metrics(rollout.refinements)
    on_q = rollout.refinements
    seconds = {"sampling": on_q.seconds_sampling, "scoring": on_q.seconds_scoring}
    row |= {f"status/{k}": float(v) for k, v in status_counts(on_q.scores.statuses).items()}
    if rollout.drafts is not None:
        on_q = rollout.drafts
        row |= {f"stage1/{k}": v for k, v in _stage_metrics(on_q).items()}
        row |= {f"stage1/status/{k}": float(v) for k, v in status_counts(on_q.scores.statuses).items()}
        row |= _transition_metrics(rollout)
        seconds["stage1_sampling"] = on_q.seconds_sampling
        seconds["sampling"] += on_q.seconds_sampling
        seconds["scoring"] += on_q.seconds_scoring
    if 0 < num_drafts <= on_q.rewards.shape[1]:
        row |= _best_draft_metrics(on_q, num_drafts)
    return row | {f"seconds/{k}": v for k, v in seconds.items()}
