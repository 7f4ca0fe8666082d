"""Checks that cannot be fooled: wrong variants of every reference are rejected, right ones are accepted.

The variants are generic: none is written for one exercise. A wrong variant that agrees with the reference on
all of 1,000 other inputs counts as right and is left out; 100 inputs for the losses and for the step of
iGRPO, which take milliseconds a call, and only the typed ones where an exercise has no random cases.
"""

import functools
import inspect
import re
from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch

from igrpo_kit.classroom.answers import mismatch
from igrpo_kit.classroom.exercise import Exercise, FunctionCheck, Result, judge
from igrpo_kit.classroom.exercises import EXERCISES

FUNCTIONS = [e for e in EXERCISES.values() if isinstance(e.verify, FunctionCheck)]


def is_bool(x: Any) -> bool:
    return isinstance(x, bool | np.bool_) or getattr(x, "dtype", None) in (torch.bool, np.dtype(bool))


def is_number(x: Any) -> bool:
    return isinstance(x, int | float | np.number | np.ndarray | torch.Tensor) and not is_bool(x)


def is_array(x: Any) -> bool:
    return isinstance(x, np.ndarray | torch.Tensor) and x.ndim > 0


def flipped(x: Any) -> Any:
    if isinstance(x, torch.Tensor) and x.ndim:
        return x.flip(-1)
    return x[..., ::-1].copy() if is_array(x) else x[::-1] if isinstance(x, str | list) else x


def rolled(x: Any) -> Any:
    if isinstance(x, torch.Tensor) and x.ndim:
        return x.roll(1, 0)
    return np.roll(x, 1, 0) if is_array(x) else x[1:] + x[:1] if isinstance(x, list) else x


def opposite(x: Any) -> Any:
    if isinstance(x, list):
        return [opposite(v) for v in x]
    return (not x) if isinstance(x, bool | np.bool_) else ~x if is_bool(x) else x


WRONG: dict[str, Callable[[Any], Any]] = {
    "negated": lambda x: -x if is_number(x) else opposite(x),
    "complemented": lambda x: 1 - x if is_number(x) else opposite(x),
    "one more": lambda x: x + 1 if is_number(x) else x,
    "one less": lambda x: x - 1 if is_number(x) else x,
    "doubled": lambda x: 2 * x if is_number(x) else x,
    "halved": lambda x: x / 2 if is_number(x) else x,
    "squared": lambda x: x * x if is_number(x) else x,
    "absolute": lambda x: abs(x) if is_number(x) else x,
    "never negative": lambda x: (x + abs(x)) / 2 if is_number(x) else x,
    "reversed": flipped,
    "rows shuffled": rolled,
    "reduced": lambda x: x.mean() if is_array(x) and not is_bool(x) and x.dtype not in INTEGERS else x,
    "summed over the last axis": lambda x: x.sum(-1) if is_array(x) and is_number(x) else x,
    "the last entry missing": lambda x: x[:-1] if isinstance(x, str | list) or is_array(x) else x,
    "the first entry missing": lambda x: x[1:] if isinstance(x, str | list) or is_array(x) else x,
    "an entry twice": lambda x: x + x[-1:] if isinstance(x, str | list) else x,
    "stripped": lambda x: x.strip() if isinstance(x, str) else x,
    "empty": lambda x: x[:0] if isinstance(x, str | list) else x,
    "rounded": lambda x: round(x, 2) if isinstance(x, float) else x,
}


def is_real(x: Any) -> bool:
    return is_array(x) and not is_bool(x) and getattr(x, "dtype", None) not in INTEGERS


def on_array(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Any], Any]:
    """A change of arrays of reals that works on tensors, too; other values stay as they are."""
    return lambda x: change(np.array(x)) if is_real(x) else x


def first_negated(x: np.ndarray) -> np.ndarray:
    x.flat[0] *= -1
    return x


def last_off(x: np.ndarray) -> np.ndarray:
    x.flat[-1] += 0.004
    return x


def every_second(x: np.ndarray) -> np.ndarray:
    x.flat[1::2] = 0
    return x


def two_exchanged(x: np.ndarray) -> np.ndarray:
    x.flat[:2] = x.flat[:2][::-1].copy()
    return x


