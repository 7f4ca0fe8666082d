"""What one step's rollout looked like, as one flat row of numbers.

Names with `stage1` speak of the drafts, the others of the group that is trained: iGRPO's refinements,
conditioned on q', or GRPO's completions of q. The two methods' `reward`s are therefore not comparable: a
refinement was shown the best draft.
"""

import torch
from torch import Tensor

from igrpo_kit.core.advantages import dead_groups, fill_unscored
from igrpo_kit.core.passk import pass_at_k
from igrpo_kit.core.tokens import masked_mean
from igrpo_kit.tasks.rewards import status_counts
from igrpo_kit.training.rollout import NOT_SAMPLED, Rollout, Stage


def _mean(x: Tensor) -> float:
    return x.float().mean().item() if x.numel() else float("nan")


def _stage_metrics(stage: Stage) -> dict[str, float]:
    samples, rewards = stage.samples, fill_unscored(stage.rewards)
    sampled = torch.tensor([reason != NOT_SAMPLED for reason in samples.finish_reasons])
    lengths = samples.mask.sum(dim=1)[sampled].float()
    alike = dead_groups(rewards) if rewards.shape[1] > 1 else torch.ones(len(rewards), dtype=torch.bool)
    if not sampled.all():  # early stopping: a problem's drafts are no group
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
    """The measured best of N beside Proposition 3.1, with the mean p and, unbiased, with each prompt's own.

    The latter needs more than N samples of q: of N alone it is the measurement itself.
    """
    n = drafts.rewards.shape[1]
    best = drafts.rewards.nan_to_num(nan=-torch.inf)[:, :num_drafts].amax(dim=1)
    row = {
        "best_draft_reward": _mean(best[best.isfinite()]),
        "best_draft_correct": _mean(drafts.correct[:, :num_drafts].any(dim=1)),
    }
    if not drafts.rewards.isnan().any():  # with early stopping the drafts are no fixed-size sample
        row["best_draft_predicted_from_mean_p"] = 1 - (1 - _mean(drafts.correct)) ** num_drafts
        if n > num_drafts:
            per_prompt = pass_at_k(n, drafts.correct.sum(dim=1).numpy(), num_drafts)
            row["best_draft_predicted_per_prompt"] = float(per_prompt.mean())
    return row


def _transition_metrics(rollout: Rollout) -> dict[str, float]:
    """From the draft that was shown to its refinements: copied, repaired, regressed; rates and counts."""
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
    """One flat row: rewards per stage, best draft, dead groups, copies, transitions, entropy, lengths.

    A completion is *correct* from the reward's `full_reward` on. For GRPO, whose completions are samples of
    q, `num_drafts` says what best-of-N its predictions are for (the budget-matched iGRPO's N).
    Entropies are nats per token, lengths tokens per completion. NaN where a number does not exist.
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
