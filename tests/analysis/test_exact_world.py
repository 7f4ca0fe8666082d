"""The world against a sampler of every symbol, enumeration of all groups, closed forms, and symmetries."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from igrpo_kit.analysis.exact.waiting import LogitNormalPrompts, grpo_wait, refinement_wait
from igrpo_kit.analysis.exact.world import METHODS, World, group_signal, simulate, symbol_rates
from igrpo_kit.core.advantages import group_advantages

SEPARATE = World(p0=0.1, repair=0.3, keep=0.8, sharing=0.5, learning_rate=1.0)
FACTORED = replace(SEPARATE, length=4, entries=12, spread=1.0)


def rng(seed=0):
    return np.random.default_rng(seed)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def close(samples, expected, errors=4):
    """The mean of samples [n] is `expected` within four standard errors."""
    return abs(samples.mean() - expected) <= errors * samples.std(ddof=1) / len(samples) ** 0.5


# ---------------------------------------------------------------- closed forms


def test_the_signal_of_a_group_by_hand():
    """G = 2, one right: advantages +-1/sqrt 2, divided by 2. G = 4, one right: 1.5 / 4."""
    assert group_signal(np.arange(3), 2) == pytest.approx([0, 0.353553, 0], abs=1e-6)
    assert group_signal(np.arange(5), 4) == pytest.approx([0, 0.375, 0.433013, 0.375, 0], abs=1e-6)


@pytest.mark.parametrize("size", [2, 5, 8])
def test_the_signal_of_a_group_is_that_of_its_advantages(size):
    for right in range(size + 1):
        rewards = torch.tensor([[1.0] * right + [0.0] * (size - right)], dtype=torch.float64)
        expected = group_advantages(rewards)[0, :right].sum().item() / size
        assert group_signal(np.array([right]), size)[0] == pytest.approx(expected)


def test_symbol_rates_by_hand():
    """Two symbols: p0 .25 is .5 each, keep .81 is .9; (.45 + .5 f)^2 = .25 * .81 + .75 * .21 at f = .3."""
    symbol, hold, fix = symbol_rates(0.25, 0.12, 0.81, length=2)
    assert (symbol, hold) == (pytest.approx(0.5), pytest.approx(0.9))
    assert (0.45 + 0.5 * fix) ** 2 == pytest.approx(0.2025 + 0.09)
    assert symbol_rates(0.1, 0.3, 0.8) == (pytest.approx(0.1), pytest.approx(0.8), pytest.approx(0.3))
    assert symbol_rates(0.1, 0.3, 0.8, 0.2)[1:] == (pytest.approx(0.75), pytest.approx(0.375))


@pytest.mark.parametrize("copy", [0.0, 0.2])
def test_a_world_has_the_rates_it_is_given(copy):
    """p0, repair and keep, counted over sampled prompts, drafts and refinements."""
    world = replace(FACTORED, copy=copy, p0=0.2, entries=50)
    on_q, if_right, if_wrong = sigmoid(world.logits())
    generator, n = rng(), 400_000
    entries = generator.integers(50, size=(n, 4))
    draft = generator.random((n, 4)) < on_q[entries]
    written = generator.random((n, 4)) < np.where(draft, if_right[entries], if_wrong[entries])
    copied, right = generator.random(n) < copy, draft.all(axis=1)
    refined = np.where(copied, right, written.all(axis=1))
    assert right.mean() == pytest.approx(0.2, abs=0.004)
    assert refined[~right].mean() == pytest.approx(0.3, abs=0.004)
    assert refined[right].mean() == pytest.approx(0.8, abs=0.008)


def test_the_first_live_group_comes_as_waiting_says():
    """Without learning, over 2,000 seeds: shares of runs with a live group within t steps."""
    world = replace(SEPARATE, p0=0.002, repair=0.01, learning_rate=0.0, prompts_per_step=4)
    prompts = LogitNormalPrompts(0.002)
    waits = {
        "grpo": grpo_wait(prompts, 8, 4),
        "igrpo": refinement_wait(
            prompts, repair=0.01, keep=0.8, num_drafts=4, num_refinements=4, prompts_per_step=4
        ),
    }
    for method, wait in waits.items():
        live = simulate(world, method, steps=20, seeds=2000, rng=rng()).live > 0
        for steps in (1, 5, 20):
            assert live[:steps].any(axis=0).mean() == pytest.approx(wait.reached_by(steps), abs=0.04)


# ---------------------------------------------------------------- enumeration of all groups

ONE_ENTRY = World(
    p0=0.3, repair=0.35, keep=0.7, sharing=0.6, copy=0.25, learning_rate=10.0, length=2, entries=1,
    prompts_per_step=1, num_drafts=2, num_refinements=2, optimizer="sgd",
)  # fmt: skip
"""both symbols are the same entry, so p = sigmoid(logit)^2 gives the logit away"""

RATE = 10.0 / 10  # in the first of ten steps of warm-up


def answers(x):
    """The four answers of two symbols, with their probabilities; x is one probability per symbol."""
    return [(o, np.prod(np.where(o, x, 1 - np.asarray(x)))) for o in product((True, False), repeat=2)]


def expected_move_of_q(world, method):
    """E of the first step's change of the logit on q: every draft and every refinement, one by one."""
    on_q, if_right, if_wrong = (float(x) for x in sigmoid(world.logits()[:, 0]))
    N, G, sharing = world.num_drafts, world.num_refinements, float(world.sharing)

    def group_gradient(outcomes, size, score):
        """E[sum A_j score(o_j) / size] over all groups of (answer, probability)."""
        total = 0.0
        for group in product(outcomes, repeat=size):
            rewards = torch.tensor([[float(all(o)) for o, _ in group]], dtype=torch.float64)
            A = group_advantages(rewards)[0].tolist()
            chance = np.prod([p for _, p in group])
            total += chance * sum(a * score(o) for a, (o, _) in zip(A, group, strict=True)) / size
        return total

    on_q_answers = answers([on_q, on_q])
    score_q = lambda o: sum(s - on_q for s in o) / 2  # noqa: E731  (mean over the two symbols)
    if method == "grpo":
        return RATE * group_gradient(on_q_answers, N + G, score_q)
    move = 0.0
    for drafts in product(on_q_answers, repeat=N):
        chance = np.prod([p for _, p in drafts])
        best = next((o for o, _ in drafts if all(o)), drafts[0][0]) if method != "random" else drafts[0][0]
        x = [if_right if s else if_wrong for s in best]
        written = dict(answers(x))
        refined = [(o, (1 - world.copy) * p + world.copy * (o == best)) for o, p in written.items()]

        def score(o, written=written, x=x, best=best):
            copied = world.copy * (o == best)
            own = (1 - world.copy) * written[o] / ((1 - world.copy) * written[o] + copied)
            return own * sum(s - p for s, p in zip(o, x, strict=True)) / 2

        move += chance * sharing * group_gradient(refined, G, score)
    if method == "both":
        return RATE * (move / 2 + group_gradient(on_q_answers, N, score_q) / 2)
    return RATE * move


