"""Words for slips that can happen in any exercise: a sign, an axis, a factor, an entry too few.

A slip is named only if it explains every case. Nothing here knows an exercise.
"""

import inspect
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import torch

from igrpo_kit.classroom.answers import mismatch, shown

Arguments = tuple[Any, ...]
Changes = Sequence[tuple[str, Callable[[Any], Any]]]
"""words, and what is done to a right result"""
Pairs = Sequence[tuple[Any, Any]]
"""what was given and what is right, one pair for each case; numbers as arrays"""

# --- how the result differs


def same_kind(given: Sequence[Any], right: Sequence[Any]) -> bool:
    """Whether each result is what it should be: an array, a string, a dict ..."""
    return all(type(_plain(mine)) is type(_plain(value)) for mine, value in zip(given, right, strict=True))


def changed(given: Sequence[Any], results: Sequence[Any], changes: Changes, tolerance: float) -> str:
    """The change that turns all of these results into the given ones, in words, or ""."""
    return _by_parts(given, results, tolerance, lambda pairs: _change(changes, pairs, tolerance))


def pattern(given: Sequence[Any], right: Sequence[Any], cases: Sequence[Arguments], tolerance: float) -> str:
    """What holds between the given and the right results of all cases, in words, or ""."""

    def explained(pairs: Pairs) -> str:
        found = (detector(pairs, tolerance) for detector in _DETECTORS)
        return next(filter(None, found), "") or _factor_of_a_size(pairs, cases, tolerance)

    return _by_parts(given, right, tolerance, explained)


def always_the_same(given: Sequence[Any], right: Sequence[Any], tolerance: float) -> str:
    """A result that does not depend on any argument."""
    return _by_parts(given, right, tolerance, lambda pairs: _constant(pairs, tolerance))


def _by_parts(
    given: Sequence[Any], right: Sequence[Any], tolerance: float, explained: Callable[[Pairs], str]
) -> str:
    """Words for each wrong part of a dict, or of a tuple of arrays; the first wrong part has to have some."""
    mine, theirs = [_parts(value) for value in given], [_parts(value) for value in right]
    if any(part.keys() != theirs[0].keys() for part in (*mine, *theirs)):
        return ""
    said: dict[str, str] = {}
    for key in theirs[0]:
        pairs = [(a[key], b[key]) for a, b in zip(mine, theirs, strict=True)]
        if any(mismatch(*pair, tolerance) for pair in pairs):
            said[key] = explained(pairs)
    first = next(iter(said.values()), "")
    if not first or (set(said.values()) == {first} and len(said) == len(theirs[0])):
        return first
    return "; ".join(f"{key}: {words}" for key, words in said.items() if words)


def _parts(value: Any) -> dict[str, Any]:
    value = _plain(value)
    if isinstance(value, dict):
        return {f"`{key}`": _plain(part) for key, part in value.items()}
    if isinstance(value, tuple):
        return {f"entry {i}": _plain(part) for i, part in enumerate(value)}
    return {"": value}


def _plain(value: Any) -> Any:
    """Numbers, tensors, and lists of numbers as an array; anything else as it is."""
    if isinstance(value, torch.Tensor):
        value = value.detach()
    try:
        array = np.asarray(value)
    except ValueError:  # ragged
        return value
    return array if array.dtype.kind in "biuf" else value


def _change(changes: Changes, pairs: Pairs, tolerance: float) -> str:
    return next((words for words, change in changes if _explains(change, pairs, tolerance)), "")


def _explains(change: Callable[[Any], Any], pairs: Pairs, tolerance: float) -> bool:
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the mean of nothing
            return not any(mismatch(given, change(right), tolerance) for given, right in pairs)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        return False  # there is no such change of this kind of result


def _not(x: np.ndarray) -> np.ndarray:
    if x.dtype != bool:
        raise TypeError("only True and False have an opposite")
    return ~x


def _transposed(x: np.ndarray) -> np.ndarray:
    return np.swapaxes(x, -1, -2) if x.ndim > 1 else x


