"""The figures: what their traces hold, that they can be told apart, and that the files open offline."""

import struct
import zlib
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest

from igrpo_kit.analysis.compare import Record
from igrpo_kit.analysis.dynamics import Curve
from igrpo_kit.analysis.stats.intervals import Interval
from igrpo_kit.core.toy import ToyResult
from igrpo_kit.experiments import gallery
from igrpo_kit.viz import files, panels, plots, results, runs, style

FIGURES = Path(__file__).parents[2] / "figures"
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


def luminance(color: str) -> float:
    """WCAG 2: relative luminance."""
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(color: str, paper: str) -> float:
    dark, light = sorted([luminance(color), luminance(paper)])
    return (light + 0.05) / (dark + 0.05)


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


def test_moving_probabilities_have_a_frame_for_each_update_shown():
    rows = np.array([[1.0, 0.0], [0.75, 0.25], [0.5, 0.5], [0.2, 0.8]])
    figure = plots.plot_moving_probabilities(rows, ["a", "b"], title="t", frames=3)
    assert list(figure.data[0].x) == ["a", "b"] and list(figure.data[0].y) == [1.0, 0.0]
    assert [f.name for f in figure.frames] == ["0", "2", "3"]  # 1.5 is rounded to 2
    assert [list(f.data[0].y) for f in figure.frames] == [[1.0, 0.0], [0.5, 0.5], [0.2, 0.8]]
    assert [step.args[0] for step in figure.layout.sliders[0].steps] == [("0",), ("2",), ("3",)]
    assert "a from 1.00 to 0.20; b from 0.00 to 0.80" in style.alt_text(figure)
    with pytest.raises(ValueError, match="names: 2 are needed, got 1"):
        plots.plot_moving_probabilities(rows, ["a"], title="t")


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


def test_every_color_can_be_seen_on_its_paper():
    assert contrast("#000000", "#FFFFFF") == pytest.approx(21)
    assert min(contrast(c, style.PAPER) for c in (*style.COLORS, style.GRAY)) >= 3.0
    assert min(contrast(c, style.DARK_PAPER) for c in (*style.DARK_COLORS, style.DARK_GRAY)) >= 4.9
    assert contrast("#E69F00", style.PAPER) < 3.0  # Okabe and Ito's orange: why it is on dark paper only
    for template, paper in ((style.TEMPLATE, style.PAPER), (style.DARK, style.DARK_PAPER)):
        assert contrast(template.layout.font.color, paper) >= 7
        assert contrast(template.layout.title.subtitle.font.color, paper) >= 4.5


def test_forty_two_traces_in_a_row_all_look_different():
    for template in (style.TEMPLATE, style.DARK):
        styles = [(t.line.color, t.line.dash, t.marker.symbol) for t in template.data.scatter]
        assert len(set(styles)) == len(styles) == 42
        assert all(len(set(pair)) == 2 for pair in zip(*styles[:2], strict=True))  # in all three at once


def test_dark_changes_paper_and_colors_and_nothing_that_is_said():
    light = results.plot_forest({"a": {"b": Interval(0.1, 0.0, 0.2, 0.95)}}, title="t", x_title="x")
    dark = style.in_dark(light)
    assert files.figure_data(dark) == files.figure_data(light)
    assert style.alt_text(dark) == style.alt_text(light)
    assert dark.data[0].marker.color == dark.data[0].error_x.color == "#56B4E9"
    assert dark.layout.shapes[0].line.color == style.DARK_GRAY
    assert dark.layout.template.layout.paper_bgcolor == "#0D1117"
    assert light.data[0].marker.color == "#0072B2"  # the figure given is left alone
    lines = plots.plot_lines(np.array([0.5]), {"a": np.array([0.25])}, title="", x_title="", y_title="")
    assert files.figure_data(style.in_dark(lines)) == [
        {"type": "scatter", "name": "a", "x": [0.5], "y": [0.25]}
    ]