@pytest.mark.parametrize("method", ["grpo", "igrpo", "random", "both"])
@pytest.mark.parametrize("copy", [0.0, 0.25])
def test_the_expected_step_against_all_groups(method, copy):
    world = replace(ONE_ENTRY, copy=copy)
    p = simulate(world, method, steps=1, seeds=40_000, rng=rng(1)).p
    logits = np.log(np.sqrt(p) / (1 - np.sqrt(p)))
    expected = expected_move_of_q(world, method)
    assert abs(expected) > 0.01
    assert close(logits[1] - logits[0], expected)


# ---------------------------------------------------------------- a sampler of every symbol


def every_symbol(world, method, steps, seeds):
    """p after `steps` steps, [seeds]: a loop over seeds, without the conditional mean."""
    N, G, P, k = world.num_drafts, world.num_refinements, world.prompts_per_step, world.length
    lam, result = float(world.sharing), []
    for seed in range(seeds):
        generator, logits = rng(1000 + seed), world.logits().copy()
        momentum, square = np.zeros_like(logits), 0.0
        for t in range(1, steps + 1):
            gradient, symbol = np.zeros_like(logits), sigmoid(logits)

            entry = generator.integers(symbol.shape[1], size=(P, 1, k))

            def train(rows, sampled, share, entry=entry, gradient=gradient, symbol=symbol):
                A = group_advantages(torch.from_numpy(sampled.all(axis=2).astype(float))).numpy()
                score = A[..., None] * (sampled - symbol[rows, entry])
                np.add.at(gradient, (rows, entry), share * score.mean(axis=1, keepdims=True) / (P * k))

            def sample(rows, size, entry=entry, generator=generator, symbol=symbol):
                return generator.random((P, size, k)) < symbol[rows, entry]

            on_q, share = np.zeros((P, 1, k), dtype=int), 0.5 if method == "both" else 1.0
            if method == "grpo":
                train(on_q, sample(on_q, N + G), 1.0)
            else:
                drafts = sample(on_q, N)
                best = np.stack([d[np.argmax(d.all(axis=1))] for d in drafts])[:, None]
                rows = np.where(best, 1, 2)
                train(rows, sample(rows, G), share)
                if method == "both":
                    train(on_q, drafts, share)
            total = gradient.sum(axis=0)
            momentum = 0.9 * momentum + 0.1 * gradient
            square = 0.95 * square + 0.05 * ((1 - lam) * (gradient**2).sum() + lam * (total**2).sum())
            if square:
                rate = world.learning_rate * min(1, t / 10) / (1 - 0.9**t) / np.sqrt(square / (1 - 0.95**t))
                logits = logits + rate * ((1 - lam) * momentum + lam * momentum.sum(axis=0))
        result.append(sigmoid(logits[0]).mean() ** k)
    return np.array(result)


