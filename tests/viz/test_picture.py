"""The picture of one step: what it says, and that nothing in it moves for those who want no motion."""

import re
from xml.etree import ElementTree

import pytest

from igrpo_kit.viz.picture import two_stages_picture


def texts(svg):
    return [t.text for t in ElementTree.fromstring(svg).iter() if t.tag.endswith("text")]


def test_it_shows_the_first_best_draft_and_the_advantages_of_the_group():
    shown = texts(two_stages_picture([0, 1, 0, 1], [1, 1, 0, 1]).svg)
    assert [t for t in shown if t.startswith("draft")] == ["draft 1 ✗", "draft 2 ✓", "draft 3 ✗", "draft 4 ✓"]
    assert [t for t in shown if re.fullmatch(r"[+-]\d\.\d", t)] == ["+0.5", "+0.5", "-1.5", "+0.5"]
    assert shown.count("more likely") == 3 and shown.count("less likely") == 1
    # four drafts stand at 69, 123, 177, 231 around 150; the ring of the second begins 20 above 123
    (ring,) = re.findall(r'<rect x="145" y="(\S+)" [^>]*class="ring"', two_stages_picture().svg)
    assert float(ring) == 103


def test_a_dead_group_has_no_gradient():
    assert texts(two_stages_picture([0], [1, 1, 1]).svg).count("no gradient") == 3


def test_it_is_described_and_moves_only_where_motion_is_wanted():
    picture = two_stages_picture()
    root = ElementTree.fromstring(picture.svg)
    assert root.get("role") == "img" and root.get("aria-label") == picture.words == repr(picture)
    assert "Stage 1: the policy samples 4 drafts." in picture.words
    style = next(t.text for t in root.iter() if t.tag.endswith("style"))
    still, moving = style.split("@media (prefers-reduced-motion: no-preference)")
    assert "animation:" not in still and moving.count("animation:") == 14
    assert ".igrpo-steps [class^=only]:not(.only6) { opacity: 0 }" in still


@pytest.mark.parametrize(("drafts", "rewards"), [([], [1]), ([1], []), ([0] * 6, [1])])
def test_more_than_fits_is_refused(drafts, rewards):
    with pytest.raises(ValueError, match="one to five of each"):
        two_stages_picture(drafts, rewards)