def test_a_description_is_plain_text_and_its_absence_an_error():
    figure = style.describe(go.Figure(), "p<sup>G</sup>\n  and <b>more</b>")
    assert style.alt_text(figure) == "p^G and more"
    with pytest.raises(ValueError, match="no words for the figure 'Mute'"):
        style.alt_text(go.Figure(layout_title_text="Mute"))


# Records made by hand: two seeds of GRPO, two of iGRPO.


def metrics_row(step, reward, **more):
    return {"step": step, "reward": reward, "correct": reward, "entropy": 0.5, "dead_groups": 0.5, **more}


def record(method, seed, rewards, drafted=False):
    more = {"stage1/reward": 0.25, "stage1/entropy": 0.75, "best_draft_reward": 0.875} if drafted else {}
    rows = [metrics_row(i + 1, r, all_correct_groups=0.125, **more) for i, r in enumerate(rewards)]
    return Record(method, seed, rows, [])


RUNS = [
    record("GRPO", 0, [0.0, 0.5]),
    record("GRPO", 1, [0.2, 0.5]),
    record("iGRPO", 0, [0.4, 0.6], drafted=True),
    record("iGRPO", 1, [0.4, 0.6], drafted=True),
]


def reward_panel(**more):
    return panels.Panel("reward", "steps", lambda r: runs.metric_curve(r, "reward"), **more)


def test_a_line_is_the_mean_over_seeds_and_its_band_students_interval():
    figure = panels.plot_panels(RUNS, [reward_panel()], title="Rewards")
    assert list(trace(figure, "GRPO").y) == pytest.approx([0.1, 0.3])  # running means 0, 0.25 and 0.2, 0.35
    shade = figure.data[0]  # there and back: two seeds, sd / sqrt(2) = 0.1 and 0.05, t = 12.706
    assert list(shade.x) == [1, 2, 2, 1] and shade.showlegend is False
    assert list(shade.y) == pytest.approx([1.3706, 0.3 + 0.6353, 0.3 - 0.6353, -1.1706], abs=1e-4)
    assert len(figure.data) == 3  # iGRPO's seeds agree: a band without width is not drawn
    assert "GRPO from 0.10 to 0.30; iGRPO from 0.40 to 0.50" in style.alt_text(figure)


def test_a_method_looks_the_same_in_every_panel_and_is_named_once():
    drafts = panels.Panel("best draft", "steps", lambda r: runs.metric_curve(r, "best_draft_reward"))
    figure = panels.plot_panels(RUNS, [drafts, reward_panel()], title="")
    lines = [t for t in figure.data if t.name]
    assert [(t.name, t.showlegend) for t in lines] == [("iGRPO", True), ("GRPO", True), ("iGRPO", False)]
    assert {t.line.color for t in lines if t.name == "iGRPO"} == {style.COLORS[1]}


def test_seeds_at_unequal_rewards_are_paths():
    path = panels.Panel(
        "y", "score", lambda r: Curve(np.array([0.0, 1.0 + r.seed]), np.array([0.0, 4.0])), "paths"
    )
    figure = panels.plot_panels(RUNS[:2], [path], title="")
    assert [list(t.x) for t in figure.data] == [[0, 1], [0, 2], [0, 1.5]]
    assert [t.name for t in figure.data] == [None, None, "GRPO"]


def test_a_panel_that_nobody_can_fill_is_an_error():
    missing = panels.Panel("kl", "steps", lambda r: runs.metric_curve(r, "kl"))
    with pytest.raises(LookupError, match="no record has what is to be shown: kl"):
        panels.plot_panels(RUNS, [missing], title="")


def test_a_long_run_is_thinned_and_keeps_its_spike():
    rng = np.random.default_rng(0)
    steps = np.arange(1_000_000, dtype=float)
    y = rng.random(1_000_000)
    y[123_457] = 99.0
    figure = panels.plot_panels(
        [Record("GRPO", seed, [], []) for seed in (0, 1)],
        [panels.Panel("y", "steps", lambda r: Curve(steps, y + 0.01 * r.seed))],
        title="",
    )
    line = trace(figure, "GRPO")
    assert len(line.x) <= 2500 and line.x[0] == 0 and line.x[-1] == 999_999
    assert line.x[np.argmax(line.y)] == 123_457 and max(line.y) == pytest.approx(99.005)
    assert sum(len(t.x) for t in figure.data) <= 7500


