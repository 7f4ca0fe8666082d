"""Results first: answers, checks, problems."""

import random

import pytest

from igrpo_kit.tasks.results_first import check_results_first, draw_results_first, results_first_answer
from igrpo_kit.tasks.sets.generated import results_first_problems
from igrpo_kit.tasks.verification import has_unique_answer, verify


@pytest.mark.parametrize(
    ("question", "answer"),
    [("3:1;4|1:6;5|", "82=04;08|07;12|"), ("9:9|0:0|", "80=18|00|"), ("9:9;9,9-9|", "5=18;27,36-45|")],
)
def test_the_results_come_before_the_running_sums(question, answer):
    assert results_first_answer(question) == answer
    assert check_results_first(question, answer) == (1.0, "correct")


@pytest.mark.parametrize(
    "question",
    ["", "|", "7|", "3:1;4", "3:1;4||", "314|", "3;1:4|", "3:1;4|5", "3:1;4,1-5:9|", "-1|", "３|", "3:1|\n"],
)
def test_a_question_with_other_marks_is_refused(question):
    with pytest.raises(ValueError, match="question"):
        results_first_answer(question)


@pytest.mark.parametrize(
    ("answer", "reward", "status"),
    [
        (" 82=04;08|07;12|\n", 1.0, "correct"),
        ("83=04;08|07;12|", 0.0, "incorrect"),  # a wrong result
        ("82=04;08|08;12|", 0.0, "incorrect"),  # right results, a wrong digit in the working
        ("82=04;08|", 0.0, "incorrect"),
        ("82=04:08|07;12|", 0.0, "incorrect"),
        ("82", 0.0, "unparsed_answer"),
        ("04;08|07;12|=82", 0.0, "unparsed_answer"),
        ("82=04;08|07;12|=", 0.0, "unparsed_answer"),
        ("", 0.0, "unparsed_answer"),
        ("82=04;08|07;1２|", 0.0, "unparsed_answer"),
    ],
)
def test_results_and_working_must_be_right(answer, reward, status):
    assert check_results_first("3:1;4|1:6;5|", answer) == (reward, status)


def test_a_drawn_answer_agrees_with_a_naive_loop():
    rng = random.Random(0)
    for _ in range(50):
        question, answer = draw_results_first(rng, sums=3, digits=3)
        results, working = "", ""
        for group in question.split("|")[:3]:
            first, second, third = int(group[0]), int(group[2]), int(group[4])
            working += f"{first + second:02};{first + second + third:02}|"
            results += str(first + second + third)[-1]
        assert answer == f"{results}={working}"


def test_problems_are_verified_and_split_by_question():
    train = results_first_problems(50, seed=0, sums=3, digits=5)
    held_out = results_first_problems(50, seed=0, split="held_out", distinct=True, sums=3, digits=5)
    assert not {p.question for p in train} & {p.question for p in held_out}
    assert {len(p.question) for p in train} == {30}
    assert {verify(p, p.answer) for p in train + held_out} == {(1.0, "correct")}
    assert has_unique_answer(train[0].source)


@pytest.mark.parametrize("bad", [{"sums": 0}, {"sums": 17}, {"digits": 1}, {"digits": 6}])
def test_bad_settings_name_the_argument(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        results_first_problems(1, seed=0, **bad)