COMMON: Changes = [
    ("the sign is reversed", lambda x: -x),
    ("True and False are exchanged", _not),
    ("1 minus your result would be right", lambda x: 1 - x),
    ("rows and columns are exchanged", _transposed),
    ("too large by 1", lambda x: x + 1),
    ("too small by 1", lambda x: x - 1),
    ("too large by a factor of 2", lambda x: 2 * x),
    ("too small by a factor of 2", lambda x: x / 2),
]
"""what may well come on top of another mistake"""

CHANGES: Changes = [
    *COMMON,
    ("that is the square of what is asked for", lambda x: x * x),
    ("that is the square root of what is asked for", np.sqrt),
    ("that is the inverse, 1 / x, of what is asked for", lambda x: 1 / x),
    ("that is the logarithm of what is asked for", np.log),
    ("that is exp of what is asked for", np.exp),
    ("negative results have lost their sign", np.abs),
    ("negative results have become 0", lambda x: np.maximum(x, 0)),
    ("results above 1 have become 1", lambda x: np.minimum(x, 1)),
    ("results are clipped: none is below 0 or above 1", lambda x: np.clip(x, 0, 1)),
    ("the entries are running sums along the last axis", lambda x: np.cumsum(x, -1)),
    ("divided by the largest entry", lambda x: x / np.abs(x).max()),
    ("divided by the sum of the entries", lambda x: x / x.sum()),
    ("the order is reversed", lambda x: x[..., ::-1] if isinstance(x, np.ndarray) else x[::-1]),
    ("the order of the rows is reversed", lambda x: x[::-1]),
    ("the rows, or entries, are shifted by one", lambda x: np.roll(x, 1, 0)),
    ("the rows, or entries, are shifted by one", lambda x: np.roll(x, -1, 0)),
    ("the columns are shifted by one", lambda x: np.roll(x, 1, 1)),
    ("the columns are shifted by one", lambda x: np.roll(x, -1, 1)),
    ("the first entry, or character, is missing", lambda x: x[1:]),
    ("the last entry, or character, is missing", lambda x: x[:-1]),
    ("your result is the mean of the right entries: one mean too many", np.mean),
    ("your result is the sum of the right entries: one sum too many", np.sum),
    ("the last axis has been averaged away", lambda x: x.mean(-1)),
    ("the last axis has been summed away", lambda x: x.sum(-1)),
    ("the first axis has been averaged away", lambda x: x.mean(0)),
    ("the first axis has been summed away", lambda x: x.sum(0)),
    ("it is rounded down", np.floor),
    ("it is rounded up", np.ceil),
    *((f"it is rounded to {d} decimals; do not round", partial(np.round, decimals=d)) for d in range(5)),
]  # fmt: skip


def _arrays(pairs: Pairs) -> bool:
    return all(
        isinstance(given, np.ndarray) and isinstance(right, np.ndarray) and given.dtype != bool
        for given, right in pairs
    )  # fmt: skip


def _alike(pairs: Pairs) -> bool:
    """Whether all are numbers, in the right shapes."""
    return _arrays(pairs) and all(given.shape == right.shape for given, right in pairs)


