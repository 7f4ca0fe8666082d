"""The figures: what their traces hold, that they can be told apart, and that the files open offline."""

from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest

from igrpo_kit.toy import ToyResult
from igrpo_kit.viz import gallery, plots

FIGURES = Path(__file__).parents[1] / "figures"
A_TOY = ToyResult(
    draft_reward=0.5,
    best_draft_reward=0.9,
    refinement_reward=0.8,
    mixed_grpo_full=0.99,
    mixed_grpo_small=0.87,
    mixed_igrpo=0.23,
)


def trace(figure: go.Figure, name: str) -> go.Scatter:
    (found,) = [t for t in figure.data if t.name == name]
    return found


def at(line: go.Scatter, x: float) -> float:
    return line.y[np.flatnonzero(np.isclose(line.x, x))[0]]


def contrast_on_white(color: str) -> float:
    """WCAG 2: 1.05 over the relative luminance + 0.05."""
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 1.05 / (0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] + 0.05)


def test_best_of_n_draws_the_formula_the_points_and_their_errors():
    simulated = np.array([[0.48, 0.1], [0.77, 0.2]])
    figure = plots.plot_best_of_n(np.array([0.5, 0.1]), [1, 2], simulated, trials=100)
    assert at(trace(figure, "N = 2"), 0.5) == pytest.approx(0.75)
    points = trace(figure, "N = 2, simulated")
    assert list(points.x) == [0.5, 0.1] and list(points.y) == [0.77, 0.2]
    # sqrt(.75 * .25 / 100) and sqrt(.19 * .81 / 100), four times
    assert list(points.error_y.array) == pytest.approx([0.173205, 0.156920], abs=1e-6)
    assert "100 simulated" in figure.layout.title.subtitle.text


def test_best_of_n_points_look_like_their_line():
    figure = plots.plot_best_of_n(np.array([0.5]), [1, 2, 4], np.full((3, 1), 0.5), trials=10)
    assert [t.marker.color for t in figure.data[3:]] == ["#0072B2", "#D55E00", "#009E73"]
    assert [t.marker.symbol for t in figure.data[3:]] == ["circle", "square", "diamond"]


def test_best_of_n_refuses_a_table_that_does_not_fit():
    with pytest.raises(ValueError, match=r"simulated: shape \(2, 1\) is needed, got \(1, 1\)"):
        plots.plot_best_of_n(np.array([0.5]), [1, 2], np.zeros((1, 1)), trials=10)


def test_dead_groups():
    line = trace(plots.plot_dead_groups([2, 4]), "G = 4")
    assert [at(line, x) for x in (0, 0.5, 0.9, 1)] == pytest.approx([1, 0.125, 0.6562, 1])


def test_mixed_groups_puts_each_share_under_its_name():
    figure = plots.plot_mixed_groups(
        np.array([0.5]), [A_TOY], num_drafts=3, num_refinements=5, assumption="a guess"
    )
    assert {t.name: list(t.y) for t in figure.data} == {
        "GRPO, groups of 8": [0.99],
        "GRPO, groups of 5": [0.87],
        "iGRPO, 3 drafts + 5": [0.23],
    }
    assert figure.layout.title.subtitle.text == "a guess"


def test_mixed_groups_needs_one_result_per_p():
    with pytest.raises(ValueError, match="one value per x is needed"):
        plots.plot_mixed_groups(np.array([0.5, 0.6]), [A_TOY], num_drafts=4, num_refinements=4, assumption="")


def test_jensen_averages_the_formula_over_prompts():
    figure = plots.plot_jensen({"split": np.array([0.0, 1.0]), "alike": np.array([0.5, 0.5])}, [1, 4])
    assert list(trace(figure, "split").y) == [0.5, 0.5]  # a hopeless and a trivial prompt: drafts are no use
    assert list(trace(figure, "alike").y) == pytest.approx([0.5, 0.9375])
    assert list(figure.data[0].y) == pytest.approx([0.5, 0.9375])  # the formula, with the mean put in


@pytest.mark.parametrize("populations", [{}, {"a": np.array([0.4]), "b": np.array([0.5])}])
def test_jensen_refuses_populations_the_formula_could_tell_apart(populations):
    with pytest.raises(ValueError, match="populations: at least one, all with the same mean p"):
        plots.plot_jensen(populations, [1, 2])


def test_lines_of_unequal_length_are_named():
    with pytest.raises(ValueError, match=r"series\['b'\]: one value per x is needed, \(2,\), got \(3,\)"):
        plots.plot_lines([0, 1], {"a": [1, 2], "b": [1, 2, 3]}, title="", x_title="", y_title="")


def test_every_colour_can_be_seen_on_white():
    assert min(map(contrast_on_white, plots.COLORS)) >= 3.0
    assert contrast_on_white("#E69F00") < 3.0  # Okabe and Ito's orange: why it is not among them


def test_thirty_traces_in_a_row_all_look_different():
    styles = [(t.line.color, t.line.dash, t.marker.symbol) for t in plots.TEMPLATE.data.scatter]
    assert len(set(styles)) == len(styles) == 30
    assert all(len(set(pair)) == 2 for pair in zip(*styles[:2], strict=True))  # in all three at once


def test_html_needs_no_network(tmp_path):
    path = plots.write_html(plots.plot_dead_groups([4]), tmp_path / "new" / "figure.html")
    page = path.read_text(encoding="utf-8")
    assert len(page) > 3_000_000  # plotly.js is inside
    assert "<script src=" not in page and "<link" not in page
    assert "G = 4" in page


def test_the_committed_pictures_are_those_of_the_gallery():
    assert {path.stem for path in FIGURES.glob("*.png")} == set(gallery.FIGURES)


@pytest.mark.parametrize("name", gallery.FIGURES)
def test_gallery_draws_the_same_each_time(name):
    first, second = (gallery.FIGURES[name]() for _ in range(2))
    assert len(first.data) >= 3
    for a, b in zip(first.data, second.data, strict=True):
        assert np.array_equal(a.x, b.x) and np.array_equal(a.y, b.y)


def test_gallery_shows_where_igrpos_groups_die():
    figure = gallery.mixed_groups()
    # b (1 - dead(0.95)) + (1 - b) (1 - dead(p)), b = 1 - (1 - p)^4: worked out by hand
    line = trace(figure, "iGRPO, 4 drafts + 4")
    assert [at(line, p) for p in (0.2, 0.5, 0.8)] == pytest.approx([0.351, 0.229, 0.186], abs=0.005)


def test_pngs_without_a_browser_say_so_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "no-such-browser"))
    with pytest.raises(FileNotFoundError, match=r"no browser to draw a PNG with: install Chromium") as error:
        plots.write_pngs({tmp_path / "x.png": plots.plot_dead_groups([4])})
    assert "\n" not in str(error.value)


def test_png_is_drawn_at_twice_its_size(tmp_path):
    path = tmp_path / "new" / "figure.png"
    try:
        plots.write_pngs({path: plots.plot_dead_groups([4])})
    except FileNotFoundError as error:
        pytest.skip(str(error))
    header = path.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    assert [int.from_bytes(header[i : i + 4], "big") for i in (16, 20)] == [1800, 1000]