def test_rewards_keeps_apart_what_is_trained_and_what_is_asked():
    evaluation = {"step": 2, "protocol": "q", "temperature": 1.0, "reward": [0.0, 1.0]}
    base = {**evaluation, "reward": [0.0, 0.0]}
    seen = [Record(r.method, r.seed, r.metrics, [evaluation]) for r in RUNS]
    figure = runs.plot_rewards(seen, base, title="")
    by_panel = {(t.name, t.xaxis): list(t.y) for t in figure.data if t.name}
    assert by_panel["iGRPO", "x"] == pytest.approx([0.4, 0.5])  # refinements of q'
    assert by_panel["iGRPO", "x2"] == [0.25, 0.25]  # drafts
    assert by_panel["GRPO", "x2"] == by_panel["GRPO", "x"] == pytest.approx([0.1, 0.3])
    assert ("GRPO", "x3") not in by_panel and by_panel["iGRPO", "x3"] == [0.875, 0.875]
    assert by_panel["GRPO", "x4"] == [0, 0.5]


def test_dead_groups_are_split_by_what_made_them_alike():
    figure = runs.plot_dead_group_kinds(RUNS, title="")
    shares = {t.xaxis: list(t.y) for t in figure.data if t.name == "GRPO"}
    assert shares == {"x": [0.125, 0.125], "x2": [0.375, 0.375]}


def drafted_row(step, *, kept, regressed, repaired, still_incorrect, copied_of_correct):
    return {
        "step": step,
        "copy_rate": 0.5,
        "copy_rate_of_correct": copied_of_correct,
        "transitions/kept": kept,
        "transitions/regressed": regressed,
        "transitions/repaired": repaired,
        "transitions/still_incorrect": still_incorrect,
    }


# Of 16 refinements 12 saw a correct draft: 6 copied it, 3 wrote another correct answer, 3 regressed. Of the 4
# that saw an incorrect one, 1 repaired it.
MIXED = drafted_row(1, kept=9, regressed=3, repaired=1, still_incorrect=3, copied_of_correct=0.5)
ALL_CORRECT = drafted_row(1, kept=12, regressed=4, repaired=0, still_incorrect=0, copied_of_correct=0.75)


def test_flows_of_sixteen_refinements_counted_by_hand():
    assert runs.flows(MIXED) == pytest.approx([6 / 16, 3 / 16, 3 / 16, 1 / 16, 3 / 16])
    assert runs.flows(ALL_CORRECT) == pytest.approx([0.75, 0, 0.25, 0, 0])
    all_incorrect = drafted_row(
        1, kept=0, regressed=0, repaired=4, still_incorrect=12, copied_of_correct=None
    )
    assert runs.flows(all_incorrect) == pytest.approx([0, 0, 0, 0.25, 0.75])
    unknown = dict.fromkeys(("kept", "regressed", "repaired", "still_incorrect"))
    undetermined = drafted_row(1, **unknown, copied_of_correct=0.5)  # an old record whose shares do not tell
    assert np.isnan(runs.flows(undetermined)).all()
    with pytest.raises(ValueError, match="step 7: no draft was shown"):
        runs.flows({"step": 7, "copy_rate": None})


def test_transitions_average_over_seeds_and_steps():
    rows = [[{**row, "step": i} for i in range(1, 12)] for row in (MIXED, ALL_CORRECT)]
    figure = runs.plot_transitions([Record("i", s, r, []) for s, r in enumerate(rows)], title="")
    assert [t.name for t in figure.data] == list(runs.FLOWS)
    assert list(figure.data[0].x) == [10, 11]
    assert [t.y[0] for t in figure.data] == pytest.approx([9 / 16, 1.5 / 16, 3.5 / 16, 0.5 / 16, 1.5 / 16])
    with pytest.raises(ValueError, match=r"records: of one method, got \['GRPO', 'iGRPO'\]"):
        runs.plot_transitions(RUNS, title="")