def _flat(pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
    """The entries of all cases, given and right."""
    given, right = (np.concatenate([np.ravel(pair[side]).astype(float) for pair in pairs]) for side in (0, 1))
    return given, right


def _by_a_constant(pairs: Pairs, tolerance: float) -> str:
    """A constant factor or summand."""
    if not _alike(pairs):
        return ""
    given, right = _flat(pairs)
    largest = np.abs(right).argmax()
    if np.abs(right[largest]) > 0 and np.isfinite(given[largest]) and given[largest] != 0:
        factor = given[largest] / right[largest]
        if not mismatch(given, right * factor, tolerance):
            return _by_factor(factor)
    shift = given[0] - right[0]
    if not mismatch(given, right + shift, tolerance):
        return f"too {'large' if shift > 0 else 'small'} by {abs(shift):.4g}, in every case"
    return ""


def _by_factor(factor: float) -> str:
    sign = "the sign is reversed, and it is " if factor < 0 else ""
    size = abs(factor)
    return sign + (
        f"too large by a factor of {size:.4g}" if size > 1 else f"too small by a factor of {1 / size:.4g}"
    )


_FACTORS: dict[str, Callable[[Any], Any]] = {
    "n": lambda n: n,
    "n - 1": lambda n: n - 1,
    "the square root of n": np.sqrt,
    "n / (n - 1): is n - 1 right, or n": lambda n: n / (n - 1),
    "sqrt(n / (n - 1)): a population or a sample standard deviation": lambda n: np.sqrt(n / (n - 1)),
}


def _factor_of_a_size(pairs: Pairs, cases: Sequence[Arguments], tolerance: float) -> str:
    """A factor that is a size of the arguments: n for a sum instead of a mean, n / (n - 1) for ddof."""
    if not _alike(pairs):
        return ""
    for i in range(len(cases[0])):
        shapes = [_sizes(arguments[i]) for arguments in cases]
        for axis in range(min(map(len, shapes))):
            n = np.array([float(shape[axis]) for shape in shapes])
            for words, factor in _FACTORS.items():
                for too, power in (("large", 1), ("small", -1)):
                    with np.errstate(all="ignore"):
                        by = factor(n) ** power
                    if not (np.isfinite(by) & (by > 0)).all():
                        continue
                    off = [(given, right * f) for (given, right), f in zip(pairs, by, strict=True)]
                    if not any(mismatch(*pair, tolerance) for pair in off):
                        return (
                            f"too {too} by a factor of {words}, with n = {_size_words(cases[0][i], axis, n)}"
                        )
    return ""


def _sizes(argument: Any) -> Sequence[int]:
    if isinstance(argument, int) and not isinstance(argument, bool):
        return (argument,)
    if isinstance(argument, torch.Tensor | np.ndarray):
        return argument.shape
    return (len(argument),) if isinstance(argument, list | tuple) else ()


def _size_words(argument: Any, axis: int, n: np.ndarray) -> str:
    first = f"{n[0]:g} in the first case"
    if isinstance(argument, torch.Tensor | np.ndarray) and argument.ndim > 1:
        return f"{first} (axis {axis} of shape {list(argument.shape)})"
    return first


def _constant(pairs: Pairs, tolerance: float) -> str:
    first, right = pairs[0]
    if _alike(pairs) and first.ndim:
        entries = _flat(pairs)[0]
        if not mismatch(entries, np.full_like(entries, entries[0]), tolerance):
            return f"every entry is {shown(entries[0])}"
    same = all(not mismatch(given, first, tolerance) for given, _ in pairs)
    if same and any(mismatch(other, right, tolerance) for _, other in pairs):
        return f"your result is always {shown(first)}"
    return ""


def _another_order(pairs: Pairs, tolerance: float) -> str:
    if not all(_same_entries(*pair, tolerance) for pair in pairs):
        return ""
    return "the right entries, in another order"


def _same_entries(given: Any, right: Any, tolerance: float) -> bool:
    if isinstance(given, np.ndarray) and isinstance(right, np.ndarray) and given.size > 1:
        if given.shape != right.shape or given.dtype == bool:
            return False
        return not mismatch(np.sort(given, axis=None), np.sort(right, axis=None), tolerance)
    return not mismatch(given, right, tolerance)


def _goes_on(pairs: Pairs, tolerance: float) -> str:
    """More at one end than there should be."""
    if not all(
        isinstance(value, str | list) or getattr(value, "ndim", 0) for pair in pairs for value in pair
    ):
        return ""
    if all(not mismatch(given[: len(right)], right, tolerance) for given, right in pairs):
        return "it begins right, but goes on too long"
    if all(not mismatch(given[len(given) - len(right) :], right, tolerance) for given, right in pairs):
        return "it ends right, but begins too early"
    return ""


def _text(pairs: Pairs, tolerance: float) -> str:
    if not all(isinstance(value, str) for pair in pairs for value in pair):
        return ""
    for words, same in (
        ("only the spaces at its ends differ", str.strip),
        ("only upper and lower case differ", str.lower),
        ("only the spaces and line breaks differ", lambda text: "".join(text.split())),
    ):
        if all(same(given) == same(right) for given, right in pairs):
            return words
    return ""


def _another_shape(pairs: Pairs, tolerance: float) -> str:
    if not _arrays(pairs) or any(mismatch(g.ravel(), r.ravel(), tolerance) for g, r in pairs):
        return ""
    given, right = next((g, r) for g, r in pairs if g.shape != r.shape)
    return f"the entries are right, but the shape is {list(given.shape)} instead of {list(right.shape)}"


def _nowhere_else(pairs: Pairs, tolerance: float) -> str:
    """Right but for NaN, for signs, for entries that should be 0, or for a little."""
    if not _alike(pairs):
        return ""
    given, right = _flat(pairs)
    off = np.array([bool(mismatch(g, r, tolerance)) for g, r in zip(given, right, strict=True)])
    if np.isnan(given[off]).all():
        return "right but for NaN: is there a 0 / 0, or the logarithm of 0?"
    if (right[off] == 0).all() and not off.all():
        return "right except where 0 is expected"
    if not mismatch(np.abs(given), np.abs(right), tolerance):
        return "the size is right, but not every sign"
    if (np.abs(given - right) <= 0.01 * np.abs(right).max()).all():
        return "nearly right: is something rounded, or is there an epsilon?"
    return ""


_DETECTORS = [
    _by_a_constant, _another_order, _goes_on, _text, _another_shape, _nowhere_else,
]  # fmt: skip

# --- how the arguments were used

_FLOATS = (torch.float32, torch.float64, np.dtype("float64"))


def argument_names(count: int, *functions: Callable[..., Any]) -> list[str]:
    """The names of the first `count` arguments, from the first function whose signature has that many."""
    for function in functions:
        parameters = inspect.signature(function).parameters.values()
        names = [p.name for p in parameters if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
        if len(names) >= count:
            return names[:count]
    return [f"argument {i + 1}" for i in range(count)]


def misuses(
    reference: Callable[..., Any], names: Sequence[str], arguments: Arguments
) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Words and a version of the reference for each slip with its arguments: swapped, transposed, one off."""

    def with_argument(i: int, change: Callable[[Any], Any]) -> Callable[..., Any]:
        return lambda *given: reference(*given[:i], change(given[i]), *given[i + 1 :])

    for i, j in combinations(range(len(names)), 2):
        if type(arguments[i]) is type(arguments[j]):
            yield (
                f"`{names[i]}` and `{names[j]}` are exchanged",
                lambda *a, i=i, j=j: reference(*a[:i], a[j], *a[i + 1 : j], a[i], *a[j + 1 :]),
            )
    for i, argument in enumerate(arguments):
        name, kind = names[i], type(argument)
        if kind is int:
            yield f"as if `{name}` were larger by 1", with_argument(i, lambda n: n + 1)
            yield f"as if `{name}` were smaller by 1", with_argument(i, lambda n: n - 1)
        if kind is float:
            yield f"1 - `{name}` stands for `{name}`", with_argument(i, lambda p: 1 - p)
        if isinstance(argument, torch.Tensor | np.ndarray) and argument.ndim == 2:
            along = with_argument(i, lambda x: x.T.contiguous() if isinstance(x, torch.Tensor) else x.T)
            words = f"`{name}` is read along the wrong axis"
            yield words, along
            yield words, lambda *a, along=along: _other_way_round(along(*a))
        if kind is float or getattr(argument, "dtype", None) in _FLOATS:
            yield f"the sign of `{name}` is reversed", with_argument(i, lambda x: -x)


def _other_way_round(result: Any) -> Any:
    return result.T if getattr(result, "ndim", 0) == 2 else None


def moved(argument: Any) -> Any:
    """Another argument of the same kind, in the same shape, to see whether anything depends on it."""
    if isinstance(argument, bool):
        return not argument
    if isinstance(argument, int | float):
        return argument + 1 if isinstance(argument, int) else 0.9 * argument
    if isinstance(argument, torch.Tensor):
        if argument.is_floating_point():  # neither a factor nor a shift: a result may not depend on those
            return argument + 0.1 * torch.arange(argument.numel()).view_as(argument).to(argument) ** 2 % 0.7
        return argument.flip(0)
    if isinstance(argument, np.ndarray):
        return moved(torch.tensor(argument)).numpy()
    return argument[::-1] if isinstance(argument, str | list) else argument
