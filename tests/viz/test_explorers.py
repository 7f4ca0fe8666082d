"""Text that can do nothing, explorers that show what their controls say, and browsers of what was written."""

import importlib
import re
import sys
import unicodedata
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from igrpo_kit.analysis.exact.phase import phase_diagram
from igrpo_kit.analysis.stats.intervals import Interval
from igrpo_kit.experiments.presets import committed
from igrpo_kit.policies.samplers.sampler import Samples
from igrpo_kit.viz import explorers
from igrpo_kit.viz.completions import (
    CompletionsBrowser,
    TokenView,
    browse_completions,
    rollout_html,
    view_tokens,
)
from igrpo_kit.viz.explorers import (
    MapPoint,
    advantage_explorer,
    best_of_n_explorer,
    expected_best,
    expected_dead,
    gradient_factor,
    map_explorer,
    run_explorer,
    surrogate_at,
)
from igrpo_kit.viz.text import colored_tokens, difference_html, text_box, token_pieces, visible

ROOT = Path(__file__).parents[2]
COUNTDOWN = ROOT / "data" / "runs" / "countdown-cpu"


class Page(HTMLParser):
    """The tags of a page, and its text as a browser would show it."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]

    def handle_data(self, data):
        self.text += data


HOSTILE = [
    "<script>alert(1)</script>",
    '<img src=x onerror="alert(1)">',
    "</div></span><iframe src=//example.com>",
    '" onmouseover="alert(1)" x="',
    "<!-- ", "]]>", "&lt;b&gt;", "<svg/onload=alert(1)>", "\x1b[31mred\x1b[0m", "\x1b]8;;http://example.com\x07link",
    "abc\u202egnp.exe", "\u2066\u2067\u2068\u2069", "a\x00b\x08c\x7f", "z\u200bw\u200d\ufeff", "\ud800 half",
    "\u2028line\u2029", "\U000e0041\U000e0042 tags", "e\u0301\ufe0f\u3164",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_hostile_text_is_text(text):
    for source in (text_box(text), difference_html("a draft", text), difference_html(text, "b"),
                   colored_tokens([text, text], [0.0, 1.0])):  # fmt: skip
        page = Page(source)
        assert set(page.tags) <= {"div", "span", "ins", "del", "i"}
        assert set(page.attributes) <= {"dir", "style", "title"}
        assert not [
            c for c in source if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp", "Cs") and c not in "\n\t"
        ]
    letters = "".join(c for c in text if c.isascii() and c.isprintable())
    seen = re.sub(r"U\+[0-9A-F]{4,6}", "", Page(text_box(text)).text)
    assert "".join(c for c in seen if c.isascii()) == letters, "and all of it is there"


def test_every_character_that_turns_a_line_or_has_no_width_is_shown_by_its_number():
    hidden = [
        chr(i) for i in range(sys.maxunicode + 1) if unicodedata.category(chr(i)) in ("Cf", "Cc", "Zl", "Zp")
    ]
    assert len(hidden) > 200
    for c in set(hidden) - set("\n\t"):
        assert Page(visible(c)).text == f"U+{ord(c):04X}"
    assert visible("a\n\tb é ∑ 漢 👍") == "a\n\tb é ∑ 漢 👍"


def test_an_empty_text_says_so():
    assert Page(text_box("")).text == "empty" and Page(difference_html("", "")).text == "both empty"


def test_a_difference_marks_what_went_and_what_came():
    source = difference_html("3*7 = 20, so 25", "3*7 = 21, so 26")
    assert re.findall(r"<(del|ins)[^>]*>(.*?)</\1>", source) == [
        ("del", "20"), ("ins", "21"), ("del", "25"), ("ins", "26"),
    ]  # fmt: skip
    assert not set(Page(difference_html("same", "same")).tags) & {"ins", "del"}


def test_tokens_are_tinted_by_their_share_of_the_range():
    low, middle, high, unknown = re.findall(
        r"rgba\(([\d, ]+), ([\d.]+)\)", colored_tokens(list("abcd"), [1.0, 2.0, 3.0, float("nan")])
    )
    assert [float(x[1]) for x in (low, middle, high, unknown)] == [0.0, 0.275, 0.55, 0.0]
    below, above = re.findall(r"rgba\(([\d, ]+), ([\d.]+)\)", colored_tokens("ab", [0.5, 2.0], center=1.0))
    assert below == ("0, 114, 178", "0.275") and above == ("213, 94, 0", "0.550")
    assert 'title="0.5"' in colored_tokens("ab", [0.5, 2.0])
    with pytest.raises(ValueError, match="values: 1 for 2 tokens"):
        colored_tokens("ab", [1.0])


def byte_level_tokenizer():
    """One token per byte, as the byte-level tokenizers of real models fall back to."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=words)


