"""The clipped surrogate, the KL penalty, their reductions, and the named objectives built from them.

The pure functions return what the paper *maximizes* (Eqs. 1, 5, 27); an objective's `loss` is minus that.
Log-probs are conditioned on whatever prompt the completions were sampled from: for iGRPO's refinements
that is q' = q + best draft (Eq. 20), and no token of the draft is in the mask.

| objective | ratio | clip | normalization of rewards | reduction |
|---|---|---|---|---|
| `GRPO` (Eq. 1) | token | 1 ± 0.2 | mean, std | 1/|o| per sequence, then mean |
| `DrGRPO` (arXiv 2503.20783) | token | 1 ± 0.2 | mean | sum over a constant length |
| `DAPO` (arXiv 2503.14476) | token | 0.8, 1.28 | mean, std | mean over all tokens |
| `GSPO` (arXiv 2507.18071) | sequence | 1 - 3e-4, 1 + 4e-4 | mean, std | as GRPO |
| `CISPO` (arXiv 2506.13585) | token, detached | at most 5 | mean, std | as DAPO |
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from igrpo_kit.core.advantages import group_advantages

Reduction = Literal["sequence_mean", "token_mean", "constant"]


def importance_ratio(
    log_probs: Float[Tensor, "B T"], old_log_probs: Float[Tensor, "B T"]
) -> Float[Tensor, "B T"]:
    """r = pi(o_t | q', o_<t) / pi_old(o_t | q', o_<t) for each token (Eq. 20)."""
    return (log_probs - old_log_probs).exp()


def sequence_importance_ratio(
    log_probs: Float[Tensor, "B T"],
    old_log_probs: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
) -> Float[Tensor, "B T"]:
    """s = (pi(o | q') / pi_old(o | q'))^(1/|o|), the same at every token of a row (GSPO)."""
    log_ratio = (log_probs - old_log_probs).masked_fill(~mask, 0.0)
    mean = log_ratio.sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True).clamp(min=1)
    return mean.exp().expand_as(log_probs)


def clipped_objective(
    ratio: Float[Tensor, "B T"],
    advantages: Float[Tensor, " B"],
    *,
    clip_low: float,
    clip_high: float,
) -> Float[Tensor, "B T"]:
    """min(r A, clip(r, 1 - clip_low, 1 + clip_high) A): Eq. 21, to be maximized."""
    A = advantages.detach()[:, None]
    return torch.minimum(ratio * A, ratio.clamp(1 - clip_low, 1 + clip_high) * A)


def clipped_surrogate(
    log_probs: Float[Tensor, "B T"],
    old_log_probs: Float[Tensor, "B T"],
    advantages: Float[Tensor, " B"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> Float[Tensor, "B T"]:
    """Eq. 21 from log-probs: the per-token surrogate of PPO and GRPO, to be maximized.

    Its gradient is I * A * r * grad log pi (Eq. 23), where I is 0 once the ratio has left the clip range in
    the direction the advantage pushes it (Eq. 22); on-policy that is the estimator of Eq. 19. No gradient
    reaches the advantages.
    """
    ratio = importance_ratio(log_probs, old_log_probs)
    return clipped_objective(ratio, advantages, clip_low=clip_low, clip_high=clip_high)


def k3_kl(log_probs: Float[Tensor, "B T"], ref_log_probs: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """rho - log rho - 1 with rho = pi_ref / pi: a non-negative estimate of KL(pi || pi_ref) (Eq. 24).

    Its gradient is -(rho - 1) * grad log pi (Eqs. 25, 26): on-policy that is the gradient of the *other* KL,
    KL(pi_ref || pi), although the value estimates KL(pi || pi_ref).
    """
    log_rho = ref_log_probs - log_probs
    return torch.expm1(log_rho) - log_rho  # expm1 keeps the digits when the policies nearly agree


def reduce_tokens(
    x: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    how: Reduction,
    *,
    max_length: int | None = None,
) -> Float[Tensor, ""]:
    """One number from per-token terms; the divisor is where the variants differ.

    - `"sequence_mean"`: (1/B) sum_i (1/|o_i|) sum_t x, the paper's (Eqs. 1, 5). A token counts less in a
      longer completion.
    - `"token_mean"`: sum / number of trained tokens in the batch (DAPO).
    - `"constant"`: sum / (B * max_length) (Dr. GRPO).

    Positions outside the mask are not read. A row without a True contributes 0.
    Raises ValueError for an unknown `how`, or where `max_length` is missing or not asked for.
    """
    if (max_length is not None) != (how == "constant"):
        raise ValueError(f'max_length: needed by how="constant" and by nothing else, got {how=}')
    x = x.masked_fill(~mask, 0.0)
    if how == "sequence_mean":
        return (x.sum(dim=1) / mask.sum(dim=1).clamp(min=1)).mean()
    if how == "token_mean":
        return x.sum() / mask.sum().clamp(min=1)
    if how == "constant":
        assert max_length is not None
        return x.sum() / (x.shape[0] * max_length)
    raise ValueError(f'how: "sequence_mean", "token_mean" or "constant", got {how!r}')


@dataclass(frozen=True)
class LossStats:
    """What one call of an objective's `loss` saw on the trained tokens."""

    tokens: int
    clip_fraction: float
    """fraction of tokens whose policy gradient the clip removes: 1 - mean of Eq. 22's indicator"""
    ratio_mean: float
    """mean importance ratio; 1 on the first update after sampling"""
    ratio_max: float
    kl: float
    """mean of `k3_kl`; NaN without a reference policy"""


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What the objectives have in common; each overrides where it differs from GRPO (Eqs. 1 and 5).

    `beta` weights the KL penalty (0 in the paper); with `kl_importance_weight` the penalty is multiplied
    by the importance ratio, which makes it unbiased off-policy (the paper does not do so).
    """

    beta: float = 0.0
    kl_importance_weight: bool = False
    scale_by_std: ClassVar[bool] = True
    reduction: ClassVar[Reduction] = "sequence_mean"

    def advantages(self, rewards: Float[Tensor, "P G"]) -> Float[Tensor, "P G"]:
        """Group-relative advantages as this objective normalizes them; see `group_advantages`."""
        return group_advantages(rewards, scale_by_std=self.scale_by_std)

    def ratio(
        self,
        log_probs: Float[Tensor, "B T"],
        old_log_probs: Float[Tensor, "B T"],
        mask: Bool[Tensor, "B T"],
    ) -> Float[Tensor, "B T"]:
        """The importance ratio this objective clips."""
        return importance_ratio(log_probs, old_log_probs)

    def surrogate(
        self,
        log_probs: Float[Tensor, "B T"],
        ratio: Float[Tensor, "B T"],
        advantages: Float[Tensor, " B"],
    ) -> Float[Tensor, "B T"]:
        """The per-token policy term, to be maximized."""
        raise NotImplementedError

    def clipped(self, ratio: Float[Tensor, "B T"], advantages: Float[Tensor, " B"]) -> Bool[Tensor, "B T"]:
        """Where the objective limits the policy gradient; nowhere, unless a method says so."""
        return torch.zeros_like(ratio, dtype=torch.bool)

    def reduce(self, x: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, ""]:
        """One number from per-token terms; see `reduce_tokens`."""
        return reduce_tokens(x, mask, self.reduction)

    def share(self, part: Bool[Tensor, "B1 T1"], whole: Bool[Tensor, "B2 T2"]) -> float:
        """What the mean over a whole batch multiplies the mean over one part of it by.

        So sum_k share_k * loss_k over the parts of a batch is the loss of the batch: gradient accumulation
        that does not depend on how the batch was cut.
        """
        if self.reduction == "token_mean":
            return part.sum().item() / whole.sum().item()
        return part.shape[0] / whole.shape[0]

    def loss(
        self,
        log_probs: Float[Tensor, "B T"],
        old_log_probs: Float[Tensor, "B T"] | None,
        advantages: Float[Tensor, " B"],
        mask: Bool[Tensor, "B T"],
        *,
        ref_log_probs: Float[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, ""], LossStats]:
        """Minus the objective, to be minimized (its gradient: Eqs. 28, 29), and what was seen on the way.

        `old_log_probs=None` says that nothing was updated since sampling: the ratio is then 1 in value and
        carries the gradient, and the loss of a group with balanced advantages is 0 while its gradient is
        not. Values outside the mask are not read.

        Raises ValueError where beta > 0 and `ref_log_probs` do not come together, and for an empty mask.
        """
        if not mask.any():
            raise ValueError("mask: not a single token to train")
        if (self.beta > 0) != (ref_log_probs is not None):
            raise ValueError(f"ref_log_probs: needed exactly when beta > 0, got beta={self.beta}")
        # Padding may hold anything: exp(garbage) * 0 would still poison the gradient, so it goes first.
        log_probs = log_probs.masked_fill(~mask, 0.0)
        old = (log_probs if old_log_probs is None else old_log_probs.masked_fill(~mask, 0.0)).detach()
        ratio = self.ratio(log_probs, old, mask)
        terms = self.surrogate(log_probs, ratio, advantages)
        kl = None
        if ref_log_probs is not None:
            kl = k3_kl(log_probs, ref_log_probs.detach().masked_fill(~mask, 0.0))
            terms = terms - self.beta * (kl * ratio if self.kl_importance_weight else kl)
        return -self.reduce(terms, mask), self._stats(ratio, advantages, mask, kl)

    @torch.no_grad()
    def _stats(self, ratio: Tensor, advantages: Tensor, mask: Tensor, kl: Tensor | None) -> LossStats:
        trained = ratio[mask]
        return LossStats(
            tokens=len(trained),
            clip_fraction=self.clipped(ratio, advantages)[mask].float().mean().item(),
            ratio_mean=trained.mean().item(),
            ratio_max=trained.max().item(),
            kl=float("nan") if kl is None else kl[mask].mean().item(),
        )


@dataclass(frozen=True, kw_only=True)
class _Clipped(Objective):
    """The clipped surrogate of Eq. 21, with the two ends of its clip range."""

    clip_low: float = 0.2
    clip_high: float = 0.2

    def surrogate(
        self,
        log_probs: Float[Tensor, "B T"],
        ratio: Float[Tensor, "B T"],
        advantages: Float[Tensor, " B"],
    ) -> Float[Tensor, "B T"]:
        """min(r A, clip(r) A), to be maximized (Eq. 21)."""
        return clipped_objective(ratio, advantages, clip_low=self.clip_low, clip_high=self.clip_high)

    def clipped(self, ratio: Float[Tensor, "B T"], advantages: Float[Tensor, " B"]) -> Bool[Tensor, "B T"]:
        """Where the indicator of Eq. 22 is 0."""
        A = advantages[:, None]
        return ((A >= 0) & (ratio > 1 + self.clip_high)) | ((A < 0) & (ratio < 1 - self.clip_low))


@dataclass(frozen=True, kw_only=True)
class GRPO(_Clipped):
    """The objective of Eqs. 1 and 5."""


@dataclass(frozen=True, kw_only=True)
class DrGRPO(_Clipped):
    """GRPO without its two divisions: by the group's std and by each completion's length.

    `max_length` (tokens) is the constant both are replaced by: the completion length limit.
    """

    max_length: int
    scale_by_std: ClassVar[bool] = False
    reduction: ClassVar[Reduction] = "constant"

    def reduce(self, x: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, ""]:
        """Sum over the batch / (B * max_length)."""
        return reduce_tokens(x, mask, self.reduction, max_length=self.max_length)


@dataclass(frozen=True, kw_only=True)
class DAPO(_Clipped):
    """GRPO with a higher upper clip, so that unlikely tokens can grow, and a mean over all tokens.

    DAPO's dynamic sampling and its overlong penalty belong to rollout and reward and are not here.
    """

    clip_high: float = 0.28
    reduction: ClassVar[Reduction] = "token_mean"


@dataclass(frozen=True, kw_only=True)
class GSPO(_Clipped):
    """GRPO with one ratio per sequence, the geometric mean of its tokens', and a far tighter clip."""

    clip_low: float = 3e-4
    clip_high: float = 4e-4

    def ratio(
        self,
        log_probs: Float[Tensor, "B T"],
        old_log_probs: Float[Tensor, "B T"],
        mask: Bool[Tensor, "B T"],
    ) -> Float[Tensor, "B T"]:
        """The sequence-level ratio; see `sequence_importance_ratio`."""
        return sequence_importance_ratio(log_probs, old_log_probs, mask)


@dataclass(frozen=True, kw_only=True)
class CISPO(Objective):
    """REINFORCE weighted by a capped, detached ratio: no token's gradient is ever dropped.

    -min(r, ratio_cap) A log pi with no gradient through r; there is no clip range.
    """

    ratio_cap: float = 5.0
    reduction: ClassVar[Reduction] = "token_mean"

    def surrogate(
        self,
        log_probs: Float[Tensor, "B T"],
        ratio: Float[Tensor, "B T"],
        advantages: Float[Tensor, " B"],
    ) -> Float[Tensor, "B T"]:
        """min(r, ratio_cap) A log pi, to be maximized; only log pi carries a gradient."""
        return ratio.detach().clamp(max=self.ratio_cap) * advantages.detach()[:, None] * log_probs

    def clipped(self, ratio: Float[Tensor, "B T"], advantages: Float[Tensor, " B"]) -> Bool[Tensor, "B T"]:
        """Where the cap binds: the gradient is smaller there, not 0."""
        return ratio > self.ratio_cap
