"""Problem sets: what is drawn, how it is checked, what a bad file is told, and what the hub's rows become."""

import random
import string
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from igrpo_kit.tasks import puzzles
from igrpo_kit.tasks.grading.grader import Grader
from igrpo_kit.tasks.problem import Problem
from igrpo_kit.tasks.puzzles import addition_solutions, countdown_solutions, countdown_values, is_held_out
from igrpo_kit.tasks.sets.files import load_problems, save_problems
from igrpo_kit.tasks.sets.generated import addition_problems, countdown_max_problems, countdown_problems
from igrpo_kit.tasks.sets.gym import GYM_DATASETS, reasoning_gym_problems
from igrpo_kit.tasks.sets.hub import HUB_SETS, hub_problems, load_hub_set
from igrpo_kit.tasks.sets.shipped import SHIPPED
from igrpo_kit.tasks.verification import check_golds, has_exact_verifier, verify

DATA = Path(__file__).parents[2] / "data" / "problems"
DRAWS = [countdown_problems, partial(countdown_max_problems, num_numbers=3), addition_problems]


def countdown(question: str, source: str = "countdown") -> Problem:
    return Problem("p", question, "", source)


# ---------------------------------------------------------------- the exact verifiers


@pytest.mark.parametrize(
    ("question", "completion", "reward", "status"),
    [
        ("3,7,5:26", "3*7+5", 1, "correct"),
        ("3,7,5:26", "5+7*3", 1, "correct"),
        ("3,7,5:26", "  3 * 7 + 5\n", 1, "correct"),
        ("3,7,5:26", "I try. \\boxed{3*7+4} No: \\boxed{3 \\times 7 + 5}", 1, "correct"),
        ("3,7,5:26", "<think>3*7=21</think><answer>3*7+5</answer>", 1, "correct"),
        ("3,7,5:1", "3-7+5", 1, "correct"),
        ("3,7,5:16", "7*3-5", 1, "correct"),
        ("8,3,2:2", "8-3*2", 1, "correct"),  # not (8-3)*2
        ("8,3,2:7", "8-3+2", 1, "correct"),  # from the left, not 8-(3+2)
        ("2,2,2:6", "2+2+2", 1, "correct"),
        ("12,3:15", "12+3", 1, "correct"),
        ("3,7,5:26", "7*5-3", 0, "incorrect"),
        ("3,7,5:26", "3*7", 0, "incorrect"),  # not all numbers
        ("3,7,5:26", "3*7+5+0", 0, "incorrect"),  # a number too many
        ("3,7,5:26", "7*3+5*1", 0, "incorrect"),
        ("3,7,5:21", "3*7*1", 0, "incorrect"),
        ("3,3,7:13", "3+7+3+0", 0, "incorrect"),
        ("3,3,7:17", "7+7+3", 0, "incorrect"),  # 7 twice, 3 once
        ("1,2,3:15", "12+3", 0, "incorrect"),  # two numbers glued together
        ("3,7,5:26", "26", 0, "incorrect"),
        ("3,7,5:26", "03*7+5", 0, "unparsed_answer"),
        ("3,7,5:26", "3*7+5=26", 0, "unparsed_answer"),
        ("3,7,5:26", "(3*7)+5", 0, "unparsed_answer"),
        ("3,7,5:26", "3*7+5;", 0, "unparsed_answer"),
        ("3,7,5:26", "-5+3*7", 0, "unparsed_answer"),
        ("3,7,5:26", "3**7+5", 0, "unparsed_answer"),
        ("3,7,5:26", "3 7*5", 0, "unparsed_answer"),
        ("3,7,5:26", "٣*7+5", 0, "unparsed_answer"),  # a digit, but not one of ours
        ("3,7,5:26", "the answer is 3*7+5", 0, "unparsed_answer"),
        ("3,7,5:26", "", 0, "no_answer"),
        ("3,7,5:26", " \n", 0, "no_answer"),
        ("3,7,5:26", "\\boxed{}", 0, "no_answer"),
        ("3,7,5:26", "\\boxed{3*7+5} or rather \\boxed{3*7", 0, "no_answer"),
        ("3,7,5:26", "<answer>3*7+5", 0, "no_answer"),
    ],
)
def test_countdown(question: str, completion: str, reward: float, status: str) -> None:
    assert verify(countdown(question), completion) == (reward, status)