def test_half_a_character_is_shown_by_the_tokenizers_own_name():
    tokenizer = byte_level_tokenizer()
    ids = tokenizer("a é")["input_ids"]
    assert token_pieces(tokenizer, ids) == ["a", " ", "Ã", "©"]  # é is the bytes C3 A9, names in Latin-1


def samples(**changes):
    parts = {
        "prompt_ids": [[0]],
        "completion_ids": torch.tensor([[65, 66, 0], [67, 0, 0]]),
        "mask": torch.tensor([[True, True, True], [True, True, False]]),
        "log_probs": torch.tensor([[-0.5, -1.0, -0.25], [-2.0, -0.125, 0.0]]),
        "entropies": torch.tensor([[0.5, 1.5, 0.25], [1.0, 0.5, 0.0]]),
        "texts": ["ab", "c"],
        "finish_reasons": ["stop", "stop"],
    }
    return Samples(**parts | changes)


def test_a_completion_by_entropy_or_by_log_prob():
    view = view_tokens(samples(), 0, byte_level_tokenizer(), more={"advantage": [1.0, 1.0, 1.0]})
    assert [label for label, _ in view.number.options] == ["entropy", "log-prob", "advantage"]
    assert "3 tokens, mean entropy 0.75, highest 1.5 at token 2" in Page(view.page.value).text
    view.number.index = 1
    assert "mean log-prob -0.5833, highest -0.25 at token 3" in Page(view.page.value).text
    second = view_tokens(samples(entropies=None), 1, byte_level_tokenizer())
    assert [label for label, _ in second.number.options] == ["log-prob"]
    assert "2 tokens" in second.page.value, "padding is not shown"


def test_token_views_refuse_what_does_not_fit():
    with pytest.raises(IndexError, match="row: 2 of 2"):
        view_tokens(samples(), 2, byte_level_tokenizer())
    with pytest.raises(ValueError, match="numbers: at least one"):
        TokenView(["a"], {})
    with pytest.raises(ValueError, match="values: 1 for 2 tokens"):
        TokenView(["a", "b"], {"entropy": [1.0]})


# Completions


def completion(text, reward, status="correct"):
    return {"text": text, "reward": reward, "status": status}


ROW = {
    "step": 50,
    "id": "a",
    "question": "1+2=",
    "answer": 3,
    "drafts": [completion("4", 0.0, "incorrect"), completion("3", 1.0)],
    "selected": 1,
    "completions": [completion("3", 1.0), completion("5", 0.0, "incorrect")],
}


def test_a_rollout_is_shown_with_what_was_chosen_and_the_advantages():
    text = Page(rollout_html(ROW)).text
    assert "gold answer: 3" in text
    assert text.index("reward 0 · incorrect4") < text.index(
        "reward 1 · correct · chosen: shown to Stage 2" + "3"
    )
    # Two rewards, 1 and 0: mean 1/2, sample standard deviation sqrt(1/2).
    assert "reward 1 · correct · advantage +0.7073" in text
    assert "advantage -0.707" in text
    assert "<del" in rollout_html(ROW) and "against the draft they were shown" in text


@pytest.mark.parametrize("field", ["question", "answer", "drafts", "completions", "status"])
def test_no_field_of_a_row_can_turn_a_line(field):
    evil = "\u202e<b>\x1b[31m"
    row = {**ROW, field: evil}
    if field in ("drafts", "completions"):
        row[field] = [completion(evil, 1.0), completion("x", 0.0)]
    if field == "status":
        row["drafts"] = row["completions"] = [completion("x", 1.0, evil), completion("x", 0.0, evil)]
    source = rollout_html(row)
    assert "&lt;b&gt;" in source and not {"\u202e", "\x1b"} & set(source)


def test_rollouts_of_grpo_and_without_a_draft():
    grpo = {k: v for k, v in ROW.items() if k not in ("drafts", "selected")}
    text = Page(rollout_html(grpo)).text
    assert "Completions" in text and "Stage" not in text and "advantage +0.707" in text
    none = Page(rollout_html({**ROW, "selected": -1})).text
    assert "no draft was shown" in none and "chosen" not in none and "against" not in none


@pytest.mark.parametrize("reward", [None, float("nan")])
def test_an_ungraded_completion_leaves_the_group_without_advantages(reward):
    row = {**ROW, "completions": [completion("3", reward, "timeout"), completion("5", 1.0)]}
    text = Page(rollout_html(row)).text
    assert "reward nan · timeout · no advantage" in text and text.count("no advantage") == 2