def test_a_method_that_was_not_run_is_named():
    assert [r.seed for r in runs.seeds_of(RUNS, "iGRPO")] == [0, 1]
    with pytest.raises(LookupError, match=r"'GRPO-16' is not among \['GRPO', 'iGRPO'\]"):
        runs.seeds_of(RUNS, "iGRPO", "GRPO-16")


def test_a_flight_shows_each_step_of_what_must_be_exact():
    row = {"reward": 0.6, "correct": 0.5, "length": 5.0, "entropy": 0.3, "grad_norm": 1.0, "dead_groups": 0.5}
    row |= {"copy_rate": 0.2, "tokens": 10.0}
    first = row | {"step": 1, "tokens_trained": 10, "live_tokens": 10.0, "sampler_gap": 1e-6}
    second = row | {"step": 2, "tokens_trained": 25, "live_tokens": 6.0, "sampler_gap": None}
    figure = runs.plot_flight(Record("mine", 0, [first, second], []), title="A run")
    lines = {
        figure.layout[t.yaxis.replace("y", "yaxis")].title.text: t for t in figure.data if t.name == "mine"
    }
    assert list(lines["trained / sampled tokens"].y) == [1.0, 1.5]
    assert list(lines["log-prob gap, nats"].y) == [1e-6]  # a step without a gradient has no gap
    # 0, and the mean of 0 and 1 - 6/15
    assert list(trace(figure, "trained tokens with advantage 0").y) == pytest.approx([0.0, 0.3])
    assert list(trace(figure, "share correct").y) == [0.5, 0.5]
    with pytest.raises(LookupError, match="mine: no count of trained tokens"):
        runs.plot_flight(Record("mine", 0, [row | {"step": 1}], []), title="A run")


def test_pass_at_n_draws_estimates_bands_and_single_draws():
    after = {1: Interval(0.5, 0.4, 0.6, 0.95), 2: Interval(0.7, 0.6, 0.75, 0.95)}
    before = {1: Interval(0.25, 0.25, 0.25, 0.95), 2: Interval(0.5, 0.5, 0.5, 0.95)}
    figure = results.plot_pass_at_n(
        {"GRPO": after}, title="P", before=before, draws={"one draw": {1: 0.4, 2: 0.8}}
    )
    assert [t.name for t in figure.data] == [None, "GRPO", "before training", "one draw"]
    assert list(figure.data[0].y) == [0.6, 0.75, 0.6, 0.4]
    assert list(trace(figure, "GRPO").y) == [0.5, 0.7]
    assert trace(figure, "before training").line.color == style.GRAY
    assert trace(figure, "one draw").mode == "markers" and list(trace(figure, "one draw").y) == [0.4, 0.8]
    assert figure.layout.xaxis.tickvals == (1, 2)


def test_forest_puts_each_interval_in_its_row():
    groups = {"A": {"x": Interval(0.1, -0.1, 0.4, 0.95)}, "B": {"y": Interval(-0.2, -0.3, -0.1, 0.95)}}
    figure = results.plot_forest(groups, title="F", x_title="difference")
    first, second = figure.data
    assert [list(level) for level in first.y] == [["A"], ["x"]]
    assert [list(level) for level in second.y] == [["B"], ["y"]]
    assert first.error_x.array[0] == pytest.approx(0.3) and first.error_x.arrayminus[0] == pytest.approx(0.2)
    assert first.marker.symbol != second.marker.symbol
    assert "A, x: +0.100 [-0.100, +0.400]; B, y: -0.200 [-0.300, -0.100]" in style.alt_text(figure)
    with pytest.raises(ValueError, match="groups: at least one interval"):
        results.plot_forest({"A": {}}, title="F", x_title="")


