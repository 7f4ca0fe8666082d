"""Rewards: values and statuses by hand, and the way TRL calls them."""

import functools
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest

from igrpo_kit.policies.samplers.scripted import ScriptedSampler
from igrpo_kit.tasks.grading.grader import Grade, Grader
from igrpo_kit.tasks.judge import JudgeReward
from igrpo_kit.tasks.problem import Problem
from igrpo_kit.tasks.rewards import (
    AccuracyReward,
    FormatReward,
    LengthPenalty,
    Reward,
    RewardLike,
    Scores,
    WeightedSum,
    as_reward,
    status_counts,
)
from igrpo_kit.training.rollout import sample_stage

MATH = Problem("m", "What is 6 * 7?", "42", "math500")
COUNTDOWN = Problem("c", "3,7,5:26", "3*7+5", "countdown")


class ScriptedGrader:
    """Says `correct` to a completion that holds the gold, and `timeout` to one that holds a tower."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[str], list[str]]] = []

    def grade(self, golds, completions) -> list[Grade]:
        self.calls.append((list(golds), list(completions)))
        grades = []
        for gold, text in zip(golds, completions, strict=True):
            status = "timeout" if "^" in text else "correct" if gold in text else "incorrect"
            grades.append(Grade(float(status == "correct"), status, None, 0.0))
        return grades


# ---------------------------------------------------------------- accuracy


def test_accuracy_asks_the_exact_verifier_first_and_the_grader_for_the_rest_in_order() -> None:
    grader = ScriptedGrader()
    scores = AccuracyReward(grader).score(
        [MATH, COUNTDOWN, MATH, COUNTDOWN, MATH], ["41", "3*7+5", "9^9^9", "words", "\\boxed{42}"]
    )
    assert scores.values == [0, 1, 0, 0, 1]
    assert scores.statuses == ["incorrect", "correct", "timeout", "unparsed_answer", "correct"]
    assert grader.calls == [(["42", "42", "42"], ["41", "9^9^9", "\\boxed{42}"])]


def test_accuracy_needs_no_grader_for_exact_sources_and_says_so_for_others() -> None:
    reward = AccuracyReward()
    assert reward.score([COUNTDOWN], ["5+7*3"]) == Scores([1.0], ["correct"])
    assert reward.score([], []) == Scores([], [])
    with pytest.raises(ValueError, match=r"problem m: source 'math500' .* pass a grading\.Grader"):
        reward.score([COUNTDOWN, MATH], ["1", "2"])


@pytest.mark.parametrize(
    "reward",
    [AccuracyReward(), FormatReward(), LengthPenalty(1, 2), as_reward(lambda problems, texts: [0.0])],
    ids=lambda reward: reward.__name__,
)
def test_rows_must_match(reward: Reward) -> None:
    with pytest.raises(ValueError, match="1 problems but 2 completions"):
        reward.score([COUNTDOWN], ["a", "b"])


def test_the_lesson_s_completions_have_the_statuses_it_shows() -> None:
    path = Path(__file__).parents[2] / "data" / "lessons" / "completions.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({row["id"] for row in rows}) == 60
    rows = [row for row in rows if row["status"] != "timeout"]  # two, which the lesson waits for
    problems = [Problem(row["id"], row["question"], row["answer"], "lesson") for row in rows]
    with Grader(time_limit=20.0) as grader:
        scores = AccuracyReward(grader).score(problems, [row["completion"] for row in rows])
    assert scores.statuses == [row["status"] for row in rows]
    assert scores.values == [float(status == "correct") for status in scores.statuses]
    assert not list(Path.cwd().glob("**/CANARY*"))


# ---------------------------------------------------------------- format


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("<think>so</think><answer>42</answer>", 1),
        ("\n<think>\nso\nand so\n</think>\n\n<answer>\n42\n</answer>\n", 1),
        ("<think></think><answer>42</answer>", 1),
        ("<think>a < b > c and <b>bold</b></think><answer>4</answer>", 1),
        ("<think>so</think><answer></answer>", 0),
        ("<think>so</think><answer> \n</answer>", 0),
        ("<think>so</think>42", 0),
        ("<answer>42</answer>", 0),
        ("so</think><answer>42</answer>", 0),  # the template wrote <think>: see prefill
        ("Well: <think>so</think><answer>42</answer>", 0),
        ("<think>so</think> hence <answer>42</answer>", 0),
        ("<think>so</think><answer>42</answer> Done.", 0),
        ("<think>so<answer>42</answer></think>", 0),
        ("<answer>42</answer><think>so</think>", 0),
        ("<think>a</think><think>b</think><answer>42</answer>", 0),
        ("<think>so</think><answer>41</answer><answer>42</answer>", 0),
        ("<think><think>so</think></think><answer>42</answer>", 0),
        ("<think>so</think><answer>42", 0),
        ("<THINK>so</THINK><ANSWER>42</ANSWER>", 0),
        ("<think >so</think><answer>42</answer>", 0),
        ("", 0),
        ("<think>" * 100_000, 0),
        ("\x00\ud800", 0),
    ],
)
def test_what_counts_as_formatted(text: str, value: int) -> None:
    status = "formatted" if value else "unformatted"
    assert FormatReward().score([MATH], [text]) == Scores([float(value)], [status])


def test_a_template_that_opened_the_thinking_counts() -> None:
    reward = FormatReward(prefill="<think>\n")
    texts = ["so</think><answer>42</answer>", "<think>so</think><answer>42</answer>"]
    assert reward.score([MATH] * 2, texts).values == [1, 0]


# ---------------------------------------------------------------- length, sums, user functions


def test_the_length_penalty_falls_from_free_to_limit() -> None:
    scores = LengthPenalty(10, 30).score([MATH] * 5, ["x" * n for n in (0, 10, 15, 30, 500)])
    assert scores.values == [0, 0, -0.25, -1, -1]
    assert scores.statuses == ["in_limit", "in_limit", "long", "overlong", "overlong"]
    words = LengthPenalty(1, 3, count=lambda text: len(text.split()))
    assert words.score([MATH], ["one, two"]).values == [-0.5]


@pytest.mark.parametrize(("free", "limit"), [(3, 3), (-1, 3), (4, 3)])
def test_a_length_penalty_without_a_slope_is_refused(free: int, limit: int) -> None:
    with pytest.raises(ValueError, match="needs 0 <= free < limit"):
        LengthPenalty(free, limit)


def test_the_paper_s_sum_and_its_joined_statuses() -> None:
    reward = WeightedSum([AccuracyReward(ScriptedGrader()), FormatReward()], [1.0, 1.0])
    texts = ["<think></think><answer>42</answer>", "42", "<think></think><answer>41</answer>", "41"]
    scores = reward.score([MATH] * 4, texts)
    assert scores.values == [2, 1, 1, 0]
    assert scores.statuses == [
        "correct+formatted",
        "correct+unformatted",
        "incorrect+formatted",
        "incorrect+unformatted",
    ]
    assert scores.parts == ((1.0, [1, 1, 0, 0]), (1.0, [1, 0, 1, 0]))
    assert reward.__name__ == "accuracy+format"
    assert reward.needs == ("answer",)


def test_weights_weigh_and_a_part_without_a_score_leaves_the_sum_without_one() -> None:
    def half(problems, completions):
        return [0.5, None]

    reward = WeightedSum([as_reward(half), LengthPenalty(1, 3)], [2.0, 0.5])
    scores = reward.score([MATH] * 2, ["xx", "xx"])
    assert scores.values[0] == pytest.approx(0.75)  # 2 * 0.5 - 0.5 * 0.5
    assert math.isnan(scores.values[1])
    assert scores.statuses == ["scored+long", "unscored+long"]


@pytest.mark.parametrize("weights", [[], [1.0, 1.0]])
def test_a_wrong_number_of_weights_is_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match=f"weights: {len(weights)} of them for 1 rewards"):
        WeightedSum([FormatReward()], weights)


def test_a_plain_function_is_a_reward() -> None:
    def shouting(problems, completions):
        return [text.isupper() for text in completions]

    reward = as_reward(shouting)
    assert reward.__name__ == "shouting"
    assert reward.score([MATH] * 2, ["YES", "no"]) == Scores([1.0, 0.0], ["scored", "scored"])
    assert as_reward(reward) is reward
    scores = as_reward(lambda p, c: Scores([0.5], ["half"])).score([MATH], ["x"])
    assert scores == Scores([0.5], ["half"])


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([1.0], "odd: 1 rewards for 2 rows"),
        ([1.0, math.inf], "odd: row 1: the reward is infinite"),
        ([1.0, "good"], "odd: row 1: not a number: 'good'"),
        ([1.0, [2.0]], "odd: row 1: not a number"),
    ],
)
def test_a_function_that_misbehaves_is_named_with_the_row(returned: list, message: str) -> None:
    def odd(problems, completions):
        return returned

    with pytest.raises(ValueError, match=message):
        as_reward(odd).score([MATH] * 2, ["a", "b"])


def test_status_counts_are_in_a_fixed_order() -> None:
    counts = status_counts(["timeout", "correct", "no_answer", "correct", "error"])
    assert list(counts.items()) == [("correct", 2), ("error", 1), ("no_answer", 1), ("timeout", 1)]
    assert status_counts([]) == {}


def test_scores_must_be_aligned() -> None:
    with pytest.raises(ValueError, match="2 values but 1 statuses"):
        Scores([0.0, 1.0], ["x"])


# ---------------------------------------------------------------- the full reward


def zero(problems, completions) -> list[float]:
    return [0.0] * len(completions)


@pytest.mark.parametrize(
    ("reward", "full"),
    [
        (AccuracyReward(), 1.0),
        (FormatReward(), 1.0),
        (LengthPenalty(1, 2), 0.0),  # nothing taken off is the most there is
        (JudgeReward("http://localhost:1/v1", "judge"), 1.0),
        (as_reward(zero), 1.0),
        (as_reward(zero, full_reward=5.0), 5.0),
        (WeightedSum([AccuracyReward(), FormatReward()], [1.0, 1.0]), 2.0),
        (WeightedSum([AccuracyReward(), FormatReward()], [1.0, 0.25]), 1.25),
        (WeightedSum([AccuracyReward(), LengthPenalty(1, 2)], [2.0, 0.5]), 2.0),
        (WeightedSum([WeightedSum([AccuracyReward(), FormatReward()], [1.0, 1.0])], [0.5]), 1.0),
        (WeightedSum([as_reward(zero, full_reward=4.0), FormatReward()], [0.5, 1.0]), 3.0),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_every_reward_knows_its_full_value(reward: Reward, full: float) -> None:
    assert reward.full_reward == full


def test_a_reward_keeps_its_own_full_value_when_it_is_lifted() -> None:
    penalty = LengthPenalty(1, 2)
    assert as_reward(penalty) is penalty
    assert as_reward(penalty, full_reward=3.0).full_reward == 0.0


GOLD_AND_FORMAT = ["<think></think><answer>42</answer>", "42", "<think></think><answer>41</answer>", "41"]


def graded(reward: RewardLike, texts: list[str]) -> list[list[bool]]:
    """Which of a problem's completions count as correct, in two problems with the same completions."""
    sampler = ScriptedSampler(texts * 2)
    prompts = [[{"role": "user", "content": MATH.question}]] * 2
    stage = sample_stage(sampler, reward, [MATH, MATH], prompts=prompts, num_samples=len(texts))
    return stage.correct.tolist()