def test_the_browser_follows_step_and_problem():
    other = {**ROW, "id": "b\u202e<i>", "question": "7+1="}
    browser = CompletionsBrowser([ROW, other, {**ROW, "step": 100, "question": "9+9="}])
    assert browser.step.options == (50, 100)
    assert [label for label, _ in browser.problem.options] == ["1: a", "2: b\ufffd<i>"]
    browser.problem.index = 1
    assert "7+1=" in browser.page.value and "1+2=" not in browser.page.value
    browser.step.value = 100
    assert "9+9=" in browser.page.value and browser.problem.index == 0
    with pytest.raises(ValueError, match="no completion was recorded"):
        CompletionsBrowser([])


@pytest.mark.parametrize("method", ["grpo-8", "igrpo-4-4", "igrpo-4-4-no-draft"])
def test_every_committed_row_can_be_browsed(method):
    browser = browse_completions(COUNTDOWN / method / "seed-0")
    for step in browser.step.options:
        browser.step.value = step
        for i in range(len(browser.problem.options)):
            browser.problem.index = i
            assert "gold answer" in browser.page.value


def test_a_folder_without_completions_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path))):
        browse_completions(tmp_path)


# Explorers


def test_best_of_n_over_prompts_that_differ():
    n = np.array([1.0, 2.0, 4.0])
    assert expected_best(0.5, 0.0, n) == pytest.approx([0.5, 0.75, 0.9375])
    # a + b = 2 at spread 1/3: p uniform in [0, 1], and 1 - E[(1-p)^n] = n / (n + 1)
    assert expected_best(0.5, 1 / 3, n) == pytest.approx([1 / 2, 2 / 3, 4 / 5])
    assert expected_dead(0.5, 1 / 3, n) == pytest.approx([1.0, 2 / 3, 2 / 5])  # 2 / (n + 1)
    assert expected_best(0.0, 0.5, n).tolist() == [0, 0, 0] and expected_best(1.0, 0.5, n).tolist() == [
        1,
        1,
        1,
    ]


def test_the_best_of_n_explorer_draws_what_its_sliders_say():
    explorer = best_of_n_explorer(0.5, 0.0, 2, 5)
    assert list(explorer.chart.data[5].y) == pytest.approx([0.75, 0.25])  # 1 - .5^2, and 2 * .5^3
    assert list(explorer.chart.data[0].y[:3]) == pytest.approx([0.5, 0.75, 0.875])
    assert abs(explorer.chart.data[2].y[1] - 0.75) < 0.06, "1,000 simulated prompts: four standard errors"
    explorer.controls["spread"].value = 0.35
    text = Page(explorer.words.value).text
    assert "the formula at the mean says 0.750; over prompts that differ it is 0.66" in text
    explorer.controls["drafts"].value = 30
    assert explorer.controls["drafts"].value == 3, "a group needs two"
    assert explorer.chart.data[5].x == (3, 3)
    assert [t.name for t in explorer.figure().data] == [t.name for t in explorer.chart.data]
    assert best_of_n_explorer(seed=3).words.value == best_of_n_explorer(seed=3).words.value


def test_the_advantage_explorer():
    explorer = advantage_explorer((1, 0, 0, 0, 0, 0, 0, 0))
    grpo, dr, alone = (list(trace.y) for trace in explorer.chart.data[:3])
    # mean 1/8, sample standard deviation sqrt(1/8) = 0.353553
    assert grpo[:2] == pytest.approx([2.474874, -0.353553], abs=1e-6)
    assert dr[:2] == pytest.approx([0.875, -0.125])
    assert alone[:2] == pytest.approx([1.0, -1 / 7])
    explorer.controls["ratio"].value = 1.5
    assert "The clip has stopped it" in explorer.words.value
    assert explorer.chart.data[4].y[0] == pytest.approx(1.2 * 2.474874)
    for i in range(1, 9):
        explorer.controls[f"R{i}"].value = 0.5
    assert "dead group" in explorer.words.value and set(explorer.chart.data[0].y) == {0.0}
    with pytest.raises(ValueError, match="rewards: 8 are wanted, got 2"):
        advantage_explorer((1, 0))


@pytest.mark.parametrize(
    ("ratio", "advantage", "factor", "surrogate"),
    [(1.5, 2.0, 0.0, 2.4), (1.2, 2.0, 2.4, 2.4), (0.5, 2.0, 1.0, 1.0),
     (0.5, -2.0, 0.0, -1.6), (1.5, -2.0, -3.0, -3.0), (1.0, 0.0, 0.0, 0.0)],
)  # fmt: skip
def test_surrogate_and_its_factor(ratio, advantage, factor, surrogate):
    assert gradient_factor(ratio, advantage, 0.2) == pytest.approx(factor)
    assert surrogate_at(np.array([ratio]), advantage, 0.2) == pytest.approx([surrogate])


