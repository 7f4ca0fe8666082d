"""The phase diagram: each cell against a run of its own, the boundary against known lines, hostile input."""

from dataclasses import replace

import numpy as np
import pytest

from igrpo_kit.analysis.exact.phase import CIPHER, PhaseDiagram, contour, phase_diagram
from igrpo_kit.analysis.exact.world import simulate

SMALL = replace(CIPHER, length=4, entries=12, prompts_per_step=8, learning_rate=1.0, keep=0.6)
P0, RATIO = np.array([0.002, 0.02, 0.2]), np.array([1.0, 3.0, 20.0])


def rng(seed=0):
    return np.random.default_rng(seed)


def small(**settings):
    return phase_diagram(SMALL, "p0", P0, "ratio", RATIO, rng=rng(), **({"steps": 10} | settings))


def test_cells_are_runs_of_their_own():
    diagram = small(seeds=100)
    assert diagram.p.shape == (2, 11, 3, 3)
    np.testing.assert_allclose(diagram.p[:, 0, :2], np.broadcast_to(P0, (2, 2, 3)))
    assert np.isnan(diagram.p[:, :, 2, 2]).all()  # 20 times .2 is no probability
    assert np.isnan(diagram.p).sum() == 2 * 11
    for row, column in ((0, 0), (1, 1), (2, 1)):
        world = replace(SMALL, p0=P0[column], repair=P0[column] * RATIO[row])
        for i, method in enumerate(("grpo", "igrpo")):
            alone = simulate(world, method, steps=10, seeds=400, rng=rng(1)).p[-1]
            error = alone.std() * (1 / 100 + 1 / 400) ** 0.5
            assert abs(diagram.p[i, -1, row, column] - alone.mean()) < 4 * error


def test_grpo_is_the_same_whatever_a_draft_would_do():
    diagram = small(methods=("grpo", "none"))
    np.testing.assert_array_equal(diagram.p[0, :, 0], diagram.p[0, :, 1])
    assert (diagram.difference(10)[0, 1:] < 0).all()  # half the rollouts


@pytest.mark.parametrize(
    "name, values", [("keep", [0.3, 0.6]), ("sharing", [0.0, 1.0]), ("repair", [0.1, 0.3])]
)
def test_other_axes(name, values):
    diagram = phase_diagram(SMALL, name, np.array(values), "p0", np.array([0.05, 0.1]), steps=10, rng=rng())
    assert np.isfinite(diagram.p).all()
    np.testing.assert_allclose(diagram.p[1, 0], [[0.05, 0.05], [0.1, 0.1]])
    if name == "sharing":
        np.testing.assert_allclose(diagram.p[1, -1, :, 0], [0.05, 0.1])  # nothing is shared
        assert (diagram.p[1, -1, :, 1] > [0.05, 0.1]).all()


def test_the_map_of_the_cipher_has_three_regions():
    """At p0 1e-5 iGRPO leads, at .01 GRPO does, and without repair neither starts: one p0, three ratios."""
    diagram = phase_diagram(
        x=np.array([1e-5, 1e-2]), y=np.array([1.0, 50.0, 300.0]), steps=120, seeds=2, rng=rng()
    )
    lead = diagram.difference(120)
    assert lead[2, 0] > 0.2
    assert lead[0, 1] < -0.2 and lead[1, 1] < -0.2
    assert abs(lead[0, 0]) < 0.02
    assert diagram.first()[0, 1] == -1 and np.isnan(diagram.first()[2, 1])


def curves(first, second):
    p = np.array([first, second], dtype=float)[:, :, None, None] * np.ones((1, 1, 2, 2))
    p[:, :, 1, 1] = np.nan
    x = np.array([0.1, 0.2])
    return PhaseDiagram("p0", "keep", x, x, ("grpo", "igrpo"), p)