@pytest.mark.parametrize("method", ["grpo", "igrpo", "both"])
def test_learning_against_a_sampler_of_every_symbol(method):
    """p0 of .02, 30 steps of Adam: mean and standard deviation over seeds."""
    world = replace(FACTORED, p0=0.02, repair=0.1, keep=0.6, prompts_per_step=4, learning_rate=0.5)
    p = simulate(world, method, steps=30, seeds=2000, rng=rng()).p[-1]
    loop = every_symbol(world, method, 30, 40)
    assert p.mean() > 0.04
    assert close(loop, p.mean(), errors=3)
    assert loop.std() == pytest.approx(p.std(), rel=0.4)


# ---------------------------------------------------------------- symmetry


def test_a_draft_that_tells_nothing_is_no_draft():
    """repair = keep = p0, all shared: iGRPO N + G is GRPO with G, in distribution."""
    world = replace(SEPARATE, p0=0.2, repair=0.2, keep=0.2, sharing=1.0, prompts_per_step=4, optimizer="sgd")
    with_draft, without = (
        simulate(world, method, steps=20, seeds=4000, rng=rng(i)).p[-1]
        for i, method in enumerate(("igrpo", "none"))
    )
    error = np.hypot(with_draft.std(), without.std()) / 4000**0.5
    assert abs(with_draft.mean() - without.mean()) < 4 * error
    assert with_draft.std() == pytest.approx(without.std(), rel=0.06)


def test_grpo_knows_nothing_of_drafts():
    one = simulate(FACTORED, "grpo", steps=10, seeds=3, rng=rng()).p
    other = replace(FACTORED, repair=0.2, keep=0.9, sharing=0.0, copy=0.1)
    np.testing.assert_allclose(simulate(other, "grpo", steps=10, seeds=3, rng=rng()).p, one)


def test_nothing_shared_teaches_nothing_but_drafts_do():
    world = replace(FACTORED, sharing=0.0)
    for method in ("igrpo", "random"):
        p = simulate(world, method, steps=10, seeds=3, rng=rng()).p
        np.testing.assert_allclose(p, 0.1, rtol=1e-9)
    assert simulate(world, "both", steps=10, seeds=3, rng=rng()).p[-1].min() > 0.15


def test_the_switch_waits_for_live_drafts():
    """At p0 = .5 7 of 8 draft groups are live, at .001 one in 250. Nothing learned on q' helps q here."""
    often, rarely = (
        simulate(replace(FACTORED, p0=p0, sharing=0.0), "drafts_then_grpo", steps=10, seeds=4, rng=rng())
        for p0 in (0.5, 0.001)
    )
    assert (often.p[-1] > 0.6).all()
    np.testing.assert_allclose(often.second[0], 0.5, atol=0.1)  # of the answers to q
    np.testing.assert_allclose(rarely.p, 0.001, rtol=1e-6)
    assert rarely.second[-1].mean() > 0.5  # of refinements


