"""Words for slips: each from results typed by hand, two slips at once, and results that fit nothing."""

import numpy as np
import pytest
import torch

from igrpo_kit.classroom.checks import check
from igrpo_kit.classroom.detectors import CHANGES, always_the_same, changed, moved, pattern
from igrpo_kit.classroom.exercises import EXERCISES


def words(given, right, cases=None):
    """Of results in two cases."""
    cases = cases or [(), ()]
    return (
        always_the_same(given, right, 1e-6)
        or changed(given, right, CHANGES, 1e-6)
        or pattern(given, right, cases, 1e-6)
    )


@pytest.mark.parametrize(
    ("given", "right", "said"),
    [
        ([-1.0, 2.0], [1.0, -2.0], "the sign is reversed"),
        ([0.25, 0.9], [0.75, 0.1], "1 minus your result would be right"),
        ([[True, False], [True]], [[False, True], [False]], "True and False are exchanged"),
        ([3, 7], [2, 6], "too large by 1"),
        ([2.5, 0.5], [2.75, 0.75], "too small by 0.25, in every case"),
        ([3.0, 4.5], [1.0, 1.5], "too large by a factor of 3"),
        ([-3.0, -4.5], [1.0, 1.5], "the sign is reversed, and it is too large by a factor of 3"),
        ([9.0, 4.0], [3.0, -2.0], "that is the square of what is asked for"),
        ([[2, 1], [5, 4]], [[1, 2], [4, 5]], "the order is reversed"),
        ([[2, 1, 3], [5, 4, 6]], [[1, 2, 3], [4, 6, 5]], "the right entries, in another order"),
        ([[2, 3], [5]], [[1, 2, 3], [4, 5]], "the first entry, or character, is missing"),
        (["ab", "c"], ["abc", "cd"], "the last entry, or character, is missing"),
        (["abc", "d!"], ["ab", "d"], "it begins right, but goes on too long"),
        ([" 4", "5 "], ["4", "5"], "only the spaces at its ends differ"),
        (["x", "x"], ["x", "y"], "your result is always 'x'"),
        ([[0.0, 0.0], [0.0]], [[1.0, 2.0], [3.0]], "every entry is 0.0"),
        ([1.2541, 0.5001], [1.2511, 0.5004], "nearly right: is something rounded, or is there an epsilon?"),
        (
            [[np.nan, 1.0], [2.0, 0.5]],
            [[0.0, 1.0], [2.0, 0.5]],
            "right but for NaN: is there a 0 / 0, or the logarithm of 0?",
        ),
        ([[3.0, 1.0], [2.0, 0.5]], [[0.0, 1.0], [2.0, 0.5]], "right except where 0 is expected"),
        (
            [{"a": 1.0, "b": 5.0}, {"a": 2.0, "b": 6.0}],
            [{"a": -1.0, "b": 5.0}, {"a": -2.0, "b": 6.0}],
            "`a`: the sign is reversed",
        ),
        ([[[1, 3], [2, 4]], [[7]]], [[[1, 2], [3, 4]], [[7]]], "rows and columns are exchanged"),
        ([[[1.0], [2.0]], [[4.0]]], [[1.0, 2.0], [4.0]], "the entries are right, but the shape is [2, 1]"),
        ([1.0, 7.5], [2.0, 6.0], ""),
        ([{"a": 1}, {}], [{"a": 2}, {"a": 3}], ""),
        (["a", "b"], ["c", "ef"], ""),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_words_for_results(given, right, said):
    assert words(given, right).startswith(said) and bool(words(given, right)) == bool(said)


def test_a_factor_is_found_among_the_sizes_of_the_arguments():
    cases = [(torch.zeros(2, 3),), (torch.zeros(2, 5),)]
    assert words([3.0, 10.0], [1.0, 2.0], cases) == (
        "too large by a factor of n, with n = 3 in the first case (axis 1 of shape [2, 3])"
    )
    # sqrt(3 / 2) = 1.2247449, sqrt(5 / 4) = 1.1180340
    assert "a population or a sample standard deviation" in words([1.2247449, 1.118034], [1.0, 1.0], cases)


@pytest.mark.parametrize(
    ("name", "answer", "hint"),
    [
        ("best_of_n", lambda p, n: (1 - p) ** n - 1, "The sign is reversed."),
        ("best_of_n", lambda p, n: -n * p, "n * p is the expected number of correct drafts; two correct "
         "drafts are not twice as good as one. Besides, the sign is reversed."),
        ("best_of_n", lambda p, n: 1 - (1 - p) ** (n + 1), "As if `n` were larger by 1."),
        ("best_of_n", lambda p, n: 1 - (1 - p) ** 2, "Your result does not depend on `n`."),
        ("clipped_surrogate", lambda r, A, c: -torch.maximum(r * A, r.clamp(1 - c, 1 + c) * A),
         "max instead of min: the clip must be pessimistic, the smaller of the two. Besides, the sign is "
         "reversed."),
        ("bug_ratio", lambda q, new, old: 3 * (new - old), "Too large by a factor of 3."),
        ("kv_cache_bytes", lambda *a: sum(a), "for (1, 1, 30, 3, 64, 2): yours 101, expected 23040"),
        ("score", lambda logits, action: "a string",
         "for ([0.0, 0.0], 0): it is a string, expected an array"),
    ],
)  # fmt: skip
def test_hints(name, answer, hint):
    assert check(name, answer).hint == hint


@pytest.mark.parametrize("value", [object(), {1}, [[1], [2, 3]], {"a": object()}, torch.zeros(0), "", [None]])
@pytest.mark.parametrize("name", ["score", "misses", "last_boxed", "transitions", "grpo_loss", "two_tokens"])
def test_any_result_gets_a_hint(name, value):
    result = check(name, lambda *arguments: value)
    assert result.status == "not yet right" and result.hint


def test_a_verdict_can_be_repeated():
    seen = [[], []]
    for found in seen:
        check("best_of_n", lambda p, n, found=found: found.append(p) or 1 - (1 - p) ** n)
    assert seen[0] == seen[1] and len(seen[0]) == 9
    assert len({exercise.seed for exercise in EXERCISES.values()}) == len(EXERCISES)


@pytest.mark.parametrize(
    "value", [True, 3, 0.5, "ab", [1, 2], torch.ones(2, 3), np.arange(4.0), torch.arange(3)]
)
def test_an_argument_can_be_moved(value):
    other = moved(value)
    assert type(other) is type(value) and str(other) != str(value)