@pytest.mark.parametrize(
    ("completion", "reward", "status"),
    [
        ("3*7*2+5", 1, "correct"),  # 47 is the best
        ("7*5+3*2", 41 / 47, "incorrect"),
        ("3+7+5+2", 17 / 47, "incorrect"),
        ("3*7*5*2", 0, "incorrect"),  # 210 > 50
        ("3-7-5-2", 0, "incorrect"),
        ("3*7*2", 0, "incorrect"),
        ("fifty", 0, "unparsed_answer"),
        ("", 0, "no_answer"),
    ],
)
def test_countdown_max(completion: str, reward: float, status: str) -> None:
    value, got = verify(countdown("3,7,5,2|50", "countdown-max"), completion)
    assert got == status
    assert value == pytest.approx(reward)


@pytest.mark.parametrize(
    ("question", "completion", "reward", "status"),
    [
        ("123+456=", "579", 1, "correct"),
        ("123+456=", "09,07,05=579", 1, "correct"),
        ("123+456=", "123+456=579", 1, "correct"),
        ("123+456=", "9 = 9, so = 579 ", 1, "correct"),
        ("678+456=", "1134", 1, "correct"),
        ("678+456=", "1,134", 1, "correct"),
        ("678+456=", "\\boxed{1,134}", 1, "correct"),
        ("678+456=", "11,34", 0, "unparsed_answer"),
        ("123+456=", "579=580", 0, "incorrect"),
        ("123+456=", "580", 0, "incorrect"),
        ("123+456=", "0579", 0, "unparsed_answer"),
        ("123+456=", "+579", 0, "unparsed_answer"),
        ("123+456=", "579.0", 0, "unparsed_answer"),
        ("123+456=", "579=", 0, "unparsed_answer"),
        ("123+456=", "5 7 9", 0, "unparsed_answer"),
        ("123+456=", "\\boxed{1} \\boxed{123+456=579", 0, "no_answer"),
        ("123+456=", "", 0, "no_answer"),
    ],
)
def test_addition(question: str, completion: str, reward: float, status: str) -> None:
    assert verify(Problem("p", question, "", "addition"), completion) == (reward, status)


HOSTILE = [
    "__import__('os').system('echo')",
    "9**9**9**9",
    "9" * 1_000_000,
    "9*" * 500_000 + "9",
    "3" + " " * 1_000_000 + "7",
    "(" * 100_000,
    "\\boxed{" * 10_000,
    "\x00\x00",
    "\ud800",
    "1" + "0" * 5_000 + "=" + "7" * 5_000,
    "３*７+５",
    "3*7+5\u2028",
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:12].encode("ascii", "replace").decode())
@pytest.mark.parametrize(
    ("question", "source"), [("3,7,5:26", "countdown"), ("3,7,5|26", "countdown-max"), ("3+7=", "addition")]
)
def test_hostile_text_is_not_an_answer_and_costs_nothing(text: str, question: str, source: str) -> None:
    """Milliseconds, where backtracking or evaluation would take longer than a test may."""
    reward, status = verify(Problem("p", question, "", source), text)
    if text != "3*7+5\u2028":  # a line separator is whitespace at the end, as everywhere in Python
        assert (reward, status) in [(0, "incorrect"), (0, "unparsed_answer"), (0, "no_answer")]


def test_countdown_agrees_with_python_on_random_expressions() -> None:
    rng = random.Random(0)
    for _ in range(2000):
        numbers = [rng.randint(1, 30) for _ in range(rng.randint(2, 5))]
        text = str(numbers[0]) + "".join(rng.choice("+-*") + str(n) for n in numbers[1:])
        value = eval(text)  # the oracle, on our own text
        if value >= 0:
            question = ",".join(map(str, numbers))
            assert verify(countdown(f"{question}:{value}"), text) == (1, "correct")
            assert verify(countdown(f"{question}:{value + 1}"), text) == (0, "incorrect")