def test_a_solved_refinement_teaches_no_more():
    """iGRPO stalls once q' is solved; the same world with both stages trained does not."""
    world = replace(FACTORED, p0=0.05, repair=0.3, entries=24)
    igrpo, both = (simulate(world, m, steps=150, seeds=8, rng=rng()) for m in ("igrpo", "both"))
    assert igrpo.second[-1].mean() > 0.95 and igrpo.live[-20:].mean() < 0.25
    assert igrpo.p[-1].mean() < 0.9 < 0.97 < both.p[-1].mean()


# ---------------------------------------------------------------- many runs, and one


def test_runs_have_the_axes_of_their_numbers():
    world = replace(FACTORED, p0=np.array([0.05, 0.1, 0.2]), repair=np.array([[0.3], [0.4]]))
    assert world.shape == (2, 3)
    result = simulate(world, "igrpo", steps=5, seeds=4, rng=rng())
    assert result.p.shape == (6, 2, 3, 4) and result.live.shape == result.second.shape == (5, 2, 3, 4)
    np.testing.assert_allclose(result.p[0], np.broadcast_to([[0.05], [0.1], [0.2]], (2, 3, 4)))
    refined = result.second[0].mean(axis=-1)
    assert (refined[1] > refined[0]).all() and (np.diff(refined, axis=1) > 0).all()


@pytest.mark.parametrize("method", METHODS)
def test_a_grid_is_its_runs_one_by_one(method):
    """Many seeds in each cell, in blocks: the same means."""
    rates = np.linspace(0.2, 0.6, 3)
    world = replace(FACTORED, prompts_per_step=4, learning_rate=rates)
    grid = simulate(world, method, steps=8, seeds=1000, rng=rng()).p[-1]
    for i, rate in enumerate(rates):
        alone = simulate(replace(world, learning_rate=rate), method, steps=8, seeds=1000, rng=rng(7)).p[-1]
        assert abs(grid[i].mean() - alone.mean()) < 4 * np.hypot(grid[i].std(), alone.std()) / 1000**0.5


def test_the_same_seed_gives_the_same_runs_and_finite_ones():
    world = replace(FACTORED, learning_rate=20.0)
    for method in METHODS:
        one, two = (simulate(world, method, steps=50, seeds=2, rng=rng(3)) for _ in range(2))
        np.testing.assert_array_equal(one.p, two.p)
        assert np.isfinite(one.p).all() and ((one.p >= 0) & (one.p <= 1)).all()


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "wrong",
    [
        {"p0": 0.0}, {"p0": 1.0}, {"p0": float("nan")}, {"p0": np.array([0.1, 1.2])}, {"repair": -0.1},
        {"keep": 1.0}, {"keep": 0.0}, {"sharing": 1.5}, {"copy": -1.0}, {"learning_rate": -1.0},
        {"learning_rate": float("inf")}, {"spread": -0.5}, {"spread": float("nan")}, {"length": 0},
        {"length": 3}, {"prompts_per_step": 0}, {"num_drafts": 0}, {"num_refinements": 1},
        {"entries": 0}, {"optimizer": "adamw"}, {"repair": 1.0},
    ],
)  # fmt: skip
def test_a_world_names_the_argument_it_refuses(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        replace(SEPARATE, **wrong)


def test_a_world_that_cannot_be():
    with pytest.raises(ValueError, match="repair: no world has it"):
        replace(FACTORED, p0=0.5, repair=0.9, keep=0.5)  # .25 + .5 repair is at most .5625 there
    with pytest.raises(ValueError, match="keep must lie strictly between copy and 1"):
        replace(SEPARATE, copy=0.9)


@pytest.mark.parametrize(
    "wrong, name",
    [({"method": "ppo"}, "method"), ({"steps": 0}, "steps"), ({"seeds": 0}, "seeds"), ({}, "num_drafts")],
)
def test_a_simulation_names_the_argument_it_refuses(wrong, name):
    arguments = {"method": "both", "steps": 1, "seeds": 1} | wrong
    with pytest.raises(ValueError, match=name):
        simulate(replace(SEPARATE, num_drafts=1), rng=rng(), **arguments)