def test_a_wrong_but_well_formatted_answer_is_not_correct() -> None:
    """It has the reward 1, which is the full reward of accuracy alone but not of the sum."""
    accuracy = AccuracyReward(ScriptedGrader())
    both = WeightedSum([accuracy, FormatReward()], [1.0, 1.0])
    assert graded(accuracy, GOLD_AND_FORMAT) == [[True, True, False, False]] * 2
    assert graded(both, GOLD_AND_FORMAT) == [[True, False, False, False]] * 2


def test_a_full_reward_that_binary_numbers_miss_is_reached_all_the_same() -> None:
    """0.7 + 0.1 is 0.7999999999999999, and in float32 it is another number."""
    reward = WeightedSum([AccuracyReward(ScriptedGrader()), FormatReward()], [0.7, 0.1])
    assert graded(reward, GOLD_AND_FORMAT) == [[True, False, False, False]] * 2


def test_what_could_not_be_scored_is_not_correct() -> None:
    def odd(problems, completions) -> list[float | None]:
        return [None if text == "?" else 3.0 for text in completions]

    assert graded(as_reward(odd, full_reward=3.0), ["?", "x"]) == [[False, True]] * 2
    assert graded(as_reward(odd, full_reward=3.5), ["?", "x"]) == [[False, False]] * 2