def test_stacked_bars_leave_out_what_a_bar_does_not_have():
    bars = {"GRPO": {"update": 4.0}, "iGRPO": {"drafts": 1.0, "update": 2.0}}
    figure = results.plot_stacked_bars(bars, title="B", x_title="seconds")
    assert {t.name: list(t.x) for t in figure.data} == {"update": [4, 2], "drafts": [0, 1]}
    assert figure.data[0].marker.pattern.shape != figure.data[1].marker.pattern.shape
    assert "GRPO 4; iGRPO 3" in style.alt_text(figure)


def test_a_marked_table_shares_a_letter_between_cells_of_one_note():
    figure = results.plot_marked_table(
        ["model", "score"],
        [["a", "1.0"], ["b", "2.0"], ["c", "3.0"]],
        {(0, 1): "odd", (2, 1): "odd", (1, 0): "who?"},
        title="T",
    )
    models, scores = figure.data[0].cells["values"]
    assert list(scores) == ["<b>1.0</b><sup>a</sup>", "2.0", "<b>3.0</b><sup>a</sup>"]
    assert list(models) == ["a", "<b>b</b><sup>b</sup>", "c"]
    assert figure.layout.annotations[0].text == "<sup>a</sup> odd<br><sup>b</sup> who?"
    assert "a, score, printed 1.0: odd" in style.alt_text(figure)


@pytest.mark.parametrize(
    ("rows", "marks", "message"),
    [([["a"]], {}, "rows: 2 cells each"), ([["a", "1"]], {(1, 0): "?"}, r"marks: \[\(1, 0\)\] lie outside")],
)
def test_a_table_that_does_not_fit_is_refused(rows, marks, message):
    with pytest.raises(ValueError, match=message):
        results.plot_marked_table(["model", "score"], rows, marks, title="T")


# Files


def test_html_needs_no_network_and_speaks(tmp_path):
    path = files.write_html(plots.plot_dead_groups([4]), tmp_path / "new" / "figure.html")
    page = path.read_text(encoding="utf-8")
    assert len(page) > 3_000_000  # plotly.js is inside
    assert "<script src=" not in page and "<link" not in page
    assert 'aria-label="Line chart: A group whose rewards all agree' in page
    assert "<title>A group whose rewards all agree contributes no gradient</title>" in page


def test_pages_of_a_folder_share_one_script(tmp_path):
    for name in ("a", "b"):
        page = files.write_html(plots.plot_dead_groups([4]), tmp_path / f"{name}.html", shared_script=True)
        assert 'src="plotly.min.js"' in page.read_text(encoding="utf-8")
        assert page.stat().st_size < 100_000
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.html", "b.html", "plotly.min.js"]


def test_a_figure_without_words_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="no words for the figure"):
        files.write_html(go.Figure(), tmp_path / "x.html")
    with pytest.raises(ValueError, match="no words for the figure"):
        files.write_pngs({tmp_path / "x.png": go.Figure()})
    assert not list(tmp_path.iterdir())


def test_data_are_numbers_without_looks():
    figure = go.Figure(go.Bar(x=[1 / 3, np.nan], y=["a", "b"], name="n", marker_color="red"))
    assert files.figure_data(figure) == [{"type": "bar", "name": "n", "x": [0.33333, None], "y": ["a", "b"]}]


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def test_a_picture_that_is_none_or_carries_nothing_is_named(tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(b"GIF89a")
    with pytest.raises(ValueError, match=r"x\.png: not a PNG"):
        files.read_png(path)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", bytes(13)) + png_chunk(b"IEND", b""))
    with pytest.raises(ValueError, match=r"x\.png: a picture without its words and data"):
        files.read_png(path)


def test_pngs_without_a_browser_say_so_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "no-such-browser"))
    with pytest.raises(FileNotFoundError, match=r"no browser to draw a PNG with: install Chromium") as error:
        files.write_pngs({tmp_path / "x.png": plots.plot_dead_groups([4])})
    assert "\n" not in str(error.value)


