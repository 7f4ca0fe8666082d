"""Public problem sets of the paper and the field, as one table, and how to fetch them from the hub.

Sizes and licenses are those seen in 2026. "Do not redistribute" means: fetch at run time, keep the text out
of your repository. None of this is needed to work offline, see `problems`.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from igrpo_kit.tasks.grading.extraction import extract_answer
from igrpo_kit.tasks.problem import Problem, problem_from_row


@dataclass(frozen=True)
class HubSet:
    """Where a problem set lies on the hub and how its columns become problems."""

    hub_id: str
    split: str
    question: str
    """column of the question"""
    answer: str
    """column that holds the answer"""
    license: str
    note: str
    configs: tuple[str | None, ...] = (None,)
    """its configurations, read one after the other; None is the default one"""
    form: Literal["plain", "after_hashes", "boxed"] = "plain"
    """how the answer stands there: by itself, after `####`, or in the last box of a worked solution"""


_MATH_SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)
_MAA = "the problems are (c) MAA; do not redistribute"

HUB_SETS: dict[str, HubSet] = {
    "gsm8k": HubSet(
        *("openai/gsm8k", "test", "question", "answer", "MIT", "1,319 problems"),
        configs=("main",),
        form="after_hashes",
    ),
    "gsm8k-train": HubSet(
        *("openai/gsm8k", "train", "question", "answer", "MIT", "7,473 problems"),
        configs=("main",),
        form="after_hashes",
    ),
    "math500": HubSet(
        *("HuggingFaceH4/MATH-500", "test", "problem", "answer"),
        "none on the card; chosen by prm800k (MIT)",
        "500 problems from MATH's test split; do not redistribute",
    ),
    "aime24": HubSet(
        *("HuggingFaceH4/aime_2024", "train", "problem", "answer", "none stated"), f"30 problems; {_MAA}"
    ),
    "aime25": HubSet(
        *("opencompass/AIME2025", "test", "question", "answer", "tagged MIT"),
        f"two times 15 problems; {_MAA}",
        configs=("AIME2025-I", "AIME2025-II"),
    ),
    "amc23": HubSet(
        *("math-ai/amc23", "test", "question", "answer", "none stated"),
        f"40 problems, the number the paper's percentages fit (another AMC set has 83); {_MAA}",
    ),
    "minerva": HubSet(
        *("math-ai/minervamath", "test", "question", "answer", "none stated"),
        "272 problems from MIT OpenCourseWare (CC-BY-NC-SA); do not redistribute",
    ),
    "math-train": HubSet(
        *("EleutherAI/hendrycks_math", "train", "problem", "solution", "tagged MIT"),
        "7,500 problems, the paper's MATH; the original was taken down on request; do not redistribute",
        configs=_MATH_SUBJECTS,
        form="boxed",
    ),
    "acereason-math": HubSet(
        *("nvidia/AceReason-Math", "train", "problem", "answer", "CC-BY-4.0"),
        "49,585 problems, where the paper says 9,400",
    ),
    "openr1-math": HubSet(
        *("open-r1/OpenR1-Math-220k", "train", "problem", "answer", "Apache-2.0"),
        "about 94,000 problems in the default configuration",
        configs=("default",),
    ),
}
"""The paper's training and evaluation sets (Sec. 4.1, appendix C) and the usual ones, by name."""


def _gold(value: Any, form: str) -> str:
    """The answer in a column's value. Raises ValueError saying what is wrong with it."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"expected text or a number, got {value!r}")
    text = f"{value:.15g}" if isinstance(value, float) else str(value)
    if form == "after_hashes":
        _, hashes, text = text.rpartition("####")
        if not hashes:
            raise ValueError("there is no '####' before the answer")
        text = text.replace(",", "")
    elif form == "boxed":
        # MATH has older spellings as well: \fbox{2}, \boxed {2}, and \boxed 2 up to the end of the formula.
        text = re.sub(r"\\(?:boxed|fbox)\s*\{", r"\\boxed{", text)
        text = re.sub(r"\\boxed\s+([^${][^$]*)\$", r"\\boxed{\1}$", text)
        text = extract_answer(text) or ""
    if not text.strip():
        raise ValueError("there is no answer in it")
    return text.strip()


def _hub_set(name: str) -> HubSet:
    if name not in HUB_SETS:
        raise ValueError(f"name: no set {name!r}; there is {', '.join(HUB_SETS)}")
    return HUB_SETS[name]


def hub_problems(name: str, rows: Iterable[Mapping[str, Any]], *, config: str | None = None) -> list[Problem]:
    """Rows of a set's dataset as problems; ids are `name/row`, or `name/config/row` if it has several.

    For rows you fetched or filtered yourself; `load_hub_set` fetches them all. Raises ValueError naming set
    and row: a missing column, an empty question, an answer that is not there.
    """
    hub_set, problems = _hub_set(name), []
    prefix = f"{name}/{config}" if len(hub_set.configs) > 1 else name
    for index, row in enumerate(rows):
        where = f"set {prefix}, row {index}"
        for column in (hub_set.question, hub_set.answer):
            if column not in row:
                raise ValueError(f"{where}: no column {column!r}; there is {', '.join(map(repr, row))}")
        try:
            answer = _gold(row[hub_set.answer], hub_set.form)
        except ValueError as error:
            raise ValueError(f"{where}: column {hub_set.answer!r}: {error}") from error
        fields = {"id": f"{prefix}/{index}", "question": row[hub_set.question], "answer": answer}
        problems.append(problem_from_row(fields, where, name))
    return problems


def load_hub_set(name: str) -> list[Problem]:
    """A public problem set by its name in `HUB_SETS`, from the Hugging Face hub or its local cache.

    Raises ConnectionError, naming what works without a hub, if it cannot be fetched; ValueError as
    `hub_problems`; ImportError without `datasets`.
    """
    hub_set = _hub_set(name)
    try:
        from datasets import load_dataset  # heavy, and not needed for anything else here
    except ImportError as error:
        raise ImportError("the datasets package is not installed: pip install datasets") from error
    problems = []
    for config in hub_set.configs:
        try:
            rows = load_dataset(hub_set.hub_id, config, split=hub_set.split)
        except OSError as error:  # ConnectionError, and the hub's own "not found"
            raise ConnectionError(
                f"set {name}: {hub_set.hub_id} is not cached and could not be fetched ({error}). "
                "Without the hub there are countdown_problems, countdown_max_problems, addition_problems, "
                "reasoning_gym_problems('gsm_symbolic', ...) and load_problems('data/problems/...jsonl')."
            ) from error
        problems += hub_problems(name, rows, config=config)
    return problems