def test_a_plain_function_stands_wherever_a_reward_stands() -> None:
    def is_gold(problems, completions) -> list[float]:
        return [float(problem.answer in text) for problem, text in zip(problems, completions, strict=True)]

    expected = [[True, True, False, False]] * 2
    rewards: list[RewardLike] = [is_gold, as_reward(is_gold), AccuracyReward(ScriptedGrader())]
    assert [graded(reward, GOLD_AND_FORMAT) for reward in rewards] == [expected] * 3


# ---------------------------------------------------------------- called by TRL


def trl_rewards(
    reward_funcs: list, inputs: list[dict], prompts: list, completions: list
) -> list[list[float]]:
    """The reward matrix of TRL's own code, [rows, functions], without building a trainer around it."""
    import torch
    from trl.trainer import grpo_trainer

    names = [grpo_trainer.get_callable_name(fn) for fn in reward_funcs]
    trainer = SimpleNamespace(
        accelerator=SimpleNamespace(device=torch.device("cpu"), is_main_process=True),
        reward_funcs=reward_funcs,
        reward_processing_classes=[None] * len(reward_funcs),
        reward_func_names=names,
        state=SimpleNamespace(global_step=0),
        args=SimpleNamespace(report_to=[]),
        environments=None,
        _log_completion_extra=None,
        _log_metric=None,
        async_loop=None,
    )
    ids = [[1, 2]] * len(prompts)
    method = grpo_trainer.GRPOTrainer._calculate_rewards
    return method(trainer, inputs, prompts, completions, ids).tolist()


