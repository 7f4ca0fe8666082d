import math

import pytest
import torch

from igrpo_kit.core.losses import (
    ABCGRPO,
    CISPO,
    DAPO,
    GRPO,
    GSPO,
    DrGRPO,
    Objective,
    clipped_surrogate,
    k3_kl,
    reduce_tokens,
    sequence_importance_ratio,
)

ABC = ABCGRPO(clip_low=0.1, clip_high=0.2, negative_clip_low=0.3, negative_clip_high=0.4)
OBJECTIVES = [GRPO(), DrGRPO(max_length=7), DAPO(), GSPO(), CISPO(), ABC]
NAMES = [type(o).__name__ for o in OBJECTIVES]


def ragged_batch(seed, *, B=6, T=7, spread=0.3):
    """Log-probs of a new, an old and a reference policy, advantages, and a mask of ragged rows."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    log_probs = (-1 - draw(B, T).abs()).requires_grad_()
    old = log_probs.detach() + spread * draw(B, T)
    ref = log_probs.detach() + spread * draw(B, T)
    lengths = torch.randint(1, T + 1, (B, 1), generator=generator)
    return log_probs, old, ref, draw(B), torch.arange(T) < lengths


def test_surrogate_by_hand():
    """ratio 1.5, 0.5, 1.1 with A = 1 and A = -1, clip 0.2."""
    log_probs = torch.tensor([[1.5, 0.5, 1.1]] * 2).log()
    got = clipped_surrogate(log_probs, torch.zeros(2, 3), torch.tensor([1.0, -1.0]))
    torch.testing.assert_close(got, torch.tensor([[1.2, 0.5, 1.1], [-1.5, -0.8, -1.1]]))


def test_k3_by_hand():
    """rho = 2: 2 - ln 2 - 1; rho = 1: 0; rho = 1/2: 1/2 + ln 2 - 1."""
    got = k3_kl(torch.tensor([[0.0, 0.0, 0.0]]), torch.tensor([[2.0, 1.0, 0.5]]).log())
    torch.testing.assert_close(got, torch.tensor([[0.30685282, 0.0, 0.19314718]]))


def test_k3_keeps_its_digits_where_the_plain_formula_has_none():
    d = torch.tensor([[1e-4]])
    assert k3_kl(d, torch.zeros(1, 1)).item() == pytest.approx(5e-9, rel=0.1)


def test_reductions_by_hand():
    """Rows of 3 and 1 tokens: (1+2+3)/3 = 2 and 10/1; all tokens 16/4; constant 16/(2*4)."""
    x = torch.tensor([[1.0, 2.0, 3.0], [10.0, float("nan"), float("inf")]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    assert reduce_tokens(x, mask, "sequence_mean").item() == 6.0
    assert reduce_tokens(x, mask, "token_mean").item() == 4.0
    assert reduce_tokens(x, mask, "constant", max_length=4).item() == 2.0


def test_a_row_without_tokens_counts_as_zero():
    x = torch.tensor([[4.0], [7.0]])
    mask = torch.tensor([[True], [False]])
    assert reduce_tokens(x, mask, "sequence_mean").item() == 2.0
    assert reduce_tokens(x, mask & False, "token_mean").item() == 0.0


@pytest.mark.parametrize("how", ["mean", "sequence_mean"])
def test_reduce_refuses_what_it_does_not_know(how):
    with pytest.raises(Exception, match="how"):
        reduce_tokens(torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool), how, max_length=3)
    with pytest.raises(ValueError, match="max_length"):
        reduce_tokens(torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool), "constant")


def test_sequence_ratio_by_hand():
    """log ratios .2 and .4 average to .3; the padded third is not read."""
    log_probs = torch.tensor([[0.2, 0.4, float("nan")]])
    mask = torch.tensor([[True, True, False]])
    got = sequence_importance_ratio(log_probs, torch.zeros(1, 3), mask)
    torch.testing.assert_close(got[0, :2], torch.tensor([math.exp(0.3)] * 2))


def loop_loss(objective, log_probs, old, advantages, mask):
    """The six objectives as their papers print them, one token at a time; no KL."""
    B, T = log_probs.shape
    rows, tokens, total = [], 0, 0.0
    for i in range(B):
        steps = [t for t in range(T) if mask[i, t]]
        mean_log_ratio = sum(log_probs[i, t] - old[i, t] for t in steps) / len(steps)
        row = 0.0
        for t in steps:
            r = math.exp(mean_log_ratio if isinstance(objective, GSPO) else log_probs[i, t] - old[i, t])
            A = advantages[i].item()
            if isinstance(objective, CISPO):
                term = min(r, objective.ratio_cap) * A * log_probs[i, t].item()
            elif isinstance(objective, ABCGRPO):
                low, high = (0.9, 1.2) if A > 0 else (0.7, 1.4)
                term = min(max(r, low), high) * A
            else:
                clipped = min(max(r, 1 - objective.clip_low), 1 + objective.clip_high)
                term = min(r * A, clipped * A)
            row += term
        rows.append(row / len(steps))
        tokens += len(steps)
        total += row
    if isinstance(objective, DAPO | CISPO):
        return -total / tokens
    if isinstance(objective, DrGRPO):
        return -total / (B * objective.max_length)
    return -sum(rows) / B


@pytest.mark.parametrize("objective", OBJECTIVES, ids=NAMES)
@pytest.mark.parametrize("seed", range(5))
def test_equals_a_loop(objective, seed):
    log_probs, old, _, advantages, mask = ragged_batch(seed)
    got, _ = objective.loss(log_probs, old, advantages, mask)
    assert got.item() == pytest.approx(
        loop_loss(objective, log_probs.detach(), old, advantages, mask), rel=1e-9
    )


@pytest.mark.parametrize("objective", OBJECTIVES, ids=NAMES)
def test_at_ratio_one_the_gradient_is_reinforce_and_the_loss_zero_where_advantages_balance(objective):
    """Why is my loss 0? Two completions of equal length, A = +1 and -1, nothing updated since sampling."""
    log_probs = torch.full((2, 3), -1.0, requires_grad=True)
    mask = torch.ones(2, 3, dtype=torch.bool)
    loss, stats = objective.loss(log_probs, None, torch.tensor([1.0, -1.0]), mask)
    (grad,) = torch.autograd.grad(loss, log_probs)
    assert loss.item() == pytest.approx(0.0, abs=1e-7)
    weight = 1 / (2 * 7) if isinstance(objective, DrGRPO) else 1 / 6
    torch.testing.assert_close(grad, torch.tensor([[-weight] * 3, [weight] * 3]))
    assert (stats.ratio_mean, stats.ratio_max, stats.clip_fraction) == (1.0, 1.0, 0.0)
    assert math.isnan(stats.kl)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=NAMES)
def test_padding_is_never_read(objective):
    log_probs, old, _, advantages, mask = ragged_batch(3)
    clean, _ = objective.loss(log_probs, old, advantages, mask)
    (clean_grad,) = torch.autograd.grad(clean, log_probs)
    junk = log_probs.detach().masked_fill(~mask, 1e4).requires_grad_()
    dirty, _ = objective.loss(junk, old.masked_fill(~mask, float("nan")), advantages, mask)
    (dirty_grad,) = torch.autograd.grad(dirty, junk)
    assert dirty.item() == clean.item()
    assert dirty_grad.equal(clean_grad)
    assert (dirty_grad[~mask] == 0).all()


def test_no_gradient_reaches_advantages_old_or_reference():
    log_probs, old, ref, advantages, mask = ragged_batch(0)
    others = [x.requires_grad_() for x in (old, ref, advantages)]
    loss, _ = GRPO(beta=0.1).loss(log_probs, old, advantages, mask, ref_log_probs=ref)
    loss.backward()
    assert all(x.grad is None for x in others)
    assert log_probs.grad is not None


def numerical_gradient(function, x, step=1e-6):
    grad = torch.zeros_like(x)
    flat, out = x.view(-1), grad.view(-1)
    for i in range(len(flat)):
        kept = flat[i].item()
        flat[i] = kept + step
        up = function(x).item()
        flat[i] = kept - step
        out[i] = (up - function(x).item()) / (2 * step)
        flat[i] = kept
    return grad


@pytest.mark.parametrize("seed", range(3))
def test_equation_23_numerically(seed):
    """grad L_clip = I * A * r (with respect to log pi), I from Eq. 22."""
    log_probs, old, _, A, _ = ragged_batch(seed)
    x = log_probs.detach().clone()
    measured = numerical_gradient(lambda v: clipped_surrogate(v, old, A).sum(), x)
    r, A = (x - old).exp(), A[:, None]
    indicator = torch.where(A >= 0, r <= 1.2, r >= 0.8).double()
    torch.testing.assert_close(measured, indicator * A * r, rtol=1e-6, atol=1e-8)
    assert 0 < indicator.mean() < 1  # both branches were there to be checked


def test_equation_25_numerically():
    """grad k3 = -(rho - 1)."""
    log_probs, _, ref, _, _ = ragged_batch(0)
    x = log_probs.detach().clone()
    measured = numerical_gradient(lambda v: k3_kl(v, ref).sum(), x)
    torch.testing.assert_close(measured, -((ref - x).exp() - 1), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("seed", range(3))
def test_equation_29_numerically_through_a_softmax_policy(seed):
    """The whole gradient with respect to logits theta: sum of weight * grad log pi, against differences.

    log pi(o_t) is a softmax over 5 tokens, so grad log pi is one-hot minus probabilities.
    """
    generator = torch.Generator().manual_seed(seed)
    B, T, V, beta = 4, 3, 5, 0.3
    logits = torch.randn(B, T, V, generator=generator, dtype=torch.float64)
    ids = torch.randint(V, (B, T), generator=generator)
    _, _, _, A, mask = ragged_batch(seed, B=B, T=T)

    def log_pi(v):
        return v.log_softmax(-1).gather(2, ids[..., None]).squeeze(2)

    old = log_pi(logits + 0.3 * torch.randn(B, T, V, generator=generator, dtype=torch.float64))
    ref = log_pi(logits + 0.3 * torch.randn(B, T, V, generator=generator, dtype=torch.float64))
    objective = GRPO(beta=beta)
    measured = -numerical_gradient(
        lambda v: objective.loss(log_pi(v), old, A, mask, ref_log_probs=ref)[0], logits.clone()
    )
    r, rho = (log_pi(logits) - old).exp(), (ref - log_pi(logits)).exp()
    indicator = torch.where(A[:, None] >= 0, r <= 1.2, r >= 0.8).double()
    weight = (indicator * A[:, None] * r + beta * (rho - 1)) * mask / mask.sum(1, keepdim=True) / B
    grad_log_pi = torch.nn.functional.one_hot(ids, V) - logits.softmax(-1)
    torch.testing.assert_close(measured, weight[..., None] * grad_log_pi, rtol=1e-5, atol=1e-9)


def test_beta_and_a_reference_come_together():
    log_probs, old, ref, A, mask = ragged_batch(0)
    with pytest.raises(ValueError, match="ref_log_probs"):
        GRPO(beta=0.1).loss(log_probs, old, A, mask)
    with pytest.raises(ValueError, match="ref_log_probs"):
        GRPO().loss(log_probs, old, A, mask, ref_log_probs=ref)


def test_an_empty_mask_is_named():
    log_probs, old, _, A, mask = ragged_batch(0)
    with pytest.raises(ValueError, match="mask"):
        GRPO().loss(log_probs, old, A, mask & False)


def test_cispo_caps_the_weight_and_keeps_the_gradient():
    """Ratio 8 and A = 1: the weight is 5, and so is the gradient; PPO's clip would have left 0."""
    log_probs = torch.tensor([[8.0]]).log().requires_grad_()
    mask = torch.ones(1, 1, dtype=torch.bool)
    loss, stats = CISPO().loss(log_probs, torch.zeros(1, 1), torch.tensor([1.0]), mask)
    assert torch.autograd.grad(loss, log_probs)[0].item() == pytest.approx(-5.0)
    assert loss.item() == pytest.approx(-5 * 2.0794415)
    assert stats.clip_fraction == 1.0