def test_a_png_has_its_size_its_words_and_its_data(tmp_path):
    path, figure = tmp_path / "new" / "figure.png", plots.plot_dead_groups([4])
    try:
        files.write_pngs({path: figure})
    except FileNotFoundError as error:
        pytest.skip(str(error))
    content = path.read_bytes()
    assert [int.from_bytes(content[i : i + 4], "big") for i in (16, 20)] == [1216, 800]
    at, kinds = 8, []  # every chunk's checksum holds, so any reader will take it
    while at < len(content):
        (length,) = struct.unpack_from(">I", content, at)
        kinds.append(content[at + 4 : at + 8])
        checksum = struct.unpack_from(">I", content, at + 8 + length)[0]
        assert checksum == zlib.crc32(content[at + 4 : at + 8 + length])
        at += length + 12
    assert kinds[0] == b"IHDR" and kinds[1:3] == [b"iTXt", b"iTXt"] and kinds[-1] == b"IEND"
    assert files.read_png(path) == (style.alt_text(figure), files.figure_data(figure))


# The committed pictures


def alike(a, b) -> bool:
    """Equal in structure and words, and in numbers to what drawing on another machine may change."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(alike(a[k], b[k]) for k in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(alike, a, b))
    if isinstance(a, float | int) and isinstance(b, float | int):
        return abs(a - b) <= 1e-3 * max(abs(a), abs(b)) + 1e-6
    return a == b


draw = cache(lambda name: gallery.FIGURES[name]())


def test_the_comparison_itself_can_fail():
    assert alike([{"x": [1.0, None, "a"]}], [{"x": [1.0001, None, "a"]}])
    for other in ([1.01, None, "a"], [1.0, 0.0, "a"], [1.0, None, "b"], [1.0, None]):
        assert not alike([{"x": [1.0, None, "a"]}], [{"x": other}])


def test_the_committed_pictures_are_those_of_the_gallery():
    dark = {f"{name}-dark" for name in gallery.SHOWN}
    assert {path.stem for path in FIGURES.glob("*.png")} == set(gallery.FIGURES) | dark
    assert "/figures/html/" in (FIGURES.parent / ".gitignore").read_text().splitlines()  # 5 MB of script


@pytest.mark.parametrize("name", gallery.FIGURES)
def test_committed_pictures_show_what_the_data_say(name):
    figure = draw(name)
    words, data = files.read_png(FIGURES / f"{name}.png")
    assert words == style.alt_text(figure)
    assert alike(data, files.figure_data(figure))
    if name in gallery.SHOWN:
        assert files.read_png(FIGURES / f"{name}-dark.png") == (words, data)


@pytest.mark.parametrize("name", gallery.FIGURES)
def test_committed_pictures_are_small_and_their_words_short_enough_to_hear(name):
    path = FIGURES / f"{name}.png"
    assert path.stat().st_size < 600_000
    words, data = files.read_png(path)
    assert 80 <= len(words) <= 1500 and len(data) >= 1


def test_gallery_shows_where_igrpos_groups_die():
    figure = draw("mixed_groups")
    # b (1 - dead(0.63)) + (1 - b) (1 - dead(p)), b = 1 - (1 - p)^4: worked out by hand
    line = trace(figure, "iGRPO, 4 drafts + 4")
    assert [at(line, p) for p in (0.2, 0.5, 0.8)] == pytest.approx([0.728, 0.827, 0.823], abs=0.005)


def test_titles_that_claim_something_are_held_to_the_data():
    """'Training raises Pass@1 and lowers Pass@32', 'refinements become copies'."""
    lines = {t.name: t.y for t in draw("pass_at_n").data if t.name}
    for method in ("GRPO-8", "iGRPO 4+4"):
        assert lines[method][0] > lines["before training"][0] + 0.1
        assert lines[method][-1] < lines["before training"][-1] - 0.1
    copied = trace(draw("transitions"), "correct, copied").y
    assert copied[-1] > 2 * copied[0]
    assert sum(b > a for a, b in pairwise(copied)) > len(copied) / 2
