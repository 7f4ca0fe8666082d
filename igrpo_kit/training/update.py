"""One policy update from one rollout (Algorithm 1, line 17): parts, loss, gradient, optimizer step.

Two optimizations reduce the cost of iGRPO's update and leave the gradient unchanged. The G refinements of a
group share their long prompt q', which is encoded once (`policies.log_probs`). Groups whose rewards are all
equal have advantage 0. Without a KL penalty they contribute no gradient and are skipped.

Algorithm and equations: https://arxiv.org/abs/2602.09000.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from igrpo_kit.core.advantages import advantages_of_scored
from igrpo_kit.core.losses import LossStats, Objective
from igrpo_kit.core.rows import Row
from igrpo_kit.policies.log_probs import completion_log_probs
from igrpo_kit.policies.samplers.sampler import Samples
from igrpo_kit.training.optimization import clip_gradient
from igrpo_kit.training.rollout import Rollout


class NonFiniteError(RuntimeError):
    """A loss or gradient was NaN or infinite; the weights are those before that optimizer step.

    `batch` holds the input of the update, as tensors and plain values.
    """

    def __init__(self, message: str, batch: Row) -> None:
        super().__init__(message)
        self.batch = batch


@dataclasses.dataclass(frozen=True)
class Trained:
    """Groups of completions that enter one update."""

    samples: Samples
    """completions and masks; the log-probs are conditioned on its `prompt_ids`"""
    advantages: Float[Tensor, "P G"]
    objective: Objective
    on_policy: bool = True
    """False if the completions were sampled from prompts other than those in `samples`; the ratio is then
    taken to the probability under which they were sampled, and is not 1 at the first update"""


def trained_stages(rollout: Rollout, objective: Objective, *, train_drafts: bool = False) -> list[Trained]:
    """iGRPO's trained completions: the refinements, conditioned on the prompt they were sampled from.

    A completion that could not be scored has advantage 0 (see `advantages_of_scored`).

    Args:
        rollout: both stages of one step.
        objective: computes the advantages.
        train_drafts: also train the drafts (our extension).
    """
    stages = [rollout.refinements]
    if train_drafts:
        assert rollout.drafts is not None
        stages.append(rollout.drafts)
    return [
        Trained(s.samples, advantages_of_scored(s.rewards, objective.advantages), objective) for s in stages
    ]


@dataclasses.dataclass
class _Part:
    """Some trained groups: the input of one forward and backward pass."""

    prompt_ids: list[list[int]]
    completion_ids: Tensor
    mask: Tensor
    advantages: Tensor
    sampled_log_probs: Tensor
    share: float
    objective: Objective
    on_policy: bool
    old_log_probs: Tensor | None = None
    ref_log_probs: Tensor | None = None


def _parts(trained: Sequence[Trained], micro_batches: int) -> list[_Part]:
    """Cut the trained groups into at most `micro_batches` pieces of whole groups.

    Groups with advantage 0 are left out if beta = 0, because they contribute no gradient. They still count in
    the mean, through `share`.
    """
    width = max(t.samples.mask.shape[1] for t in trained)
    whole = torch.cat(
        [torch.nn.functional.pad(t.samples.mask, (0, width - t.samples.mask.shape[1])) for t in trained]
    )
    parts = []
    for t in trained:
        samples, objective, (P, G) = t.samples, t.objective, t.advantages.shape
        acting = (t.advantages != 0).any(dim=1) if objective.beta == 0 else torch.ones(P, dtype=torch.bool)
        groups = acting.nonzero().flatten()
        for piece in groups.tensor_split(micro_batches):
            if len(piece) == 0:
                continue
            rows = (piece[:, None] * G + torch.arange(G)).flatten().to(samples.mask.device)
            length = int(samples.mask[rows].sum(dim=1).max())
            mask = samples.mask[rows, :length]
            parts.append(
                _Part(
                    prompt_ids=[samples.prompt_ids[i] for i in piece.tolist()],
                    completion_ids=samples.completion_ids[rows, :length],
                    mask=mask,
                    advantages=t.advantages[piece].flatten().to(mask.device),
                    sampled_log_probs=samples.log_probs[rows, :length],
                    share=objective.share(mask, whole),
                    objective=objective,
                    on_policy=t.on_policy,
                    old_log_probs=None if t.on_policy else samples.log_probs[rows, :length],
                )
            )
    return parts


def train_step(
    model: Any,
    optimizer: torch.optim.Optimizer,
    rollout: Rollout,
    objective: Objective,
    *,
    train_drafts: bool = False,
    **settings: Any,
) -> dict[str, float]:
    """One policy update from a rollout (Eqs. 5, 27).

    Only the tokens of the refinements are trained, conditioned on the prompt they were sampled from, q' for
    iGRPO. With `train_drafts`, our extension, the drafts are trained too, conditioned on q; the loss is then
    the mean over both.

    Args:
        model: the model to update.
        optimizer: its optimizer.
        rollout: both stages of one step.
        objective: computes advantages and loss.
        train_drafts: also train the drafts.
        settings: keyword arguments of `update`.

    Returns:
        Metrics, as `update`.

    Raises:
        NonFiniteError: loss or gradient is NaN or infinite; raised before that optimizer step.
    """
    return update(model, optimizer, trained_stages(rollout, objective, train_drafts=train_drafts), **settings)


def update(
    model: Any,
    optimizer: torch.optim.Optimizer,
    trained: Sequence[Trained],
    *,
    temperature: float,
    num_iterations: int = 1,
    micro_batches: int = 1,
    max_grad_norm: float = 1.0,
    reference: Any = None,
    bfloat16: bool = False,
) -> dict[str, float]:
    """One policy update from any groups of completions.

    The old log-probs are those of the first iteration, computed by the same code as the new ones. This needs
    no extra pass, and the ratio is exactly 1 there, whatever the rounding of the sampler.

    Args:
        model: the model to update.
        optimizer: its optimizer.
        trained: groups of completions, with advantages and objectives.
        temperature: the sampler's temperature.
        num_iterations: optimizer steps (mu).
        micro_batches: number of pieces in which each trained stage is computed.
        max_grad_norm: limit of the gradient's L2 norm.
        reference: the reference model, required exactly when `objective.beta` > 0.
        bfloat16: autocast the forward passes to bfloat16.

    Returns:
        Metrics. Loss and gradient norm are those of the last iteration; ratios and clip fraction are means
        over all iterations. `live_tokens` counts the tokens with a nonzero advantage, once each.

    Raises:
        NonFiniteError: loss or gradient is NaN or infinite; raised before that optimizer step.
    """
    start = perf_counter()
    parts = _parts(trained, micro_batches)
    log_probs_of = partial(_log_probs, temperature=temperature, bfloat16=bfloat16)
    if reference is not None:
        with torch.no_grad():
            for part in parts:
                part.ref_log_probs = log_probs_of(reference, part)
    stats: list[LossStats] = []
    for iteration in range(num_iterations):
        loss, seen = _accumulate_gradient(model, parts, log_probs_of)
        stats += seen
        if iteration == 0:
            gap = _sampler_gap(parts)
        grad_norm = clip_gradient(model, max_grad_norm)
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise NonFiniteError(f"loss {loss}, gradient norm {grad_norm}", _batch_row(parts))
        optimizer.step()
    return {
        "loss": loss,
        "grad_norm": grad_norm,
        "live_tokens": float(sum(map(_live_tokens, trained))),
        **_mean_stats(stats),
        "sampler_gap": gap,
        "seconds/update": perf_counter() - start,
    }


def _log_probs(model: Any, part: _Part, *, temperature: float, bfloat16: bool) -> Tensor:
    device = next(model.parameters()).device.type
    with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
        return completion_log_probs(
            model, part.prompt_ids, part.completion_ids, part.mask, temperature=temperature
        )


def _accumulate_gradient(
    model: Any, parts: Sequence[_Part], log_probs_of: Callable[[Any, _Part], Tensor]
) -> tuple[float, list[LossStats]]:
    """Compute the gradient and loss of the whole batch, part by part, and the statistics of each part."""
    _zero_gradients(model)
    total, stats = 0.0, []
    for part in parts:
        log_probs = log_probs_of(model, part)
        loss, seen = part.objective.loss(
            log_probs, part.old_log_probs, part.advantages, part.mask, ref_log_probs=part.ref_log_probs
        )
        (loss * part.share).backward()
        total += loss.item() * part.share
        if part.old_log_probs is None:  # first iteration: before any update
            part.old_log_probs = log_probs.detach()
        stats.append(seen)
    return total, stats


def _live_tokens(trained: Trained) -> int:
    """The tokens with a nonzero advantage: without a KL penalty, only they have a gradient."""
    acting = trained.advantages.flatten().to(trained.samples.mask.device) != 0
    return int(trained.samples.mask[acting].sum())


def _sampler_gap(parts: Sequence[_Part]) -> float:
    """Mean absolute difference of the sampler's and our log-probs before any update, in nats per token."""
    gaps = [
        (p.old_log_probs - p.sampled_log_probs).abs()[p.mask]
        for p in parts
        if p.old_log_probs is not None and p.on_policy
    ]
    return torch.cat(gaps).mean().item() if gaps else math.nan


def _zero_gradients(model: Any) -> None:
    """Set gradients to zero rather than None, so that a step with only dead groups has a gradient of 0."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)


def _batch_row(parts: Sequence[_Part]) -> Row:
    rows = [{f.name: getattr(p, f.name) for f in dataclasses.fields(p)} for p in parts]
    return {"parts": [{**row, "objective": str(row["objective"])} for row in rows]}


def _mean_stats(stats: Sequence[LossStats]) -> dict[str, float]:
    """Means over the tokens that entered the update; NaN if every group was dead."""
    tokens = sum(s.tokens for s in stats)
    row = {"ratio_max": max((s.ratio_max for s in stats), default=math.nan)}
    for name in ("clip_fraction", "ratio_mean", "kl"):
        row[name] = sum(getattr(s, name) * s.tokens for s in stats) / tokens if tokens else math.nan
    return row