LATE: dict[str, Callable[[Any], Any]] = {
    "detached": lambda x: x.detach() if isinstance(x, torch.Tensor) else x,
    "in half precision": lambda x: float(np.float16(x)) if type(x) is float else on_array(np.float16)(x),
    "clipped to [0, 1]": lambda x: (
        min(max(x, 0.0), 1.0) if type(x) is float else on_array(lambda a: a.clip(0, 1))(x)
    ),
    "the first sign reversed": on_array(first_negated),
    "transposed": lambda x: x.T if is_array(x) and x.ndim == 2 else x,
    "sorted": on_array(np.sort),
    "shifted within rows": on_array(lambda x: np.roll(x, 1, -1)),
    "summed up along the rows": on_array(lambda x: x.cumsum(-1)),
    "divided by its largest entry": on_array(lambda x: x / np.abs(x).max()),
    "the last entry a little off": on_array(last_off),
}
"""written last, when checks and hints were finished"""
LATEST: dict[str, Callable[[Any], Any]] = {
    "every second entry is 0": on_array(every_second),
    "the first row for every row": on_array(lambda x: np.broadcast_to(x[:1], x.shape)),
    "the first two entries exchanged": on_array(two_exchanged),
    "minus its own mean": on_array(lambda x: x - x.mean()),
    "only the sign": lambda x: float(np.sign(x)) if type(x) is float else on_array(np.sign)(x),
    "in percent": lambda x: 100 * x if is_number(x) else x,
    "cut off after the point": lambda x: float(int(x)) if type(x) is float else on_array(np.trunc)(x),
    "the largest for every entry": on_array(lambda x: np.full_like(x, x.max())),
    "a little off everywhere": lambda x: x + 0.002 if type(x) is float else on_array(lambda a: a + 0.002)(x),
    "twice over": lambda x: x + x if isinstance(x, str | list) else x,
    "in capitals": lambda x: x.upper() if isinstance(x, str) else x,
}
"""written after the hints for `LATE`; nothing was changed for them"""

NAMES = {
    "every second entry is 0": "second",
    "the first row for every row": "first row",
    "the first two entries exchanged": "order",
    "minus its own mean": "mean|by .* in every case",
    "only the sign": "sign",
    "in percent": "factor of 100",
    "cut off after the point": "round",
    "the largest for every entry": "every entry",
    "a little off everywhere": "nearly|too large by 0.002",
    "twice over": "too long|too early",
    "in capitals": "upper",
    "detached": "gradient|every entry is 0",
    "in half precision": "round|nearly",
    "clipped to [0, 1]": "clip|become 1|become 0|every entry is|always",
    "the first sign reversed": "sign",
    "transposed": "rows and columns|axis",
    "sorted": "order|reversed",
    "shifted within rows": "shifted|order|reversed",
    "summed up along the rows": "running|sum",
    "divided by its largest entry": "factor|largest",
    "the last entry a little off": "nearly",
    "negated": "sign|True and False",
    "complemented": "1 minus|True and False",
    "one more": "too large by 1",
    "one less": "too small by 1",
    "doubled": "too large by a factor of 2",
    "halved": "too small by a factor of 2",
    "squared": "square",
    "absolute": "sign",
    "never negative": "have become 0",
    "reversed": "reversed|another order",
    "rows shuffled": "another order|reversed|shifted",
    "reduced": "mean|sum|averaged",
    "summed over the last axis": "sum|mean|averaged",  # which of them cannot be told where the sum is 0
    "the last entry missing": "the last .* missing",
    "the first entry missing": "the first .* missing",
    "an entry twice": "goes on too long",
    "stripped": "spaces",
    "empty": "always|empty",
    "rounded": "round",
    "an argument swapped": "exchanged",
    "an argument not used": "not depend on|always|every entry|as if .* larger by 1",
    "constant": "always",
}
"""wrong variant -> what a hint that names it says; any other hint does not count"""
INTEGERS = (torch.int64, torch.int32, np.dtype("int64"))


def in_leaves(change: Callable[[Any], Any], value: Any) -> Any:
    """A change of every number, array, string, or list of numbers in a result."""
    if isinstance(value, dict):
        return {key: in_leaves(change, v) for key, v in value.items()}
    if isinstance(value, tuple):
        return tuple(in_leaves(change, v) for v in value)
    return change(value)


def blanked(x: Any) -> Any:
    """An argument as if it were not looked at."""
    if isinstance(x, torch.Tensor):
        return torch.ones_like(x) if x.dtype == torch.bool else torch.zeros_like(x)
    if isinstance(x, np.ndarray):
        return np.zeros_like(x)
    return {bool: True, float: 0.5}.get(type(x), x + 1 if isinstance(x, int) else x)


def wrong_variants(check: FunctionCheck) -> dict[str, Callable[..., Any]]:
    reference = check.reference
    found = {
        name: lambda *a, change=change: in_leaves(change, reference(*a))
        for name, change in (WRONG | LATE | LATEST).items()
    }
    some = check.typed[0][0] if check.typed else check.random(np.random.default_rng(0))[0]
    for i, j in combinations(range(len(some)), 2):
        if type(some[i]) is type(some[j]):
            found[f"arguments {i} and {j} swapped"] = lambda *a, i=i, j=j: reference(
                *(a[j if k == i else i if k == j else k] for k in range(len(a)))
            )
    for i in range(len(some)):
        found[f"argument {i} not used"] = lambda *a, i=i: reference(*a[:i], blanked(a[i]), *a[i + 1 :])
    first: list[Any] = []
    found["constant"] = lambda *a: first[0] if first else (first.append(reference(*a)) or first[0])
    return found


