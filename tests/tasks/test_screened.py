"""The tasks of the screen: known answers, hostile answers, and that sampled answers are correct."""

import random

import pytest

from igrpo_kit.policies.tiny import tiny_tokenizer
from igrpo_kit.tasks import screened

RNG = random.Random(0)


@pytest.mark.parametrize(
    ("columns", "normal"), [("3907", "11113"), ("0", "00"), ("9", "21"), ("3333", "03333"), ("3334", "10000")]
)
def test_carrying_gives_the_normal_form(columns, normal):
    assert screened.carried(columns) == normal
    assert screened.check_carried(columns, normal) == (1.0, "correct")
    assert screened.check_carried(columns, normal[1:])[0] == 0


def test_carrying_agrees_with_column_by_column_addition():
    question = screened.draw_columns(RNG, 80)
    carry, digits = 0, []
    for column in reversed(question):
        carry, digit = divmod(int(column) + carry, 4)
        digits.append(str(digit))
    assert screened.carried(question) == "".join([str(carry), *reversed(digits)])


@pytest.mark.parametrize(
    ("answer", "reward"),
    [("1000", 1.0), ("0110", 1.0), ("0000", 0.0), ("100", 0.0), ("10000", 0.0), ("", 0.0), ("1a00", 0.0)],
)
def test_an_assignment_must_satisfy_every_clause(answer, reward):
    assert screened.check_assignment("+0+1+2+0+1-3", answer, variables=4)[0] == reward


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ("3*7=21+5=26", "correct"),
        ("7*3=21+5=26", "correct"),
        ("3*7=21+5=27", "incorrect"),  # a wrong value, and it is not the target
        ("3+7=10+5=15", "incorrect"),  # right values, another target
        ("3*7=20+5=26", "incorrect"),  # the target by two wrong values
        ("3*7=21+5=26-0=26", "incorrect"),  # a number that is not there
        ("21+5=26", "incorrect"),
        ("26", "unparsed_answer"),
        ("3*7+5=26", "unparsed_answer"),
        ("", "unparsed_answer"),
        ("3*7=21+5=26" + "+0=26" * 1000, "unparsed_answer"),
    ],
)
def test_countdown_with_values_checks_every_value(answer, status):
    assert screened.check_shown("3,7,5:26", answer)[1] == status


GRID = "1234341221434321"


@pytest.mark.parametrize(
    ("question", "answer", "status"),
    [
        ("-" * 16, GRID, "correct"),
        (GRID, GRID, "correct"),
        ("2" + "-" * 15, GRID, "incorrect"),  # a clue was changed
        ("-" * 16, "1234341221434312", "incorrect"),
        ("-" * 16, "1234234134124123", "incorrect"),  # rows and columns are right, the boxes are not
        ("-" * 16, GRID[:-1], "unparsed_answer"),
        ("-" * 16, GRID[:-1] + "5", "unparsed_answer"),
    ],
)
def test_a_sudoku_needs_rows_columns_boxes_and_clues(question, answer, status):
    assert screened.check_sudoku(question, answer)[1] == status


def test_there_are_288_sudoku_grids():
    assert len(set(screened.sudoku_grids())) == 288


def test_sampled_answers_are_correct_and_written_in_known_characters():
    tokenizer = tiny_tokenizer()
    for _ in range(20):
        columns = screened.draw_columns(RNG, 12)
        clauses = screened.draw_clauses(RNG, 5, 12)
        shown = screened.draw_shown(RNG, 4)
        grid = screened.draw_sudoku(RNG, 6)
        assert grid.count("-") == 10
        answers = {
            columns: screened.carried(columns),
            clauses: screened.satisfying(clauses, RNG, 5),
            shown: screened.shown_solution(shown, RNG),
            grid: screened.sudoku_solution(grid, RNG),
        }
        checks = [
            screened.check_carried(columns, answers[columns]),
            screened.check_assignment(clauses, answers[clauses], 5),
            screened.check_shown(shown, answers[shown]),
            screened.check_sudoku(grid, answers[grid]),
        ]
        assert checks == [(1.0, "correct")] * 4
        ids = tokenizer("".join([*answers, *answers.values()])).input_ids
        assert tokenizer.unk_token_id not in ids
