"""Exercises of lesson 02, rewards."""

import re

import numpy as np

from igrpo_kit.classroom.exercise import Arguments, Exercise, FunctionCheck, ValueCheck


def last_boxed(text: str) -> str:
    """What stands in the last complete \\boxed{}, its braces balanced; "" if there is none."""
    found = ""
    for start in re.finditer(r"\\boxed\{", text):
        depth = 1
        for end in range(start.end(), len(text)):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            if depth == 0:
                found = text[start.end() : end]
                break
    return found


def _first_boxed(text: str) -> str:
    """You take the first box. A refinement quotes its draft first: its own answer is the last one."""
    return next(iter(re.findall(r"\\boxed\{([^{}]*(?:\{[^{}]*\}[^{}]*)*)\}", text)), "")


def _to_the_first_brace(text: str) -> str:
    """You stop at the first closing brace, which may close \\frac{1}{2}'s own brace: count the depth."""
    return next(iter(re.findall(r"\\boxed\{(.*?)\}", text)[::-1]), "")


def _to_the_last_brace(text: str) -> str:
    """You run on to the last closing brace of the text: stop where the box's own brace closes."""
    found = re.search(r".*\\boxed\{(.*)\}", text, re.DOTALL)
    return found[1] if found else ""


def _unfinished(text: str) -> str:
    """A box that never closes was cut off by the token limit: an unfinished box is not an answer."""
    complete = last_boxed(text)
    after = text.rsplit("\\boxed{", 1)
    return after[1] if len(after) == 2 and after[1].count("}") <= after[1].count("{") else complete


def _random_boxes(rng: np.random.Generator) -> list[Arguments]:
    a, b = rng.integers(10, 99, 2).tolist()
    return [(f"The draft's \\boxed{{{a}}} is incorrect, it is \\boxed{{\\frac{{{b}}}{{7}}}}. So {{a}}.",)]


_LAST_BOXED = FunctionCheck(
    reference=last_boxed,
    typed=[
        ((r"16 - 7 = \boxed{9}",), "9"),
        ((r"The draft said \boxed{19}. I get \boxed{18}",), "18"),
        ((r"\boxed{\frac{1}{2}} of {all}",), r"\frac{1}{2}"),
        ((r"First \boxed{3}, no: \boxed{4",), "3"),
        (("The answer is 18.",), ""),
        ((r"so \boxed{\frac{1}{\sqrt{2}}} then",), r"\frac{1}{\sqrt{2}}"),
        ((r"\boxed{7}, one of {1, {7}}",), "7"),
        ((r"\boxed{3}, no: \boxed{\frac{1}{2}",), "3"),
        (("\\boxed{1\n2}",), "1\n2"),
        ((r"\boxed{5} \boxed{}",), ""),
        ((r"\boxed{ 4 }",), " 4 "),
    ],
    random=_random_boxes,
    mistakes=[_first_boxed, _to_the_first_brace, _to_the_last_brace, _unfinished],
)


def exact_match(completion: str, gold: str) -> float:
    """1.0 if what stands after the last "=" is the gold number, else 0.0."""
    return float(completion.rsplit("=", 1)[-1].strip() == gold)


def _occurs_anywhere(completion: str, gold: str) -> float:
    """Still the bug: a number that occurs *anywhere* is rewarded, so a list of guesses wins."""
    return float(gold in completion)


def _ends_with(completion: str, gold: str) -> float:
    """endswith rewards 118 for a gold of 18: compare the whole number."""
    return float(completion.strip().endswith(gold))


def _first_number(completion: str, gold: str) -> float:
    """You compare what stands before the last "=": the answer is what stands after it."""
    return float(completion.split("=", 1)[0].strip() == gold)


def _not_stripped(completion: str, gold: str) -> float:
    """A space around the number makes a correct answer count as incorrect: strip it."""
    return float(completion.rsplit("=", 1)[-1] == gold)


def _random_sums(rng: np.random.Generator) -> list[Arguments]:
    a, b = rng.integers(10, 99, 2).tolist()
    return [(f"{a}+{b}={a + b}", str(a + b)), (f"{a + b} or {a}+{b}={a}", str(a + b))]


_BUG_GENEROUS_REWARD = FunctionCheck(
    reference=exact_match,
    typed=[
        (("7 + 11 = 18", "18"), 1.0),
        (("7 + 11 = 118", "18"), 0.0),
        (("18 or 19 or 7 + 11 = 20", "18"), 0.0),
        (("18 = 7 + 12", "18"), 0.0),
        (("I add: 7+11= 18 ", "18"), 1.0),
        (("7 + 11 = 18, 19", "18"), 0.0),
        (("7 + 11 = 17, 18", "18"), 0.0),
        (("18", "18"), 1.0),
        (("20 - 2 = 18 = 9 + 9", "18"), 0.0),
        (("7 + 11 = -18", "18"), 0.0),
        (("7 + 11 = 1", "18"), 0.0),
        (("7 + 11 =", "18"), 0.0),
    ],
    random=_random_sums,
    mistakes=[_occurs_anywhere, _ends_with, _first_number, _not_stripped],
)

_TIED_DRAFT = ValueCheck(
    right=0,
    mistakes={
        1: "Both earn 1.0, one for its answer, the other for its format. A tie goes to the first.",
        2: "That draft earns 0.0: incorrect, and not well formed.",
    },
    otherwise="Answer with the index of a draft: 0, 1 or 2.",
)

_JUDGE_FAILED = ValueCheck(
    right="nan",
    mistakes={
        "0": "A 0 would say that the solution is incorrect, and the policy would be trained on it. "
        "Nobody has judged the solution.",
        "0.5": "0.5 is a judgment too, and nobody has made one.",
        "1": "1 would reward making the judge fail.",
    },
    otherwise="Answer with one of the words: '0', '0.5', '1', 'nan'.",
)

EXERCISES = [
    Exercise("last_boxed", "02", "code", difficulty=3, minutes=15, verify=_LAST_BOXED),
    Exercise("tied_draft", "02", "prediction", difficulty=1, minutes=3, verify=_TIED_DRAFT),
    Exercise("judge_failed", "02", "prediction", difficulty=1, minutes=2, verify=_JUDGE_FAILED),
    Exercise("bug_generous_reward", "02", "bug", difficulty=2, minutes=8, verify=_BUG_GENEROUS_REWARD),
]