def test_a_question_of_the_wrong_kind_and_an_unknown_source_are_errors() -> None:
    with pytest.raises(ValueError, match="not a countdown question: '3 plus 4'"):
        verify(Problem("p", "3 plus 4", "", "countdown"), "7")
    with pytest.raises(ValueError, match="not an addition question"):
        verify(Problem("p", "3,4:7", "", "addition"), "7")
    with pytest.raises(ValueError, match="problem x1: source 'gsm8k' has no exact verifier"):
        verify(Problem("x1", "q", "7", "gsm8k"), "7")
    assert not has_exact_verifier("reasoning-gym/countdown")
    assert not has_exact_verifier("gsm_symbolic")
    assert has_exact_verifier("reasoning-gym/gsm_symbolic")


# ---------------------------------------------------------------- solving


def test_all_solutions_of_a_small_case_by_hand() -> None:
    assert sorted(countdown_solutions([2, 3], 6)) == ["2*3", "3*2"]
    assert countdown_solutions([3, 2], 1) == ["3-2"]
    assert countdown_solutions([2, 2], 4) == ["2+2", "2*2"]
    assert countdown_solutions([2, 3], 7) == []
    assert {v: len(e) for v, e in countdown_values([3, 7, 5]).items()}[26] == 4  # 3*7+5 with its swaps
    assert sum(len(e) for e in countdown_values([1, 2, 3, 4]).values()) == 24 * 27


def test_every_solution_verifies_and_no_other_expression_does() -> None:
    numbers, target = [2, 3, 4], 10
    solutions = set(countdown_solutions(numbers, target))
    for expressions in countdown_values(numbers).values():
        for expression in expressions:
            reward, _ = verify(countdown("2,3,4:10"), expression)
            assert (reward == 1) == (expression in solutions)


def test_the_two_ways_to_write_a_sum() -> None:
    assert addition_solutions("123+456=") == ["579", "09,07,05=579"]
    assert addition_solutions("678+456=") == ["1134", "14,13,11=1134"]
    assert addition_solutions("5+5=") == ["10", "10=10"]
    assert addition_solutions("0+0=") == ["0", "00=0"]


@pytest.mark.parametrize("numbers", [[], [1] * 7])
def test_too_many_numbers_to_list_are_refused(numbers: list[int]) -> None:
    with pytest.raises(ValueError, match="numbers: needs 1 to 6"):
        countdown_values(numbers)


# ---------------------------------------------------------------- drawing


@pytest.mark.parametrize("draw", DRAWS, ids=["countdown", "countdown-max", "addition"])
def test_answers_are_right_seeds_count_and_sides_are_disjoint(draw) -> None:
    train, held_out = draw(100, seed=1), draw(50, seed=1, split="held_out")
    assert all(verify(p, p.answer) == (1, "correct") for p in train + held_out)
    assert not {p.question for p in train} & {p.question for p in held_out}
    assert not any(is_held_out(p.question) for p in train)
    assert all(is_held_out(p.question) for p in held_out)
    assert draw(100, seed=1) == train
    assert {p.question for p in draw(100, seed=2)} != {p.question for p in train}
    assert draw(10, seed=1) == train[:10]
    assert len({p.id for p in train + held_out}) == 150


def test_what_is_drawn_uses_the_promised_characters_and_ranges() -> None:
    drawn = [*countdown_problems(300, seed=0, num_numbers=4), *countdown_max_problems(100, seed=0)]
    drawn += addition_problems(300, seed=0)
    assert set("".join(p.question + p.answer for p in drawn)) <= set(string.digits + "+-*=,:|")
    for p in drawn[:400]:
        numbers, target = puzzles.parse_countdown(p.question)
        assert len(numbers) == 4
        assert all(1 <= n <= 9 for n in numbers)
        assert 0 <= target <= 99
    assert all(len(p.question) == len("123+456=") for p in drawn[400:])


def test_the_split_is_the_crc32_of_the_question() -> None:
    # crc32: 3085993010 and 2883307022
    assert is_held_out("3,7,5:26")
    assert not is_held_out("123+456=")