def test_the_run_explorer_changes_clock_and_seed():
    _, records, base = committed("countdown-cpu")
    explorer = run_explorer(records, base)
    methods = list(dict.fromkeys(r.method for r in records))
    traces = explorer.chart.data
    assert [t.name for t in traces[: len(methods)]] == methods and len(traces) == 4 * len(methods)
    assert max(traces[0].x) == records[0].metrics[-1]["step"]
    grpo_copies = traces[3 * len(methods) + methods.index("GRPO-8")]
    assert len(grpo_copies.x) == 0, "GRPO copies nothing"
    first = list(traces[0].y)
    explorer.controls["seed"].value = 1
    assert list(traces[0].y) != first and "Seed 1, at equal steps" in explorer.words.value
    explorer.controls["clock"].value = "accuracy"
    assert max(traces[0].x) <= 1 and explorer.chart.layout.xaxis4.title.text == "held-out reward so far"
    explorer.controls["smooth"].value = 1
    explorer.controls["clock"].value = "live tokens"
    last = next(r for r in records if r.seed == 1 and r.method == methods[0]).metrics[-1]
    assert max(traces[0].x) == pytest.approx(last["tokens_live"], rel=0.02)
    with pytest.raises(ValueError, match="records: at least one"):
        run_explorer([], base)


def points_at(p, r):
    return Interval(p, p / 2, 4 * p, 0.95), Interval(r, r / 2, 2 * r, 0.95)


@pytest.fixture
def map_of(monkeypatch):
    """A small map explorer, and the settings of every diagram that it computes."""
    computed = []

    def counted(world, *arguments, **settings):
        computed.append((world.keep, world.num_drafts, world.prompts_per_step, settings["methods"][1]))
        return phase_diagram(world, *arguments, **settings)

    monkeypatch.setattr(explorers, "phase_diagram", counted)
    points = [
        MapPoint("won", *points_at(2e-5, 0.004), 1),
        MapPoint("lost", *points_at(0.01, 0.08), -1),
        MapPoint("lost, too", *points_at(0.3, 0.3), -1),
    ]
    return map_explorer(points, steps=20, cells=3), computed


def test_the_map_explorer_draws_what_its_controls_say(map_of):
    explorer, computed = map_of
    traces = {trace.name: trace for trace in explorer.chart.data}
    assert np.shape(traces["map"].z) == (3, 3) and len(traces["GRPO-8"].y) == 3  # steps 0, 10, 20
    assert list(traces["recorded: GRPO ahead"].x) == [0.01, 0.3]
    assert list(traces["recorded: iGRPO ahead"].error_x.array) == pytest.approx([6e-5])  # 8e-5 - 2e-5
    assert list(traces["recorded: iGRPO ahead"].error_y.arrayminus) == pytest.approx([0.002])
    assert len(traces["recorded: undecided"].x) == 0
    assert next(iter(traces["your point, in training"].x)) == pytest.approx(1.7e-4)
    assert computed == [(0.47, 4, 32, "igrpo")]
    explorer.controls["step"].value = 0
    assert np.allclose(traces["map"].z, 0, atol=1e-12) and "after 0 steps" in explorer.words.value
    assert len(traces["your point, in training"].x) == 1
    explorer.controls["p"].value = 0.01
    assert traces["GRPO-8"].y[0] == pytest.approx(0.01)
    assert len(computed) == 1, "the step and the point leave the map alone"


def test_the_map_is_computed_once_for_each_setting(map_of):
    explorer, computed = map_of
    for name, value in (("drafts", 2), ("batch", 8), ("keep", 0.6), ("method", "both stages")):
        explorer.controls[name].value = value
    assert computed[1:] == [
        (0.47, 2, 32, "igrpo"), (0.47, 2, 8, "igrpo"), (0.6, 2, 8, "igrpo"), (0.6, 2, 8, "both"),
    ]  # fmt: skip
    explorer.controls["method"].value = "iGRPO"
    assert len(computed) == 5
    waits = Page(explorer.words.value).text
    assert "Steps to the first live group: GRPO-8 92" in waits  # 1 / (8 * 8 * 1.7e-4)
    explorer.controls["method"].value = "both stages"
    explorer.controls["drafts"].value = 1
    assert "Not possible: num_drafts" in explorer.words.value


@pytest.mark.parametrize(
    ("module", "missing"),
    [("explorers", "anywidget"), ("explorers", "plotly"), ("completions", "ipywidgets")],
)
def test_a_missing_extra_is_one_clear_line(monkeypatch, module, missing):
    name = f"igrpo_kit.viz.{module}"
    for loaded in [m for m in sys.modules if m == missing or m.startswith(f"{missing}.")]:
        monkeypatch.setitem(sys.modules, loaded, None)
    monkeypatch.setitem(sys.modules, missing, None)
    for module in (name, "igrpo_kit.viz.notebook"):
        monkeypatch.delitem(sys.modules, module)
    with pytest.raises(ModuleNotFoundError, match=rf"need {missing}.*igrpo-kit\[notebooks\]"):
        importlib.import_module(name)
