"""Public problem sets (`data/problems/hub_sets.yaml`), downloaded from the Hugging Face hub.

They include those of the paper, https://arxiv.org/abs/2602.09000. The other modules of `tasks.sets` work
offline.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import yaml

from igrpo_kit.core.data import data_path
from igrpo_kit.tasks.grading.extraction import extract_answer
from igrpo_kit.tasks.problem import Problem, problem_from_row


@dataclass(frozen=True)
class HubSet:
    """Where a problem set is on the hub, and how its columns become problems."""

    hub_id: str
    split: str
    question: str
    """name of the question column"""
    answer: str
    """name of the column that contains the answer"""
    license: str
    note: str
    configs: tuple[str | None, ...] = (None,)
    """configurations, read in this order; None is the default one"""
    form: Literal["plain", "after_hashes", "boxed"] = "plain"
    """format of the answer: alone, after `####`, or in the last box of a worked solution"""


HUB_SETS: dict[str, HubSet] = msgspec.convert(
    yaml.safe_load(data_path("problems/hub_sets.yaml").read_text(encoding="utf-8")), dict[str, HubSet]
)
"""The paper's training and evaluation sets (Sec. 4.1, appendix C) and other common ones, by name."""


def _gold(value: Any, form: str) -> str:
    """The answer in a column's value. Raises ValueError if there is none."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"expected text or a number, got {value!r}")
    text = f"{value:.15g}" if isinstance(value, float) else str(value)
    if form == "after_hashes":
        _, hashes, text = text.rpartition("####")
        if not hashes:
            raise ValueError("there is no '####' before the answer")
        text = text.replace(",", "")
    elif form == "boxed":
        # MATH also has older spellings: \fbox{2}, \boxed {2}, and \boxed 2 up to the end of the formula.
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
    """Convert rows of a set's dataset to problems.

    For rows that you downloaded or filtered yourself; `load_hub_set` downloads all of them.

    Args:
        name: a name in `HUB_SETS`.
        rows: rows of the dataset, in order.
        config: the rows' configuration, if the set has several.

    Returns:
        Problems with the ids `name/row`, or `name/config/row` if the set has several configurations.

    Raises:
        ValueError: a column is missing, a question is empty, or there is no answer (the message names set and
            row).
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

    Raises:
        ConnectionError: the set cannot be downloaded (the message names what works offline).
        ValueError: as in `hub_problems`.
        ImportError: `datasets` is not installed.
    """
    hub_set = _hub_set(name)
    try:
        from datasets import load_dataset  # slow to import, and only needed here
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