def test_draws_repeat_unless_they_are_to_be_distinct() -> None:
    assert len({p.question for p in countdown_problems(2000, seed=0)}) < 2000
    assert len({p.question for p in countdown_problems(2000, seed=0, distinct=True)}) == 2000


def test_a_distinct_set_larger_than_the_world_is_an_error_not_a_hang() -> None:
    with pytest.raises(ValueError, match=r"count: asked for 50 addition problems .* after \d+ there"):
        addition_problems(50, seed=0, digits=1, split="held_out", distinct=True)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"count": 0}, "count must be >= 1"),
        ({"count": 1, "num_numbers": 7}, "num_numbers must lie in 2..6"),
        ({"count": 1, "max_number": 0}, "max_number must lie in 1..99"),
    ],
)
def test_bad_arguments_are_named(kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        countdown_problems(seed=0, **kwargs)
    with pytest.raises(ValueError, match="digits must lie in"):
        addition_problems(1, seed=0, digits=0)


def test_ten_thousand_are_drawn_and_checked() -> None:
    drawn = countdown_problems(10_000, seed=3)
    assert Counter(verify(p, p.answer)[1] for p in drawn) == {"correct": 10_000}


# ---------------------------------------------------------------- reasoning-gym


@pytest.mark.parametrize("dataset", GYM_DATASETS)
def test_gym_problems_check_out_and_need_nothing_but_their_answer(dataset: str) -> None:
    import reasoning_gym

    drawn = reasoning_gym_problems(dataset, 40, seed=5)
    assert all(verify(p, p.answer) == (1, "correct") for p in drawn)
    assert all(verify(p, f"So it is \\boxed{{{p.answer}}}.") == (1, "correct") for p in drawn)
    assert all(verify(p, f"\\boxed{{{int(p.answer) + 1}}}") == (0, "incorrect") for p in drawn)
    assert all(verify(p, f"It is {p.answer}.") == (0, "unparsed_answer") for p in drawn)
    entries = reasoning_gym.create_dataset(dataset, size=60, seed=5)
    for entry in entries:
        for answer in (entry["answer"], entry["answer"] + "7", "1"):
            bare = entries.score_answer(answer, {"answer": entry["answer"]})
            assert bare == entries.score_answer(answer, entry)


GSM = Problem("g", "How many?", "1288", "reasoning-gym/gsm_symbolic")


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("\\boxed{1288}", (1, "correct")),
        ("\\boxed{1,288}", (1, "correct")),  # its scorer alone would read 1
        ("\\boxed{$1288$}", (1, "correct")),
        ("\\boxed{\\$1,288}", (1, "correct")),
        ("\\boxed{1288.0}", (1, "correct")),
        ("<answer> 1288 </answer>", (1, "correct")),
        ("\\boxed{17}", (0, "incorrect")),  # its scorer alone would give 0.01
        ("\\boxed{1288 or 17}", (0, "unparsed_answer")),  # its scorer alone would give 1
        ("\\boxed{nan}", (0, "unparsed_answer")),
        ("\\boxed{" + "9" * 100_000 + "}", (0, "unparsed_answer")),
        ("\\boxed{}", (0, "no_answer")),
    ],
)
def test_gym_scores_are_binary_and_ask_for_one_number(completion: str, expected: tuple) -> None:
    assert verify(GSM, completion) == expected


def test_gym_sides_are_disjoint_config_is_passed_on_and_errors_name_the_argument() -> None:
    train = reasoning_gym_problems("chain_sum", 50, seed=0, max_terms=2, max_digits=1)
    held_out = reasoning_gym_problems("chain_sum", 10, seed=0, split="held_out", max_terms=2, max_digits=1)
    assert not {p.question for p in train} & {p.question for p in held_out}
    assert all(len(p.question.rpartition(": ")[2]) == len("1 + 2 =") for p in train)
    assert train[0].source == "reasoning-gym/chain_sum"
    with pytest.raises(ValueError, match="dataset: 'spiral_matrix' is not one of basic_arithmetic"):
        reasoning_gym_problems("spiral_matrix", 1, seed=0)  # its scorer evals the answer
    with pytest.raises(ValueError, match="count: "):
        reasoning_gym_problems("chain_sum", 400, seed=0, max_terms=2, max_digits=1)


