"""The revision cipher: tables, answers, noise, revisions, checks."""

import random

import pytest

from igrpo_kit.tasks import cipher
from igrpo_kit.tasks.problem import Problem
from igrpo_kit.tasks.sets.generated import cipher_problems
from igrpo_kit.tasks.verification import verify


def test_an_answer_digit_depends_on_the_digit_and_its_left_neighbor_alone():
    table = cipher.cipher_table(0)
    answer = cipher.cipher_answer("7377", table=0)
    expected = [table.right[10][7], table.right[7][3], table.right[3][7], table.right[7][7]]
    assert answer == "".join(map(str, expected))


def test_tables_are_fixed_and_differ():
    # Typed by hand from the first table: committed runs depend on it.
    assert cipher.cipher_answer("0123456789", table=0) == GOLD_0
    assert len({cipher.cipher_answer("0123456789", table=t) for t in range(3)}) == 3


GOLD_0 = "5614497572"


def test_every_entry_has_a_wrong_digit_that_is_not_the_right_one():
    table = cipher.cipher_table(1)
    for rights, wrongs, noises in zip(table.right, table.wrong, table.noise, strict=True):
        for right, wrong, noise in zip(rights, wrongs, noises, strict=True):
            assert right != wrong and 0 <= right <= 9 and 0 <= wrong <= 9 and 0 <= noise <= cipher.MOST_NOISE


def test_noise_puts_the_wrong_digit_of_the_entry_at_its_rate():
    table, rng = cipher.cipher_table(0), random.Random(0)
    seen = [cipher.noisy_answer("5", 0, rng) for _ in range(4000)]
    assert set(seen) <= {str(table.right[10][5]), str(table.wrong[10][5])}
    share = seen.count(str(table.wrong[10][5])) / 4000
    assert abs(share - table.noise[10][5]) < 0.04


def test_a_revision_corrects_half_of_the_wrong_digits_and_keeps_nearly_all_right_ones():
    rng, table = random.Random(0), cipher.cipher_table(0)
    right, wrong = str(table.right[10][5]), str(table.wrong[10][5])
    fixed = sum(cipher.revised_answer("5", wrong, 0, rng) == right for _ in range(4000)) / 4000
    kept = sum(cipher.revised_answer("5", right, 0, rng) == right for _ in range(4000)) / 4000
    assert abs(fixed - 0.5) < 0.04 and abs(kept - 0.97) < 0.02


@pytest.mark.parametrize("question", ["", "12a", "1 2", "-1", "１２"])
def test_a_question_that_is_not_digits_is_refused(question):
    with pytest.raises(ValueError, match="question"):
        cipher.cipher_answer(question, 0)


def test_a_revision_needs_a_draft_of_the_right_length():
    with pytest.raises(ValueError, match="draft"):
        cipher.revised_answer("123", "12", 0, random.Random(0))


@pytest.mark.parametrize(
    ("answer", "reward", "status"),
    [
        (GOLD_0, 1.0, "correct"),
        (f" {GOLD_0}\n", 1.0, "correct"),
        (GOLD_0[:-1], 0.0, "incorrect"),
        (GOLD_0 + "0", 0.0, "incorrect"),
        (GOLD_0[::-1], 0.0, "incorrect"),
        ("", 0.0, "unparsed_answer"),
        ("-" + GOLD_0, 0.0, "unparsed_answer"),
        ("twelve", 0.0, "unparsed_answer"),
    ],
)
def test_only_all_digits_right_count(answer, reward, status):
    assert cipher.check_cipher("0123456789", answer, table=0) == (reward, status)


def test_partial_credit_counts_digits_in_place():
    assert cipher.right_digits("1234", "1299") == 0.5
    assert cipher.right_digits("1299", "1299") == 1.0
    assert cipher.right_digits("129", "1299") == 0.0
    assert cipher.right_digits("", "") == 0.0


def test_problems_are_answered_by_their_table_and_split_by_question():
    train, held_out = (
        cipher_problems(50, seed=0, table=2),
        cipher_problems(50, seed=0, table=2, split="held_out"),
    )
    assert not {p.question for p in train} & {p.question for p in held_out}
    assert {len(p.question) for p in train} == {15}
    assert {verify(p, p.answer) for p in train + held_out} == {(1.0, "correct")}
    assert verify(Problem("x", "0123456789", "0", "cipher-0"), GOLD_0) == (1.0, "correct")


@pytest.mark.parametrize("bad", [{"length": 0}, {"length": 65}, {"table": 3}, {"table": -1}])
def test_bad_settings_name_the_argument(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        cipher_problems(1, seed=0, **bad)
