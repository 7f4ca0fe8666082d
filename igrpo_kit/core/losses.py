"""The clipped surrogate, the KL penalty, their reductions, and the named objectives built from them.

Equations: https://arxiv.org/abs/2602.09000. The pure functions return what the paper *maximizes* (Eqs. 1, 5,
27); an objective's `loss` is the negative. Log-probs are conditioned on the prompt the completions were
sampled from. For iGRPO's refinements this is q' = q + best draft (Eq. 20), and the mask excludes the draft.

| objective | ratio | clip | reward normalization | reduction |
|---|---|---|---|---|
| `GRPO` (https://arxiv.org/abs/2402.03300) | token | 1 ± 0.2 | mean, std | 1/|o| per sequence, then mean |
| `DrGRPO` (https://arxiv.org/abs/2503.20783) | token | 1 ± 0.2 | mean | sum over a constant length |
| `DAPO` (https://arxiv.org/abs/2503.14476) | token | 0.8, 1.28 | mean, std | mean over all tokens |
| `GSPO` (https://arxiv.org/abs/2507.18071) | sequence | 1 - 3e-4, 1 + 4e-4 | mean, std | as GRPO |
| `CISPO` (https://arxiv.org/abs/2506.13585) | token, detached | at most 5 | mean, std | as DAPO |
| `ABCGRPO` (https://arxiv.org/abs/2601.03895) | token | 1 ± 0.2, for either sign of A | mean, std | as GRPO |
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from igrpo_kit.core.advantages import group_advantages

Reduction = Literal["sequence_mean", "token_mean", "constant"]
PerToken = Float[Tensor, "B T"]
PerRow = Float[Tensor, " B"]
Mask = Bool[Tensor, "B T"]
"""True for trained tokens"""


def importance_ratio(log_probs: PerToken, old_log_probs: PerToken) -> PerToken:
    """r = pi(o_t | q', o_<t) / pi_old(o_t | q', o_<t) of each token (Eq. 20)."""
    return (log_probs - old_log_probs).exp()


def sequence_importance_ratio(log_probs: PerToken, old_log_probs: PerToken, mask: Mask) -> PerToken:
    """s = (pi(o | q') / pi_old(o | q'))^(1/|o|), the same at every token of a row.

    GSPO's ratio, https://arxiv.org/abs/2507.18071.

    Args:
        log_probs: of the current policy, in nats.
        old_log_probs: of the policy that sampled, in nats.
        mask: True for the tokens of o; values elsewhere are ignored.
    """
    log_ratio = (log_probs - old_log_probs).masked_fill(~mask, 0.0)
    mean = log_ratio.sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True).clamp(min=1)
    return mean.exp().expand_as(log_probs)


def clipped_objective(ratio: PerToken, advantages: PerRow, *, clip_low: float, clip_high: float) -> PerToken:
    """min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) of each token (Eq. 21), to be maximized.

    Args:
        ratio: importance ratio r.
        advantages: A of each row, treated as a constant.
        clip_low, clip_high: distances of the two clip limits from 1.
    """
    A = advantages.detach()[:, None]
    return torch.minimum(ratio * A, ratio.clamp(1 - clip_low, 1 + clip_high) * A)


def clipped_surrogate(
    log_probs: PerToken,
    old_log_probs: PerToken,
    advantages: PerRow,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> PerToken:
    """The per-token surrogate of PPO and GRPO from log-probs (Eq. 21), to be maximized.

    Its gradient is I * A * r * grad log pi (Eq. 23). The indicator I is 0 where the ratio has left the clip
    range in the direction of the advantage (Eq. 22). On-policy, this is the estimator of Eq. 19.
    PPO: https://arxiv.org/abs/1707.06347; GRPO: https://arxiv.org/abs/2402.03300.

    Args:
        log_probs: of the current policy, in nats.
        old_log_probs: of the policy that sampled, in nats.
        advantages: one per row; they receive no gradient.
        clip_low, clip_high: distances of the two clip limits from 1.
    """
    ratio = importance_ratio(log_probs, old_log_probs)
    return clipped_objective(ratio, advantages, clip_low=clip_low, clip_high=clip_high)


def k3_kl(log_probs: PerToken, ref_log_probs: PerToken) -> PerToken:
    """rho - log rho - 1 with rho = pi_ref / pi: a non-negative estimate of KL(pi || pi_ref) (Eq. 24).

    This is the k3 estimator, http://joschu.net/blog/kl-approx.html. Its gradient is -(rho - 1) * grad log pi
    (Eqs. 25, 26). On-policy, that is the gradient of the *other* KL divergence, KL(pi_ref || pi), although
    the value estimates KL(pi || pi_ref).
    """
    log_rho = ref_log_probs - log_probs
    return torch.expm1(log_rho) - log_rho  # expm1 is accurate when the policies are close


def reduce_tokens(
    x: PerToken, mask: Mask, how: Reduction, *, max_length: int | None = None
) -> Float[Tensor, ""]:
    """Reduce per-token terms to one number; the variants differ in the divisor.

    Args:
        x: per-token terms; values outside the mask are ignored.
        mask: True for trained tokens. A row without any contributes 0.
        how: `"sequence_mean"` is (1/B) sum_i (1/|o_i|) sum_t x, as in the paper (Eqs. 1, 5): a token has less
            weight in a longer completion. `"token_mean"` is the sum / number of trained tokens in the batch
            (DAPO, https://arxiv.org/abs/2503.14476). `"constant"` is the sum / (B * max_length) (Dr. GRPO,
            https://arxiv.org/abs/2503.20783).
        max_length: in tokens, for `"constant"` only.

    Raises:
        ValueError: `how` is unknown, or `max_length` is missing or not needed.
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
    """Statistics of the trained tokens in one call of an objective's `loss`."""

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
    """The interface of all objectives; a subclass overrides where it differs from GRPO (Eqs. 1 and 5).

    Args:
        beta: weight of the KL penalty (0 in the paper).
        kl_importance_weight: multiply the penalty by the importance ratio, which makes it unbiased off-policy
            (not done in the paper).
    """

    beta: float = 0.0
    kl_importance_weight: bool = False
    scale_by_std: ClassVar[bool] = True
    reduction: ClassVar[Reduction] = "sequence_mean"

    def advantages(self, rewards: Float[Tensor, "P G"]) -> Float[Tensor, "P G"]:
        """Group-relative advantages with this objective's normalization; see `group_advantages`."""
        return group_advantages(rewards, scale_by_std=self.scale_by_std)

    def ratio(self, log_probs: PerToken, old_log_probs: PerToken, mask: Mask) -> PerToken:
        """The importance ratio that this objective clips."""
        return importance_ratio(log_probs, old_log_probs)

    def surrogate(self, log_probs: PerToken, ratio: PerToken, advantages: PerRow) -> PerToken:
        """The per-token policy term, to be maximized."""
        raise NotImplementedError

    def clipped(self, ratio: PerToken, advantages: PerRow) -> Mask:
        """True where the objective limits the policy gradient; nowhere unless overridden."""
        return torch.zeros_like(ratio, dtype=torch.bool)

    def reduce(self, x: PerToken, mask: Mask) -> Float[Tensor, ""]:
        """Reduce per-token terms to one number; see `reduce_tokens`."""
        return reduce_tokens(x, mask, self.reduction)

    def share(self, part: Bool[Tensor, "B1 T1"], whole: Bool[Tensor, "B2 T2"]) -> float:
        """Weight of the mean over one part of a batch in the mean over the whole batch.

        The sum of share_k * loss_k over the parts is the loss of the batch, so gradient accumulation does not
        depend on how the batch is split. Both arguments are masks of trained tokens.
        """
        if self.reduction == "token_mean":
            return part.sum().item() / whole.sum().item()
        return part.shape[0] / whole.shape[0]

    def loss(
        self,
        log_probs: PerToken,
        old_log_probs: PerToken | None,
        advantages: PerRow,
        mask: Mask,
        *,
        ref_log_probs: PerToken | None = None,
    ) -> tuple[Float[Tensor, ""], LossStats]:
        """The negated objective, to be minimized (its gradient: Eqs. 28, 29), with statistics.

        Args:
            log_probs: of the current policy, in nats.
            old_log_probs: of the policy that sampled, in nats. None means that there was no update since
                sampling: the ratio is 1 in value and carries the gradient, so the loss of a group with
                balanced advantages is 0, but its gradient is not.
            advantages: one per row; they receive no gradient.
            mask: True for trained tokens; values elsewhere are ignored.
            ref_log_probs: of the reference policy, in nats; required if beta > 0 and not allowed otherwise.

        Raises:
            ValueError: the mask is empty, or beta and `ref_log_probs` do not go together.
        """
        if not mask.any():
            raise ValueError("mask: not a single token to train")
        if (self.beta > 0) != (ref_log_probs is not None):
            raise ValueError(f"ref_log_probs: needed exactly when beta > 0, got beta={self.beta}")
        # Mask first: padding may hold any value, and an infinite exp(...) * 0 gives a NaN gradient.
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
    """The clipped surrogate of Eq. 21 with the two limits of its clip range."""

    clip_low: float = 0.2
    clip_high: float = 0.2

    def surrogate(self, log_probs: PerToken, ratio: PerToken, advantages: PerRow) -> PerToken:
        """min(r A, clip(r) A), to be maximized (Eq. 21)."""
        return clipped_objective(ratio, advantages, clip_low=self.clip_low, clip_high=self.clip_high)

    def clipped(self, ratio: PerToken, advantages: PerRow) -> Mask:
        """True where the indicator of Eq. 22 is 0."""
        A = advantages[:, None]
        return ((A >= 0) & (ratio > 1 + self.clip_high)) | ((A < 0) & (ratio < 1 - self.clip_low))


@dataclass(frozen=True, kw_only=True)
class GRPO(_Clipped):
    """The objective of Eqs. 1 and 5 (https://arxiv.org/abs/2402.03300)."""


@dataclass(frozen=True, kw_only=True)
class DrGRPO(_Clipped):
    """GRPO without the division by the group's std and by each completion's length.

    Paper: https://arxiv.org/abs/2503.20783.

    Args:
        max_length: the completion length limit in tokens, the constant that replaces the completion's length.
    """

    max_length: int
    scale_by_std: ClassVar[bool] = False
    reduction: ClassVar[Reduction] = "constant"

    def reduce(self, x: PerToken, mask: Mask) -> Float[Tensor, ""]:
        """Sum over the batch / (B * max_length)."""
        return reduce_tokens(x, mask, self.reduction, max_length=self.max_length)


@dataclass(frozen=True, kw_only=True)
class DAPO(_Clipped):
    """GRPO with a higher upper clip limit, so unlikely tokens can grow in probability, and a token mean.

    Paper: https://arxiv.org/abs/2503.14476. Its dynamic sampling and overlong penalty belong to the rollout
    and the reward; they are not included here.
    """

    clip_high: float = 0.28
    reduction: ClassVar[Reduction] = "token_mean"


@dataclass(frozen=True, kw_only=True)
class GSPO(_Clipped):
    """GRPO with one ratio per sequence, the geometric mean over its tokens, and a much tighter clip range.

    Paper: https://arxiv.org/abs/2507.18071.
    """

    clip_low: float = 3e-4
    clip_high: float = 4e-4

    def ratio(self, log_probs: PerToken, old_log_probs: PerToken, mask: Mask) -> PerToken:
        """The sequence-level ratio; see `sequence_importance_ratio`."""
        return sequence_importance_ratio(log_probs, old_log_probs, mask)


@dataclass(frozen=True, kw_only=True)
class CISPO(Objective):
    """REINFORCE weighted by a capped, detached ratio: every token keeps a gradient.

    Each token's loss is -min(r, ratio_cap) A log pi with no gradient through r; there is no clip range.
    Paper: https://arxiv.org/abs/2506.13585; REINFORCE: https://doi.org/10.1007/BF00992696.
    """

    ratio_cap: float = 5.0
    reduction: ClassVar[Reduction] = "token_mean"

    def surrogate(self, log_probs: PerToken, ratio: PerToken, advantages: PerRow) -> PerToken:
        """min(r, ratio_cap) A log pi, to be maximized; only log pi carries a gradient."""
        return ratio.detach().clamp(max=self.ratio_cap) * advantages.detach()[:, None] * log_probs

    def clipped(self, ratio: PerToken, advantages: PerRow) -> Mask:
        """True where the cap applies: the gradient is smaller there, not 0."""
        return ratio > self.ratio_cap


@dataclass(frozen=True, kw_only=True)
class ABCGRPO(Objective):
    """clip(r) A without GRPO's minimum, with clip limits of their own for positive and for negative A.

    GRPO's minimum leaves two cases without a limit: r < 1 at A > 0, and r > 1 at A < 0, where the weight of a
    token grows with r. Here the ratio is clipped in both directions whatever the sign of A (Eqs. 5 and 6 of
    https://arxiv.org/abs/2601.03895). Nothing is left out: "adaptive" means four limits instead of two; they
    do not change during training, and the paper's experiments set all four to 0.2. GRPO is the case
    `clip_low=1, negative_clip_high=inf`.

    A token that is clipped has no gradient, also where its gradient would bring the ratio back.

    Args:
        clip_low, clip_high: distances of the limits from 1 for A > 0 (the paper's epsilon_2 and epsilon_1).
        negative_clip_low, negative_clip_high: the same for A <= 0 (epsilon_4 and epsilon_3).
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    negative_clip_low: float = 0.2
    negative_clip_high: float = 0.2

    def _clip(self, ratio: PerToken, advantages: PerRow) -> PerToken:
        positive = ratio.clamp(1 - self.clip_low, 1 + self.clip_high)
        negative = ratio.clamp(1 - self.negative_clip_low, 1 + self.negative_clip_high)
        return torch.where(advantages[:, None] > 0, positive, negative)

    def surrogate(self, log_probs: PerToken, ratio: PerToken, advantages: PerRow) -> PerToken:
        """clip(r) A, to be maximized."""
        return self._clip(ratio, advantages) * advantages.detach()[:, None]

    def clipped(self, ratio: PerToken, advantages: PerRow) -> Mask:
        """True where the ratio is outside its limits."""
        return self._clip(ratio, advantages) != ratio