# ---------------------------------------------------------------- golds


@dataclass
class ScriptedGrade:
    status: str
    reward: float = 0.0


class ScriptedGrader:
    """Accepts an answer for itself unless it holds a question mark."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def grade(self, golds, completions) -> list:
        self.asked += zip(golds, completions, strict=True)
        return [ScriptedGrade("unparsed_gold" if "?" in gold else "correct") for gold in golds]


def test_golds_that_are_not_accepted_for_themselves_are_named() -> None:
    mixed = [
        Problem("a", "q", "18", "gsm8k"),
        Problem("b", "q", "??", "gsm8k"),
        Problem("c", "3,7,5:26", "3*7+5", "countdown"),
        Problem("d", "3,7,5:26", "3*7+6", "countdown"),
    ]
    grader = ScriptedGrader()
    assert check_golds(mixed, grader) == {"b": "unparsed_gold", "d": "incorrect"}
    assert grader.asked == [("18", "<answer>18</answer>"), ("??", "<answer>??</answer>")]


def test_golds_by_the_real_grader() -> None:
    golds = {
        "root": r"\sqrt{2}",
        "pi": r"3\pi",
        "name": r"\text{Evelyn}",
        "letter": "C",
        "in a box": r"\boxed{7}",
    }
    bad = {"torn": r"\frac{3}{", "nothing equals": "1/0", "tower": "9^{9^{9^9}}"}
    mixed = [Problem(name, "q", gold, "own") for name, gold in (golds | bad).items()]
    with Grader(1) as grader:
        assert check_golds(mixed, grader) == dict.fromkeys(bad, "unparsed_gold")


# ---------------------------------------------------------------- files


def test_problems_survive_the_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    originals = [Problem("1", "Was ist\n√2·√2? 🙂", "2", "own"), *countdown_problems(3, seed=0)]
    save_problems(originals, path)
    assert load_problems(path) == originals
    assert path.read_text(encoding="utf-8").count("\n") == 4


def test_csv_and_the_default_source(tmp_path: Path) -> None:
    path = tmp_path / "school.csv"
    path.write_bytes('\ufeffid,question,answer,level\n1,"2 + 2, you know?",4,easy\n'.encode())
    assert load_problems(path) == [Problem("1", "2 + 2, you know?", "4", "school")]


GOOD = '{"id": "1", "question": "q", "answer": "a"}\n'


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("s.jsonl", GOOD + "{oops}\n", "s.jsonl, line 2: not JSON"),
        ("s.jsonl", GOOD + "[" * 100_000, "s.jsonl, line 2: not JSON"),
        ("s.jsonl", GOOD + "\n" + GOOD, "s.jsonl, line 3: id '1' was used before, in .*line 1"),
        ("s.jsonl", "[1, 2]\n", "s.jsonl, line 1: expected an object .* got list"),
        (
            "s.jsonl",
            '{"id": "1", "question": "q"}\n',
            "line 1: no 'answer'; there is 'source', 'id', 'question'",
        ),
        ("s.jsonl", '{"id": "1", "question": "q", "answer": 4}\n', "line 1: answer must be a string, got 4"),
        ("s.jsonl", '{"id": "1", "question": " ", "answer": "4"}\n', "line 1: question is empty"),
        ("s.jsonl", '{"id": "1", "question": "q", "answer": ""}\n', "line 1: answer is empty"),
        ("s.jsonl", '{"id": "1", "question": null, "answer": "4"}\n', "line 1: no 'question'"),
        ("s.jsonl", "\n", "s.jsonl: no problems in it"),
        ("s.csv", "id,question,answer\n1,q,4\n1,r,5\n", "s.csv, line 3: id '1' was used before"),
        ("s.csv", "id,question,answer\n1,q\n", "s.csv, line 2: no 'answer'"),
        ("s.csv", "id,question,answer\n1,q,4,5\n", "s.csv, line 2: more cells than columns"),
        ("s.csv", "id,answer\n1,4\n", "s.csv, line 2: no 'question'"),
        ("s.csv", "id,question,answer\n1,,4\n", "s.csv, line 2: question is empty"),
        ("s.csv", 'id,question,answer\n1,"q,4\n', "s.csv, line 2: not CSV"),
        ("s.csv", "id,question,answer\n", "s.csv: no problems in it"),
        ("s.txt", GOOD, "expected a .jsonl or .csv file"),
    ],
)
def test_a_bad_file_is_named_with_its_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load_problems(tmp_path / name)


def test_bytes_that_are_no_text_and_repeated_ids_on_saving(tmp_path: Path) -> None:
    (tmp_path / "s.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"s\.jsonl: not UTF-8"):
        load_problems(tmp_path / "s.jsonl")
    with pytest.raises(ValueError, match=r"repeated ids \['1'\]"):
        save_problems([Problem("1", "q", "a", "s")] * 2, tmp_path / "t.jsonl")
    assert not (tmp_path / "t.jsonl").exists()


def test_the_shipped_sets_are_what_the_command_makes(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "igrpo_kit.tasks.sets.shipped", str(tmp_path)], check=True)
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert made == {path.name: path.read_bytes() for path in DATA.glob("*.jsonl")}
    assert sorted(made) == sorted(f"{name}.jsonl" for name in SHIPPED)
    assert sum(map(len, made.values())) < 1_000_000
    for name in ("countdown", "gsm-symbolic"):
        train, held_out = (load_problems(DATA / f"{name}-{side}.jsonl") for side in ("train", "held-out"))
        assert not {p.question for p in train} & {p.question for p in held_out}


# ---------------------------------------------------------------- the hub

# One row of each dataset in its real column layout (the texts are ours).
ROWS: dict[str, tuple[dict, str, str]] = {
    "gsm8k": (
        {"question": "Janet has 9 eggs.", "answer": "9 * 2 = <<9*2=18>>18\n#### 1,018"},
        "Janet has 9 eggs.",
        "1018",
    ),
    "math500": (
        {
            "problem": "Find $x$.",
            "solution": "So $\\boxed{\\frac{1}{2}}$.",
            "answer": "\\frac{1}{2}",
            "subject": "Algebra",
            "level": 2,
            "unique_id": "test/algebra/1.json",
        },
        "Find $x$.",
        "\\frac{1}{2}",
    ),
    "aime24": (
        {"id": 60, "problem": "Walk.", "solution": "...", "answer": "204", "url": "u", "year": "2024"},
        "Walk.",
        "204",
    ),
    "aime25": ({"question": "Bases.", "answer": "70"}, "Bases.", "70"),
    "amc23": ({"id": 0, "question": "Cities.", "answer": 27.0, "url": "u"}, "Cities.", "27"),
    "minerva": ({"question": "Speed?", "answer": "4.5e33"}, "Speed?", "4.5e33"),
    "math-train": (
        {
            "problem": "P",
            "level": "Level 5",
            "type": "Algebra",
            "solution": "a $\\boxed{1}$ b $\\boxed{x^{2}}$",
        },
        "P",
        "x^{2}",
    ),
    "acereason-math": ({"problem": "P", "answer": "-1"}, "P", "-1"),
    "openr1-math": (
        {"problem": "P", "solution": "S", "answer": "v = 3", "source": "olympiads", "uuid": "u"},
        "P",
        "v = 3",
    ),
}
ROWS["gsm8k-train"] = ROWS["gsm8k"]


@pytest.mark.parametrize("name", HUB_SETS)
def test_hub_sets_read_the_real_columns(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    row, question, answer = ROWS[name]
    asked = []

    def fake(hub_id: str, config: str | None, *, split: str) -> datasets.Dataset:
        asked.append((hub_id, config, split))
        return datasets.Dataset.from_list([row, row])

    monkeypatch.setattr(datasets, "load_dataset", fake)
    loaded = load_hub_set(name)
    hub_set = HUB_SETS[name]
    assert asked == [(hub_set.hub_id, config, hub_set.split) for config in hub_set.configs]
    assert len(loaded) == len({p.id for p in loaded}) == 2 * len(hub_set.configs)
    assert {(p.question, p.answer, p.source) for p in loaded} == {(question, answer, name)}
    assert hub_set.license
    assert hub_set.note


def test_where_the_hub_sets_lie() -> None:
    assert sorted(HUB_SETS) == sorted(ROWS)
    gsm8k, math, train = HUB_SETS["gsm8k-train"], HUB_SETS["math500"], HUB_SETS["math-train"]
    assert (gsm8k.hub_id, gsm8k.split, gsm8k.configs) == ("openai/gsm8k", "train", ("main",))
    assert (gsm8k.form, gsm8k.license, gsm8k.note) == ("after_hashes", "MIT", "7,473 problems")
    assert HUB_SETS["gsm8k"].split == "test"
    assert (math.hub_id, math.split, math.configs) == ("HuggingFaceH4/MATH-500", "test", (None,))
    assert (math.question, math.answer, math.form) == ("problem", "answer", "plain")
    assert (train.hub_id, train.answer, train.form) == ("EleutherAI/hendrycks_math", "solution", "boxed")
    assert len(train.configs) == 7 and train.configs[0] == "algebra"
    assert HUB_SETS["aime25"].configs == ("AIME2025-I", "AIME2025-II")


def test_hub_set_ids() -> None:
    row = ROWS["gsm8k"][0]
    assert [p.id for p in hub_problems("gsm8k", [row, row], config="main")] == ["gsm8k/0", "gsm8k/1"]
    row = ROWS["aime25"][0]
    assert hub_problems("aime25", [row], config="AIME2025-II")[0].id == "aime25/AIME2025-II/0"


@pytest.mark.parametrize(
    ("solution", "gold"),
    [
        (r"Thus $\boxed 2$ it is.", "2"),
        (r"Thus $\boxed \frac{1}{2}$.", r"\frac{1}{2}"),
        (r"Thus $\fbox{7}$.", "7"),
        (r"Thus $\boxed {7}$.", "7"),
        (r"$\boxed{\text{(A)}}$", r"\text{(A)}"),
    ],
)
def test_the_old_spellings_of_math(solution: str, gold: str) -> None:
    assert hub_problems("math-train", [{"problem": "P", "solution": solution}])[0].answer == gold


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("gsm8k", {"question": "q", "answer": "18"}, "set gsm8k, row 0: column 'answer': .*no '####'"),
        ("gsm8k", {"question": "q", "answer": "#### "}, "row 0: column 'answer': there is no answer"),
        ("gsm8k", {"question": " ", "answer": "#### 1"}, "set gsm8k, row 0: question is empty"),
        (
            "math500",
            {"question": "q", "answer": "1"},
            "row 0: no column 'problem'; there is 'question', 'ans",
        ),
        (
            "math-train",
            {"problem": "q", "solution": "it is 3"},
            "row 0: column 'solution': there is no answer",
        ),
        ("aime25", {"question": "q", "answer": None}, "row 0: column 'answer': expected text or a number"),
    ],
)
def test_a_bad_row_of_a_hub_set_is_named(name: str, row: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hub_problems(name, [row])


def test_without_a_hub_the_error_says_what_works(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    assert huggingface_hub.constants.HF_HUB_OFFLINE, "tests run offline (conftest)"
    with pytest.raises(
        ConnectionError, match=r"set gsm8k: openai/gsm8k .* countdown_problems.*load_problems"
    ):
        load_hub_set("gsm8k")
    with pytest.raises(ValueError, match="name: no set 'gsm9k'; there is gsm8k"):
        load_hub_set("gsm9k")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match="pip install datasets"):
        load_hub_set("gsm8k")


def test_importing_the_modules_is_light() -> None:
    code = "import igrpo_kit.tasks.judge, igrpo_kit.tasks.sets.hub, sys\n"
    code += "print([m for m in HEAVY if m in sys.modules])"
    heavy = ["torch", "transformers", "datasets", "reasoning_gym", "math_verify", "sympy"]
    command = [sys.executable, "-c", code.replace("HEAVY", repr(heavy))]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "[]\n"
