"""The map of a phase diagram: its numbers, its boundary, its points, and its words."""

import numpy as np
import pytest

from igrpo_kit.analysis.exact.phase import AXES, PhaseDiagram
from igrpo_kit.analysis.exact.world import METHODS
from igrpo_kit.analysis.stats.intervals import Interval
from igrpo_kit.viz import files, style
from igrpo_kit.viz.phase import AXIS_TITLES, METHOD_NAMES, add_points, plot_phase

X, Y = np.array([1e-4, 1e-3, 1e-2]), np.array([0.0, 0.5, 1.0])
DIFFERENCE = np.array([[0.1, 0.1, 0.1], [0.0, 0.0, 0.0], [-0.3, -0.3, np.nan]])


@pytest.fixture
def diagram():
    p = np.full((2, 2, 3, 3), 0.5)
    p[1, 1] += DIFFERENCE
    p[:, :, 2, 2] = np.nan
    return PhaseDiagram("p0", "sharing", X, Y, ("grpo", "both"), p)


def test_the_map_holds_the_difference_and_two_boundaries(diagram):
    figure = plot_phase(diagram, 1, margin=0.05)
    heat, second, first = figure.data
    np.testing.assert_allclose(heat.z, DIFFERENCE)
    assert (heat.zmin, heat.zmax, heat.colorscale[1]) == (-1, 1, (0.5, "#FFFFFF"))
    assert list(heat.x) == list(X) and list(heat.y) == list(Y)
    assert (second.name, first.name) == ("both stages leads by 0.05", "GRPO leads by 0.05")
    # from .1 to 0 between y = 0 and .5; from 0 to -.3 between .5 and 1
    np.testing.assert_allclose(second.y[~np.isnan(second.y)], 0.25)
    np.testing.assert_allclose(first.y[~np.isnan(first.y)], 0.5 + 0.5 * 0.05 / 0.3)
    assert np.nanmin(second.x) == pytest.approx(1e-4) and np.nanmax(second.x) == pytest.approx(1e-2)
    assert np.isnan(second.y[2::3]).all()  # segments are apart
    assert second.line.color != first.line.color and second.line.dash != first.line.dash


def test_axes_are_logarithmic_where_the_property_is(diagram):
    figure = plot_phase(diagram, 1)
    assert (figure.layout.xaxis.type, figure.layout.yaxis.type) == ("log", "linear")
    assert list(figure.layout.xaxis.range) == pytest.approx([-4, -2])
    assert list(figure.layout.yaxis.range) == [0, 1]
    assert figure.layout.xaxis.title.text == AXIS_TITLES["p0"]


def test_the_map_in_words(diagram):
    words = style.alt_text(plot_phase(diagram, 1))
    assert "who has the higher p after 1 steps" in words
    assert "both stages leads by 0.02 in 38% of the cells, GRPO in 25%" in words
    assert "the differences go from -0.30 to +0.10" in words


def test_a_map_without_a_boundary_is_drawn(diagram):
    figure = plot_phase(diagram, 0)
    assert len(figure.data[1].x) == len(figure.data[2].x) == 0
    assert "leads by 0.02 in 0% of the cells" in style.alt_text(figure)


def test_every_axis_and_method_has_a_name():
    assert set(AXIS_TITLES) == set(AXES)
    assert set(METHOD_NAMES) == set(METHODS)


def test_points_have_their_intervals(diagram):
    figure = plot_phase(diagram, 1)
    points = {
        "K16": (Interval(2e-4, 1e-4, 4e-4, 0.95), Interval(0.5, 0.25, 0.5, 0.95)),
        "K20": (Interval(2e-4, 0.0, 4e-4, 0.95), Interval(0.5, 0.0, 0.75, 0.95)),
    }
    assert add_points(figure, points) is figure
    one, two = figure.data[3:]
    assert (one.name, list(one.x), list(one.y), list(one.text)) == ("K16", [2e-4], [0.5], ["K16"])
    assert (one.error_x.array[0], one.error_x.arrayminus[0]) == pytest.approx((2e-4, 1e-4))
    assert (one.error_y.array[0], one.error_y.arrayminus[0]) == pytest.approx((0, 0.25))
    assert two.error_x.arrayminus[0] == pytest.approx(1e-4)  # 0 is not on a log axis: to its edge
    assert two.error_y.arrayminus[0] == 0.5
    assert one.marker.symbol != two.marker.symbol
    assert style.alt_text(figure).endswith("Points: K16 at 0.0002, 0.5; K20 at 0.0002, 0.5.")


def test_points_that_cannot_be_laid(diagram):
    figure = plot_phase(diagram, 1)
    with pytest.raises(ValueError, match=r"points\['a'\]: a log axis has no place for 0"):
        add_points(figure, {"a": (Interval(0.0, 0.0, 1e-3, 0.95), Interval(0.5, 0.4, 0.6, 0.95))})
    with pytest.raises(ValueError, match=r"points\['a'\]: 0.5 is not within its interval"):
        add_points(figure, {"a": (Interval(1e-3, 1e-4, 1e-2, 0.95), Interval(0.5, 0.6, 0.7, 0.95))})
    assert add_points(figure, {}) is figure


@pytest.mark.parametrize("margin", [0.0, -0.1, 1.0])
def test_a_margin_is_positive(diagram, margin):
    with pytest.raises(ValueError, match="margin"):
        plot_phase(diagram, 1, margin=margin)


def test_the_map_goes_dark(diagram):
    dark = style.in_dark(plot_phase(diagram, 1))
    assert [color for _, color in dark.data[0].colorscale] == ["#E69F00", "#0D1117", "#56B4E9"]
    assert files.figure_data(dark) == files.figure_data(plot_phase(diagram, 1))