def test_abc_grpo_by_hand_in_all_four_quadrants():
    """Ratios 1.5, 0.5, 1.1; limits 0.9 and 1.2 for A = 1, 0.7 and 1.4 for A = -2; no gradient where clipped.

    GRPO with the limits 0.9 and 1.2 gives 0.5 instead of 0.9 at A = 1, and -3.0 instead of -2.8 at A = -2.
    """
    log_probs = torch.tensor([[1.5, 0.5, 1.1]] * 2).log().requires_grad_()
    ratio, A = log_probs.exp(), torch.tensor([1.0, -2.0])
    terms = ABC.surrogate(log_probs, ratio, A)
    torch.testing.assert_close(terms, torch.tensor([[1.2, 0.9, 1.1], [-2.8, -1.4, -2.2]]))
    terms.sum().backward()
    torch.testing.assert_close(log_probs.grad, torch.tensor([[0.0, 0.0, 1.1], [0.0, 0.0, -2.2]]))
    assert ABC.clipped(ratio, A).tolist() == [[True, True, False]] * 2
    grpo = GRPO(clip_low=0.1, clip_high=0.2).surrogate(log_probs, ratio, A)
    torch.testing.assert_close(grpo, torch.tensor([[1.2, 0.5, 1.1], [-3.0, -1.8, -2.2]]))


