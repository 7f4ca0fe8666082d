"""Comparing a learner's answer with the right one, and saying in one line how they differ.

Values are plain Python, NumPy arrays and torch tensors; the words are for learners.
"""

import ast
import copy
import ctypes
import functools
import inspect
import textwrap
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch

_SHOWN = 120  # characters of a value that a hint shows
_EXCERPT = 12  # characters of a text from where it differs


class Mistake(Exception):  # noqa: N818  the learner's, not the program's
    """Why an answer does not pass, in words for the learner."""


class NotWritten(Mistake):
    """There is no answer yet."""


class _Interrupted(BaseException):
    """Raised inside an answer that runs too long; no `except Exception` of its own catches it."""


def within(seconds: float, work: Callable[[], Any]) -> Any:
    """The result of `work()`, or Mistake once `seconds` have passed: an endless loop ends.

    It runs in a thread that is interrupted at its deadline, between two steps of Python. A single call into
    compiled code cannot be interrupted: one that releases the interpreter lock, as torch does, is left
    running; for one that does not, such as `sum(range(10**12))`, the kernel has to be restarted.
    """
    outcome: dict[str, Any] = {}

    def run() -> None:
        try:
            outcome["value"] = work()
        except BaseException as error:  # also SystemExit: an answer must not end the lesson
            outcome["error"] = error

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    for _ in range(20):
        if not thread.is_alive():
            break
        # A bare `except:` inside a loop can swallow one interrupt, hence the repetition.
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(thread.ident or 0), ctypes.py_object(_Interrupted)
        )
        thread.join(0.05)
        outcome.setdefault("late", True)
    if "late" in outcome or thread.is_alive():
        raise Mistake(f"no answer after {seconds:g} s: is there a loop that never ends?")
    if "error" in outcome:
        raise outcome["error"]
    return outcome["value"]


def call(function: Any, arguments: Sequence[Any]) -> Any:
    """`function(*arguments)` on copies of the arguments; any exception in it becomes a Mistake.

    Raises NotWritten for a stub: one that raises NotImplementedError or returns None.
    """
    if not callable(function):
        raise Mistake(
            f"a function is wanted, this is {kind(function)}: give the function itself, not its result"
        )
    given = copy.deepcopy(list(arguments))
    try:
        value = function(*given)
    except NotImplementedError:
        raise NotWritten("not written yet") from None
    except (Exception, SystemExit) as error:
        raise Mistake(f"{type(error).__name__} for {listed(arguments)}: {error}") from error
    if value is None:
        raise NotWritten("it returns None: not written yet, or is the return missing?")
    if mismatch(given, list(arguments)):
        raise Mistake(
            f"it changes its own arguments: {listed(arguments)} became {listed(given)}. Work on a copy"
        )
    return value


def kind(value: Any) -> str:
    """What a value is: "a tensor", "a number", "a list" ..."""
    if isinstance(value, torch.Tensor):
        return "a tensor"
    if isinstance(value, np.ndarray):
        return "an array"
    if isinstance(value, bool | np.bool_):
        return "True or False"
    if isinstance(value, int | float | np.number):
        return "a number"
    names = {str: "a string", list: "a list", tuple: "a tuple", dict: "a dict", type(None): "None"}
    return names.get(type(value), f"of type {type(value).__name__}")


def shown(value: Any) -> str:
    """A value in one short line."""
    plain = value.tolist() if isinstance(value, torch.Tensor | np.ndarray | np.generic) else value
    text = " ".join(repr(_rounded(plain)).split())
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def listed(arguments: Sequence[Any]) -> str:
    """Arguments as they stand in the parentheses of a call."""
    return f"({', '.join(shown(a) for a in arguments)})"


def _rounded(value: Any) -> Any:
    if isinstance(value, float | np.floating):
        return float(f"{value:.4g}") + 0.0  # no -0.0
    if isinstance(value, list | tuple):
        return type(value)(_rounded(v) for v in value)
    return value


def mismatch(got: Any, expected: Any, tolerance: float = 1e-6) -> str:
    """How `got` differs from `expected`, in words: the first entry that differs; "" where none does.

    Numbers agree within `tolerance`, relative to the larger of 1 and the expected one; NaN only with NaN. How
    numbers are kept does not matter: a tensor, an array, and a (nested) list of the same shape are the same,
    and so are a number and a tensor of one.
    """
    if isinstance(expected, torch.Tensor | np.ndarray) or _is_number(expected):
        return _numeric_difference(got, expected, tolerance)
    if isinstance(expected, list | tuple) and isinstance(got, torch.Tensor | np.ndarray) and got.ndim:
        got = got.tolist()
    if isinstance(expected, list | tuple) and isinstance(got, list | tuple):
        if len(got) != len(expected):
            return f"it has {len(got)} entries, expected {len(expected)}"
        entries = enumerate(zip(got, expected, strict=True))
        return _first_mismatch(((f"entry {i}", *pair) for i, pair in entries), tolerance)
    if isinstance(expected, dict) and isinstance(got, dict):
        if got.keys() != expected.keys():
            return f"it has the keys {sorted(map(str, got))}, expected {sorted(map(str, expected))}"
        return _first_mismatch(((f"`{k}`", got[k], expected[k]) for k in expected), tolerance)
    if type(got) is not type(expected):
        return f"it is {kind(got)}, expected {kind(expected)}"
    if got == expected:
        return ""
    if isinstance(expected, str):
        return _text_difference(got, expected)
    return f"yours {shown(got)}, expected {shown(expected)}"


