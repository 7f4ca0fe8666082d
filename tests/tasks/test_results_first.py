"""Results first: answers, checks, problems."""

import random

import pytest

from igrpo_kit.tasks.results_first import check_results_first, draw_results_first, results_first_answer
from igrpo_kit.tasks.sets.generated import results_first_problems
from igrpo_kit.tasks.verification import verify


@pytest.mark.parametrize(
    ("question", "answer"),
    [("314,159,265", "853:348,165,283"), ("7", "7:7"), ("99,00", "80:98,00"), ("55555", "5:50505")],
)
def test_the_results_come_before_the_running_sums(question, answer):
    assert results_first_answer(question) == answer
    assert check_results_first(question, answer) == (1.0, "correct")


@pytest.mark.parametrize("question", ["", "12,", ",12", "1 2", "12;34", "-1", "１２", "12\n"])
def test_a_question_that_is_not_groups_of_digits_is_refused(question):
    with pytest.raises(ValueError, match="question"):
        results_first_answer(question)


@pytest.mark.parametrize(
    ("answer", "reward", "status"),
    [
        (" 853:348,165,283\n", 1.0, "correct"),
        ("852:348,165,283", 0.0, "incorrect"),  # a wrong result
        ("853:348,165,273", 0.0, "incorrect"),  # right results, a wrong digit in the working
        ("853:348,165", 0.0, "incorrect"),
        ("853:348165283", 0.0, "incorrect"),
        ("853", 0.0, "unparsed_answer"),
        ("348,165,283:853", 0.0, "unparsed_answer"),
        ("853:348,165,283,", 0.0, "unparsed_answer"),
        ("", 0.0, "unparsed_answer"),
        ("853:348,165,28３", 0.0, "unparsed_answer"),
    ],
)
def test_results_and_working_must_be_right(answer, reward, status):
    assert check_results_first("314,159,265", answer) == (reward, status)


def test_a_drawn_answer_agrees_with_a_naive_loop():
    rng = random.Random(0)
    for _ in range(50):
        question, answer = draw_results_first(rng, sums=4, digits=3)
        results, working = "", []
        for group in question.split(","):
            assert len(group) == 3
            total, written = 0, ""
            for digit in group:
                total += int(digit)
                written += str(total)[-1]
            results += str(total)[-1]
            working.append(written)
        assert answer == f"{results}:{','.join(working)}"


def test_problems_are_verified_and_split_by_question():
    train = results_first_problems(50, seed=0, sums=3, digits=5)
    held_out = results_first_problems(50, seed=0, split="held_out", distinct=True, sums=3, digits=5)
    assert not {p.question for p in train} & {p.question for p in held_out}
    assert {len(p.question) for p in train} == {17}
    assert {verify(p, p.answer) for p in train + held_out} == {(1.0, "correct")}


@pytest.mark.parametrize("bad", [{"sums": 0}, {"sums": 17}, {"digits": 0}, {"digits": 17}])
def test_bad_settings_name_the_argument(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        results_first_problems(1, seed=0, **bad)
