"""Rewards: a value and a status for each completion.

Equations: https://arxiv.org/abs/2602.09000. All rewards have the method `score(problems, completions)`, which
returns `Scores` with one value and one status per row. Selection and training use the value; the status gives
the reason, and its histogram (`status_counts`) belongs in every run's metrics. A row that could not be scored
has the value NaN: selection never chooses it, and the rollout decides how to treat it. NaN must not reach the
loss.

The same objects are reward functions for TRL's trainers: `GRPOTrainer(reward_funcs=[AccuracyReward(grader),
FormatReward()], reward_weights=[1.0, 1.0], ...)`. There NaN becomes None, which TRL ignores.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from igrpo_kit.tasks.problem import Problem
from igrpo_kit.tasks.verification import SupportsGrading, has_exact_verifier, verify


@dataclass(frozen=True)
class Scores:
    """Rewards of B rows: `values[i]` and `statuses[i]` belong to completion i."""

    values: list[float]
    statuses: list[str]
    parts: tuple[tuple[float, list[float]], ...] = ()
    """weight and values of each reward that `values` is the sum of; empty unless it is a `WeightedSum`"""

    def __post_init__(self) -> None:
        if len(self.values) != len(self.statuses):
            raise ValueError(f"Scores: {len(self.values)} values but {len(self.statuses)} statuses")


def status_counts(statuses: Iterable[str]) -> dict[str, int]:
    """Number of occurrences of each status, the most frequent first (ties by name)."""
    return dict(sorted(Counter(statuses).items(), key=lambda item: (-item[1], item[0])))


class Reward:
    """Base class of rewards. A subclass defines `score`; `__call__` makes it a reward function for TRL."""

    __name__: str = "reward"  # TRL logs under this name
    needs: tuple[str, ...] = ()
    """the problem's fields that `score` reads: columns that TRL's dataset must have"""
    full_reward: float = 1.0
    """a completion with at least this value counts as correct"""

    def score(self, problems: Sequence[Problem], completions: Sequence[str]) -> Scores:
        """Score completions[i] as an answer to problems[i]."""
        raise NotImplementedError

    def __call__(
        self, prompts: Sequence[Any] | None = None, completions: Sequence[Any] = (), **columns: Any
    ) -> list[float | None]:
        """Score for TRL: strings or chat messages, and the dataset's columns as lists; NaN becomes None.

        The columns `id`, `question`, `answer`, and `source` form each row's problem. A missing question is
        replaced by the prompt, and a missing source is left empty (so a Grader is used, not a verifier).

        Raises:
            ValueError: a column that the reward needs is missing (the message names it).
        """
        missing = [name for name in self.needs if columns.get(name) is None]
        if missing:
            raise ValueError(f"{self.__name__}: needs the dataset column(s) {', '.join(missing)}")
        if prompts is not None:
            columns.setdefault("question", [text_of(prompt) for prompt in prompts])
        problems = [self._problem(columns, row) for row in range(len(completions))]
        values = self.score(problems, [text_of(completion) for completion in completions]).values
        return [None if math.isnan(value) else value for value in values]

    def _problem(self, columns: Mapping[str, Any], row: int) -> Problem:
        values = {"id": f"row {row}", "question": "", "answer": "", "source": ""}
        for name in values:
            if columns.get(name) is not None and columns[name][row] is not None:
                values[name] = str(columns[name][row])
            elif name in self.needs:
                raise ValueError(f"{self.__name__}: row {row}: column {name!r} is None")
        return Problem(**values)


RewardLike = Reward | Callable[[Sequence[Problem], Sequence[str]], Sequence[float]]
"""A reward, or a function of your own: rows of problems and completions -> one number each."""


def text_of(turn: Any) -> str:
    """The text of a prompt or completion: the string itself, or the content of its last chat message."""
    if isinstance(turn, str):
        return turn
    try:
        content = turn[-1]["content"]
    except (TypeError, KeyError, IndexError) as error:
        raise ValueError(f"expected a string or a list of chat messages, got {turn!r:.100}") from error
    if not isinstance(content, str):
        raise ValueError(f"expected a message with text content, got {content!r:.100}")
    return content


def check_rows(problems: Sequence[Problem], completions: Sequence[str]) -> None:
    """Raise ValueError unless there is one problem per completion."""
    if len(problems) != len(completions):
        raise ValueError(f"{len(problems)} problems but {len(completions)} completions: expected one each")


class AccuracyReward(Reward):
    """R(o) = 1[extract(o) = a] (Eq. 6): 1 for a correct answer, else 0, with the grade's status.

    Problems whose source has an exact verifier are checked by it (`verification.verify`; `countdown-max`
    gives partial rewards), all others by the grader.

    Raises:
        ValueError: in `score`, a problem needs a grader and there is none.
    """

    __name__ = "accuracy"
    needs = ("answer",)

    def __init__(self, grader: SupportsGrading | None = None) -> None:
        self.grader = grader

    def score(self, problems: Sequence[Problem], completions: Sequence[str]) -> Scores:
        """Reward and status of each row; see the class."""
        check_rows(problems, completions)
        exact = [has_exact_verifier(problem.source) for problem in problems]
        verdicts = [
            verify(problem, completion) if is_exact else (math.nan, "")
            for problem, completion, is_exact in zip(problems, completions, exact, strict=True)
        ]
        rest = [i for i, is_exact in enumerate(exact) if not is_exact]
        if rest:
            if self.grader is None:
                first = problems[rest[0]]
                raise ValueError(
                    f"problem {first.id}: source {first.source!r} has no exact verifier; "
                    "pass a grading.Grader to AccuracyReward"
                )
            grades = self.grader.grade([problems[i].answer for i in rest], [completions[i] for i in rest])
            for i, grade in zip(rest, grades, strict=True):
                verdicts[i] = (grade.reward, grade.status)
        return Scores([value for value, _ in verdicts], [status for _, status in verdicts])


_TAG = re.compile(r"</?(?:think|answer)>")
_FORMAT = ["<think>", "</think>", "<answer>", "</answer>"]


class FormatReward(Reward):
    r"""1 (`formatted`) for `<think>...</think><answer>...</answer>`, else 0 (`unformatted`); appendix C.

    Required are the four tags, each exactly once and in this order; only white space before, between, and
    after the two blocks; and an answer that is not blank. The reasoning may be blank, and both may span
    several lines. The reward does not depend on whether the answer is correct.

    Args:
        prefill: what the chat template has already written for the assistant, prepended to each completion.
            DeepSeek-R1's ends with `<think>\n`, so that a completion never opens the tag itself.
    """

    __name__ = "format"

    def __init__(self, *, prefill: str = "") -> None:
        self.prefill = prefill

    def score(self, problems: Sequence[Problem], completions: Sequence[str]) -> Scores:
        """Reward and status of each row; see the class."""
        check_rows(problems, completions)
        formatted = [self._is_formatted(self.prefill + completion) for completion in completions]
        return Scores([float(f) for f in formatted], ["formatted" if f else "unformatted" for f in formatted])

    def _is_formatted(self, text: str) -> bool:
        if _TAG.findall(text) != _FORMAT:
            return False
        before, _, between, answer, after = _TAG.split(text)
        return not (before.strip() or between.strip() or after.strip()) and bool(answer.strip())


class LengthPenalty(Reward):
    """0 up to `free`, decreasing linearly to -1 at `limit`, and -1 beyond; to be added to other rewards.

    This is DAPO's soft overlong punishment (https://arxiv.org/abs/2503.14476, Eq. 13). Statuses: `in_limit`,
    `long`, `overlong`.

    Args:
        free: length without penalty.
        limit: length with the full penalty.
        count: length of a text: characters by default. For tokens, pass a counter such as
            `lambda text: len(tokenizer(text).input_ids)`.

    Raises:
        ValueError: not 0 <= free < limit.
    """

    __name__ = "length"
    full_reward = 0.0

    def __init__(self, free: int, limit: int, *, count: Callable[[str], int] = len) -> None:
        if not 0 <= free < limit:
            raise ValueError(f"free, limit: needs 0 <= free < limit, got {free} and {limit}")
        self.free, self.limit, self.count = free, limit, count

    def score(self, problems: Sequence[Problem], completions: Sequence[str]) -> Scores:
        """Penalty and status of each row; see the class."""
        check_rows(problems, completions)
        excess = [(self.count(c) - self.free) / (self.limit - self.free) for c in completions]
        statuses = ["in_limit" if x <= 0 else "long" if x < 1 else "overlong" for x in excess]
        return Scores([-min(max(x, 0.0), 1.0) + 0.0 for x in excess], statuses)


class WeightedSum(Reward):
    """sum_k w_k R_k(o); the paper trains on accuracy + format with weights 1.0 and 1.0 (Table S.2).

    A row's status joins those of its parts with `+` (`correct+unformatted`). If a part is NaN, so is the sum.

    Raises:
        ValueError: there are no parts, or the number of weights is different.
    """

    def __init__(self, rewards: Sequence[Reward], weights: Sequence[float]) -> None:
        if not rewards or len(rewards) != len(weights):
            raise ValueError(f"weights: {len(weights)} of them for {len(rewards)} rewards")
        self.rewards, self.weights = list(rewards), list(weights)
        self.__name__ = "+".join(reward.__name__ for reward in rewards)
        self.needs = tuple(dict.fromkeys(name for reward in rewards for name in reward.needs))
        self.full_reward = sum(w * reward.full_reward for w, reward in zip(weights, rewards, strict=True))

    def score(self, problems: Sequence[Problem], completions: Sequence[str]) -> Scores:
        """Sum and joined status of each row; see the class."""
        parts = [reward.score(problems, completions) for reward in self.rewards]
        rows = zip(*(part.values for part in parts), strict=True)
        values = [sum(w * value for w, value in zip(self.weights, row, strict=True)) for row in rows]
        statuses = ["+".join(row) for row in zip(*(part.statuses for part in parts), strict=True)]
        return Scores(
            values, statuses, tuple((w, part.values) for w, part in zip(self.weights, parts, strict=True))
        )


class _Lifted(Reward):
    def __init__(self, fn: Callable[[Sequence[Problem], Sequence[str]], Any], full_reward: float) -> None:
        self.fn, self.full_reward = fn, full_reward
        self.__name__ = getattr(fn, "__name__", type(fn).__name__)

    def score(self, problems: Sequence[Problem], completions: Sequence[str]) -> Scores:
        check_rows(problems, completions)
        result = self.fn(problems, completions)
        scores = result if isinstance(result, Scores) else _from_numbers(result, self.__name__)
        if len(scores.values) != len(completions):
            raise ValueError(f"{self.__name__}: {len(scores.values)} rewards for {len(completions)} rows")
        return scores


def _from_numbers(numbers: Iterable[Any], name: str) -> Scores:
    values = []
    for row, number in enumerate(numbers):
        try:
            value = math.nan if number is None else float(number)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name}: row {row}: not a number: {number!r}") from error
        if math.isinf(value):
            raise ValueError(f"{name}: row {row}: the reward is infinite")
        values.append(value)
    return Scores(values, ["unscored" if math.isnan(value) else "scored" for value in values])


def as_reward(fn: Callable[[Sequence[Problem], Sequence[str]], Any], *, full_reward: float = 1.0) -> Reward:
    """Convert `fn(problems, completions) -> numbers` to a `Reward`; a `Reward` is returned unchanged.

    None and NaN mean "not scored" (status `unscored`); any other number is `scored`.

    Args:
        fn: may also return `Scores`.
        full_reward: a completion with at least this value counts as correct.

    Raises:
        ValueError: in `score`, the number of rewards is wrong, or a reward is infinite or not a number (the
            message has fn's name and the row).
    """
    return fn if isinstance(fn, Reward) else _Lifted(fn, full_reward)
