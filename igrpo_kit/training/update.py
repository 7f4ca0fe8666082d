"""One policy update from one rollout (Algorithm 1, line 17): parts, loss, gradient, optimizer step.

Two exact savings make iGRPO's update cheap: the G refinements of a group share their long prompt q', which is
encoded once (`scoring`), and groups whose rewards all agree have advantage 0, so without a KL penalty they
have gradient 0 and are not computed at all.
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

from igrpo_kit.core.advantages import fill_unscored
from igrpo_kit.core.losses import LossStats, Objective
from igrpo_kit.core.rows import Row
from igrpo_kit.policies.log_probs import completion_log_probs
from igrpo_kit.policies.samplers.sampler import Samples
from igrpo_kit.training.optimization import clip_gradient
from igrpo_kit.training.rollout import Rollout


class NonFiniteError(RuntimeError):
    """A loss or a gradient was NaN or infinite; the weights are those before that optimizer step.

    `batch` holds what the update was computed from, as tensors and plain values.
    """

    def __init__(self, message: str, batch: Row) -> None:
        super().__init__(message)
        self.batch = batch


@dataclasses.dataclass(frozen=True)
class Trained:
    """Groups of completions that enter one update."""

    samples: Samples
    """rows and masks; its `prompt_ids` are what the log-probs are conditioned on"""
    advantages: Float[Tensor, "P G"]
    objective: Objective
    on_policy: bool = True
    """False where the completions were drawn from other prompts than those in `samples`: the ratio is then
    taken to the probability they were drawn with, and is not 1 at the first update"""


def trained_stages(rollout: Rollout, objective: Objective, *, train_drafts: bool = False) -> list[Trained]:
    """What iGRPO trains: the refinements, on the prompt they were drawn from; our extension, the drafts too.

    A completion that could not be scored gets its group's mean, hence advantage 0.
    """
    stages = [rollout.refinements]
    if train_drafts:
        assert rollout.drafts is not None
        stages.append(rollout.drafts)
    return [Trained(s.samples, objective.advantages(fill_unscored(s.rewards)), objective) for s in stages]


@dataclasses.dataclass
class _Part:
    """Some trained groups: what one forward and backward pass is computed from."""

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
    """The trained groups cut into at most `micro_batches` pieces of whole groups each.

    Groups of advantage 0 are left out where nothing else acts on them (beta = 0): their gradient is 0.
    They stay in the mean, through `share`.
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
    """One policy update from a rollout (Eqs. 5, 27); `settings` are those of `update`, metrics are returned.

    Only the refinements' tokens are trained, conditioned on the prompt they were sampled from, q' for iGRPO
    (with `train_drafts`, our extension, also the drafts', on q; the loss is then the mean over both).

    Raises NonFiniteError, before that optimizer step, where loss or gradient is NaN or infinite.
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
    """One policy update from any groups of completions: `num_iterations` optimizer steps, metrics returned.

    The old log-probs are those of the first iteration, computed by the same code as the new ones: no extra
    pass, and a ratio of exactly 1 there, whatever the sampler's own rounding. `temperature` is the sampler's.
    `reference` is needed exactly when `objective.beta` > 0.

    Loss and gradient norm are those of the last iteration, ratios and clip fraction means over all of them.

    Raises NonFiniteError, before that optimizer step, where loss or gradient is NaN or infinite.
    """
    start = perf_counter()
    parts = _parts(trained, micro_batches)
    score = partial(_log_probs, temperature=temperature, bfloat16=bfloat16)
    if reference is not None:
        with torch.no_grad():
            for part in parts:
                part.ref_log_probs = score(reference, part)
    stats: list[LossStats] = []
    for iteration in range(num_iterations):
        loss, seen = _accumulate_gradient(model, parts, score)
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
    model: Any, parts: Sequence[_Part], score: Callable[[Any, _Part], Tensor]
) -> tuple[float, list[LossStats]]:
    """Gradient and loss of the whole batch, part by part, and the statistics of each part."""
    _zero_gradients(model)
    total, stats = 0.0, []
    for part in parts:
        log_probs = score(model, part)
        loss, seen = part.objective.loss(
            log_probs, part.old_log_probs, part.advantages, part.mask, ref_log_probs=part.ref_log_probs
        )
        (loss * part.share).backward()
        total += loss.item() * part.share
        if part.old_log_probs is None:  # the first iteration: nothing has been updated yet
            part.old_log_probs = log_probs.detach()
        stats.append(seen)
    return total, stats


def _sampler_gap(parts: Sequence[_Part]) -> float:
    """Mean distance of the sampler's log-probs from the trainer's before any update, in nats per token."""
    gaps = [
        (p.old_log_probs - p.sampled_log_probs).abs()[p.mask]
        for p in parts
        if p.old_log_probs is not None and p.on_policy
    ]
    return torch.cat(gaps).mean().item() if gaps else math.nan


def _zero_gradients(model: Any) -> None:
    """Zero, not None: a step in which every group is dead still has a gradient, and it is 0."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)


def _batch_row(parts: Sequence[_Part]) -> Row:
    rows = [{f.name: getattr(p, f.name) for f in dataclasses.fields(p)} for p in parts]
    return {"parts": [{**row, "objective": str(row["objective"])} for row in rows]}


def _mean_stats(stats: Sequence[LossStats]) -> dict[str, float]:
    """Means over the tokens the update was computed from; NaN where every group was dead."""
    tokens = sum(s.tokens for s in stats)
    row = {"update_tokens": float(tokens), "ratio_max": max((s.ratio_max for s in stats), default=math.nan)}
    for name in ("clip_fraction", "ratio_mean", "kl"):
        row[name] = sum(getattr(s, name) * s.tokens for s in stats) / tokens if tokens else math.nan
    return row