@pytest.mark.parametrize("conversational", [False, True])
def test_trl_calls_them_as_they_are(conversational: bool) -> None:
    texts = ["<think>x</think><answer>42</answer>", "41", "3*7+5"]
    questions = [MATH.question, MATH.question, COUNTDOWN.question]
    completions = [[{"role": "assistant", "content": t}] for t in texts] if conversational else texts
    prompts = [[{"role": "user", "content": q}] for q in questions] if conversational else questions
    inputs = [
        {"prompt": prompt, "id": p.id, "question": p.question, "answer": p.answer, "source": p.source}
        for prompt, p in zip(prompts, [MATH, MATH, COUNTDOWN], strict=True)
    ]

    def lengths(problems, completions):
        return [None if text == "41" else len(text) for text in completions]

    rewards = [AccuracyReward(ScriptedGrader()), FormatReward(), as_reward(lengths)]
    matrix = trl_rewards(rewards, inputs, prompts, completions)
    assert [row[:2] for row in matrix] == [[1, 1], [0, 0], [1, 0]]
    assert [row[2] for row in matrix][::2] == [35, 5]
    assert math.isnan(matrix[1][2])


def test_trl_logs_them_under_their_names() -> None:
    from trl.trainer.utils import get_callable_name, is_async_callable

    rewards = [AccuracyReward(), FormatReward(), LengthPenalty(1, 2)]
    assert [get_callable_name(r) for r in rewards] == ["accuracy", "format", "length"]
    assert get_callable_name(functools.partial(rewards[0])) == "accuracy"
    assert not any(is_async_callable(r) for r in rewards)


def test_a_bare_trl_dataset_will_do_if_it_has_the_answer() -> None:
    seen = []

    def keep(problems, completions):
        seen.extend(problems)
        return [0.0] * len(completions)

    as_reward(keep)(prompts=["q?"], completions=["x"], completion_ids=[[1]], trainer_state=None)
    assert seen == [Problem("row 0", "q?", "", "")]
    accuracy = AccuracyReward(ScriptedGrader())
    assert accuracy(prompts=["q?", "q?"], completions=["is 42", "41"], answer=["42", "42"]) == [1.0, 0.0]
    assert accuracy(completions=["is 42"], answer=[42]) == [1.0]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"completions": ["x"]}, r"accuracy: needs the dataset column\(s\) answer"),
        ({"completions": ["x"], "answer": [None]}, "accuracy: row 0: column 'answer' is None"),
        (
            {"completions": [{"content": "x"}], "answer": ["1"]},
            "expected a string or a list of chat messages",
        ),
        ({"completions": [[]], "answer": ["1"]}, "expected a string or a list of chat messages"),
        ({"completions": [[{"content": [{"type": "image"}]}]], "answer": ["1"]}, "message with text content"),
    ],
)
def test_what_trl_may_get_wrong_is_said(kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AccuracyReward(ScriptedGrader())(**kwargs)