def is_right_after_all(exercise: Exercise, variant: Callable[..., Any]) -> bool:
    """Whether a variant agrees with the reference on the typed and on fresh random cases."""
    ours = exercise.verify.probe(variant)
    for arguments, right in other_inputs(exercise.name):
        try:
            if mismatch(ours(*arguments), right, exercise.verify.tolerance):
                return False
        except Exception:
            return False
    return True


@functools.cache
def other_inputs(exercise_name: str) -> list[tuple[tuple[Any, ...], Any]]:
    """The typed arguments, then fresh random ones, with what the reference makes of them."""
    check = EXERCISES[exercise_name].verify
    rng, found = np.random.default_rng(99), [arguments for arguments, _ in check.typed]
    reference = check.probe(check.reference)
    count = 1000 if reference is check.reference else 100
    while len(found) < count and (more := list(check.random(rng))):
        found += more
    return [(arguments, reference(*arguments)) for arguments in found[:count]]


def verdict(exercise: Exercise, answer: Callable[..., Any]) -> Result:
    return judge(exercise, exercise.verify.probed(answer))


@functools.cache
def verdicts(exercise_name: str) -> dict[str, Result]:
    """What the check says of each wrong variant that is wrong indeed."""
    exercise = EXERCISES[exercise_name]
    return {
        name: verdict(exercise, variant)
        for name, variant in wrong_variants(exercise.verify).items()
        if not is_right_after_all(exercise, variant)
    }


@pytest.mark.parametrize("exercise", FUNCTIONS, ids=lambda e: e.name)
def test_no_wrong_variant_is_accepted(exercise):
    results = verdicts(exercise.name)
    assert len(results) >= 4
    assert [name for name, result in results.items() if result] == []


def names_the_mistake(exercise: Exercise, variant: str, hint: str) -> bool:
    """Whether a hint has the words for a variant, or is a listed mistake's: the variant then is that one."""
    listed = [inspect.cleandoc(mistake.__doc__) for mistake in exercise.verify.mistakes]
    kind = re.sub(r"arguments? \d.*(swapped|not used)", lambda found: f"an argument {found[1]}", variant)
    return any(hint.startswith(words) for words in listed) or bool(re.search(NAMES[kind], hint, re.I))


def test_most_hints_name_the_mistake():
    named = [
        names_the_mistake(exercise, variant, result.hint)
        for exercise in FUNCTIONS
        for variant, result in verdicts(exercise.name).items()
    ]
    assert len(named) > 600 and sum(named) / len(named) >= 0.7, f"{sum(named)} of {len(named)}"


def as_array(x: Any) -> Any:
    return x.detach().numpy() if isinstance(x, torch.Tensor) else x


def as_tensor(x: Any) -> Any:
    return torch.tensor(x) if isinstance(x, int | float | np.ndarray) and not isinstance(x, bool) else x


def in_single_precision(x: Any) -> Any:
    if isinstance(x, torch.Tensor):
        return x.float() if x.dtype == torch.float64 else x
    return x.astype(np.float32) if isinstance(x, np.ndarray) and x.dtype == np.float64 else x


RIGHT: dict[str, Callable[[Any], Any]] = {
    "as an array": lambda value: in_leaves(as_array, value),
    "as a tensor": lambda value: in_leaves(as_tensor, value),
    "as a list": lambda value: in_leaves(lambda x: x.tolist() if is_array(x) else x, value),
    "in single precision": lambda value: in_leaves(in_single_precision, value),
    "a list for a tuple": lambda value: list(value) if isinstance(value, tuple) else value,
    "a tuple for a list": lambda value: tuple(value) if isinstance(value, list) else value,
    "an array for a tuple of numbers": lambda value: (
        np.array(value) if isinstance(value, tuple) and not any(map(is_array, value)) else value
    ),
    "a NumPy number": lambda value: np.float64(value) if isinstance(value, float) else value,
    "a whole number for a float": lambda value: (
        int(value) if isinstance(value, float) and value == int(value) else value
    ),
    "True for 1.0": lambda value: bool(value) if isinstance(value, float) and value in (0, 1) else value,
}


@pytest.mark.parametrize("exercise", FUNCTIONS, ids=lambda e: e.name)
def test_no_right_variant_is_rejected(exercise):
    check = exercise.verify
    if check.probe(check.reference) is not check.reference:
        pytest.skip("a loss has to stay a tensor: its gradient is compared")
    for name, change in RIGHT.items():
        assert verdict(exercise, lambda *a, change=change: change(check.reference(*a))), name


def test_an_epsilon_beside_the_standard_deviation_is_accepted():
    for eps in (1e-8, 1e-6, 1e-4):
        for name in ("group_advantages", "bug_ddof"):

            def advantages(rewards, eps=eps):
                centered = rewards - rewards.mean(dim=1, keepdim=True)
                return centered / (rewards.std(dim=1, keepdim=True) + eps)

            assert verdict(EXERCISES[name], advantages), (name, eps)