def _text_difference(got: str, expected: str) -> str:
    pairs = enumerate(zip(got, expected, strict=False))
    start = next((i for i, (a, b) in pairs if a != b), min(len(got), len(expected)))
    mine, right = (repr(text[start : start + _EXCERPT]) for text in (got, expected))
    return (f"from character {start} on: " if start else "") + f"yours {mine}, expected {right}"


def _first_mismatch(entries: Iterable[tuple[str, Any, Any]], tolerance: float) -> str:
    found = ((place, mismatch(mine, right, tolerance)) for place, mine, right in entries)
    return next((f"{place}: {words}" for place, words in found if words), "")


def _array(value: Sequence[Any]) -> Any:
    """A nested list of numbers, or of tensors of one, as an array; anything else as it is."""
    try:
        plain = [v.tolist() if isinstance(v, torch.Tensor | np.ndarray) else v for v in value]
        array = np.asarray(plain)
    except ValueError:  # ragged
        return value
    return array if array.dtype.kind in "biuf" else value


def _is_number(value: Any) -> bool:
    return isinstance(value, bool | int | float | np.bool_ | np.number)


def _numeric_difference(got: Any, expected: Any, tolerance: float) -> str:
    scalar = _is_number(expected) or expected.ndim == 0
    if isinstance(got, list | tuple) and not scalar:
        got = _array(got)
    if not (isinstance(got, torch.Tensor | np.ndarray) or (scalar and _is_number(got))):
        return f"it is {kind(got)}, expected {kind(expected)}"
    mine, right = (np.asarray(v.detach() if isinstance(v, torch.Tensor) else v) for v in (got, expected))
    if mine.shape != right.shape:
        return f"it has the shape {list(mine.shape)}, expected {list(right.shape)}"
    if (mine.dtype == bool) != (right.dtype == bool) and not scalar:
        return f"it holds {mine.dtype}, expected {right.dtype}"
    x, y = mine.astype(float), right.astype(float)
    with np.errstate(invalid="ignore"):
        agree = (np.abs(x - y) <= tolerance * np.maximum(1.0, np.abs(y))) & np.isfinite(y)
    agree |= (x == y) | (np.isnan(x) & np.isnan(y))
    if agree.all():
        return ""
    where = tuple(np.argwhere(~agree)[0].tolist())
    place = {0: "", 1: "entry {}: ", 2: "row {}, column {}: "}.get(len(where), f"{list(where)}: ")
    return place.format(*where) + f"yours {shown(mine[where])}, expected {shown(right[where])}"


_LONG = 50
"""parts of an expression or statement; anyone writes shorter code alike"""


def is_the_kits(function: Any, reference: Callable[..., Any]) -> bool:
    """Whether an answer is the kit's own function, only calls it, or has its code but for names.

    It compares what is written: code that is paraphrased is not found, nor is code of a few terms, which many
    write alike. Without a source, as in `exec`, only the kit's object itself is found.
    """
    if str(getattr(function, "__module__", "")).startswith("igrpo_kit."):
        return True
    mine, kits = _written(function), _written(reference)
    called = _called(mine, function)
    if called is not None and called in (reference, _called(kits, reference)):
        return True
    dumps = ["".join(map(ast.dump, statements)) for statements in (mine, kits)]
    return dumps[0] == dumps[1] and sum(1 for statement in kits for _ in ast.walk(statement)) >= _LONG


class _Numbered(ast.NodeTransformer):
    """A function's arguments and locals by number."""

    def __init__(self, function: ast.FunctionDef | ast.Lambda) -> None:
        nodes = list(ast.walk(function))
        names = [node.arg for node in nodes if isinstance(node, ast.arg)]
        names += [n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
        self.numbers = {name: f"_{i}" for i, name in enumerate(dict.fromkeys(names))}

    def visit_Name(self, node: ast.Name) -> ast.Name:
        return ast.Name(self.numbers.get(node.id, node.id), node.ctx)


def _written(function: Any) -> list[ast.stmt]:
    """The statements of a function, its names by number and without its docstring; [] without a source."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, SyntaxError, TypeError):
        return []
    node = next((n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.Lambda)), None)
    if node is None:
        return []
    if isinstance(node, ast.Lambda):
        return [ast.Return(_Numbered(node).visit(node.body))]
    return _Numbered(node).visit(node).body[ast.get_docstring(node) is not None :]


def _called(written: Sequence[ast.stmt], function: Any) -> Any:
    """The function that a single statement hands names to, also as float(...); None if it does more."""
    match written:
        case [ast.Return(ast.Call(ast.Name("float"), [ast.Call() as call]) | (ast.Call() as call))]:
            values = [*call.args, *(keyword.value for keyword in call.keywords)]
            if all(isinstance(value, ast.Name) for value in values):
                first, *rest = ast.unparse(call.func).split(".")
                return functools.reduce(
                    lambda found, name: getattr(found, name, None), rest, function.__globals__.get(first)
                )
    return None