def test_grpo_is_the_case_of_abc_grpo_without_the_two_new_limits():
    log_probs, old, _, A, mask = ragged_batch(3, spread=1.0)
    special = ABCGRPO(clip_low=1.0, negative_clip_high=math.inf)
    for objective in (special, GRPO()):
        loss, stats = objective.loss(log_probs, old, A, mask)
        (grad,) = torch.autograd.grad(loss, log_probs)
        assert stats.clip_fraction > 0.2
        if objective is special:
            expected = (loss, grad, stats.clip_fraction)
    assert loss.item() == pytest.approx(expected[0].item(), rel=1e-12)
    torch.testing.assert_close(grad, expected[1])
    assert stats.clip_fraction == expected[2]


def test_stats_by_hand():
    """Ratios 1.5 (A = 1, clipped), 1.5 (A = -1, not), 1.0; the fourth is padding."""
    log_probs = torch.tensor([[1.5, 1.0], [1.5, 9.0]]).log()
    mask = torch.tensor([[True, True], [True, False]])
    _, stats = GRPO().loss(log_probs, torch.zeros(2, 2), torch.tensor([1.0, -1.0]), mask)
    assert stats.tokens == 3
    assert stats.clip_fraction == pytest.approx(1 / 3)
    assert stats.ratio_mean == pytest.approx(4 / 3)
    assert stats.ratio_max == pytest.approx(1.5)