def test_who_is_first():
    diagram = curves([0.1, 0.2, 0.5, 0.9], [0.1, 0.6, 0.4, 0.4])
    assert diagram.first_step()[:, 0, 0].tolist() == [2, 1]
    assert diagram.first()[0].tolist() == [1, 1] and np.isnan(diagram.first()[1, 1])
    assert diagram.first_step(0.8)[:, 0, 0].tolist() == [3, np.inf]
    assert diagram.first(0.8)[0, 0] == -1
    assert diagram.first(0.95)[0, 0] == 0
    assert diagram.difference(3)[0, 0] == pytest.approx(-0.5)
    for step in (-1, 4):
        with pytest.raises(ValueError, match="step: from 0 to 3"):
            diagram.difference(step)


def test_a_straight_line_is_found_exactly():
    """x + 2 y = 3 on a grid: every end lies on it, and the pieces add up to its length."""
    x, y = np.linspace(0, 3, 7), np.linspace(0, 2, 6)
    lines = contour(x, y, x + 2 * y[:, None], 3.0)
    np.testing.assert_allclose(lines[..., 0] + 2 * lines[..., 1], 3.0)
    # from (3, 0) to (0, 1.5)
    assert np.linalg.norm(lines[:, 0] - lines[:, 1], axis=1).sum() == pytest.approx(11.25**0.5)
    assert contour(x, y, x + 2 * y[:, None], 100.0).shape == (0, 2, 2)


def test_a_circle_is_found_and_holes_are_left_out():
    x = np.linspace(-1, 1, 81)
    values = x**2 + x[:, None] ** 2
    lines = contour(x, x, values, 0.5)
    np.testing.assert_allclose((lines**2).sum(axis=-1), 0.5, atol=1e-3)
    assert np.linalg.norm(lines[:, 0] - lines[:, 1], axis=1).sum() == pytest.approx(4.4429, rel=2e-3)
    half = contour(x, x, np.where(x[:, None] > 0, values, np.nan), 0.5)
    assert half[..., 1].min() > 0


def test_the_boundary_is_on_the_axes_own_scale():
    """A difference that is linear in log p0 and crosses 0 between two columns."""
    x, y = np.geomspace(1e-4, 1, 5), np.array([0.0, 0.5, 1.0])
    p = np.zeros((2, 1, 3, 5))
    p[1, 0] = np.log10(x) + 2.5
    lines = PhaseDiagram("p0", "sharing", x, y, ("grpo", "igrpo"), p).boundary(0)
    np.testing.assert_allclose(lines[..., 0], 10**-2.5)
    assert (lines[..., 1].min(), lines[..., 1].max()) == (0, 1)


@pytest.mark.parametrize(
    "wrong, name",
    [
        ({"x_name": "copy"}, "x_name"),
        ({"x_name": "ratio"}, "x_name"),
        ({"x_name": "repair", "x": P0}, "x_name"),
        ({"x_name": "keep", "x": None}, "x: values for keep"),
        ({"x": np.array([0.2, 0.1])}, "x: at least two increasing"),
        ({"x": np.array([0.1])}, "x: at least two increasing"),
        ({"x": np.array([0.0, 0.1])}, "x: p0 must be above 0"),
        ({"x": np.array([0.1, 1.5])}, r"x: p0 must lie in \[0, 1\]"),
        ({"x": np.array([0.1, np.nan])}, "x: at least two increasing"),
        ({"y": np.array([-1.0, 1.0])}, "y: ratio must be above 0"),
        ({"y": np.array([1e5, 1e6]), "x": P0}, "world: with these axes, no cell"),
        ({"world": replace(SMALL, keep=np.array([0.5, 0.6]))}, "world: one run"),
        ({"methods": ("grpo", "ppo")}, "method"),
        ({"steps": 0}, "steps"),
    ],
)
def test_a_refusal_names_the_argument(wrong, name):
    arguments = {"world": SMALL, "x": P0, "y": RATIO, "steps": 1} | wrong
    with pytest.raises(ValueError, match=name):
        phase_diagram(**arguments, rng=rng())