def test_each_objective_normalizes_rewards_its_own_way():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    assert GRPO().advantages(rewards)[0, 0].item() == pytest.approx(1.5)
    assert DrGRPO(max_length=4).advantages(rewards)[0, 0].item() == pytest.approx(0.75)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=NAMES)
def test_the_methods_share_an_interface_and_are_not_each_other(objective):
    assert isinstance(objective, Objective)
    methods = [GRPO, DrGRPO, DAPO, GSPO, CISPO, ABCGRPO]
    assert [kind for kind in methods if isinstance(objective, kind)] == [type(objective)]


def test_options_belong_to_the_methods_that_use_them():
    with pytest.raises(TypeError, match="clip_low"):
        CISPO(clip_low=0.1)
    with pytest.raises(TypeError, match="ratio_cap"):
        GRPO(ratio_cap=2.0)
    with pytest.raises(TypeError, match="max_length"):
        DrGRPO()
    assert (DAPO().clip_low, DAPO().clip_high) == (0.2, 0.28)


def test_the_interface_alone_is_no_method():
    log_probs, old, _, A, mask = ragged_batch(0)
    with pytest.raises(NotImplementedError):
        Objective().loss(log_probs, old, A, mask)


class Reinforce(Objective):
    """A method of one's own says what its surrogate is; everything else is there."""

    def surrogate(self, log_probs, ratio, advantages):
        return advantages[:, None] * log_probs


def test_a_method_of_ones_own_by_hand():
    """Rows (-1 - 2) / 2 * 1 = -1.5 and -3 * -2 = 6: the mean is 2.25; nothing is clipped."""
    log_probs = torch.tensor([[-1.0, -2.0], [-3.0, 99.0]], requires_grad=True)
    mask = torch.tensor([[True, True], [True, False]])
    loss, stats = Reinforce().loss(log_probs, torch.zeros(2, 2), torch.tensor([1.0, -2.0]), mask)
    assert loss.item() == -2.25
    assert (stats.tokens, stats.clip_fraction) == (3, 0.0)
    loss.backward()
    assert log_probs.grad.tolist() == [[-0.25, -0.25], [1.0, 0.0]]
