"""The child's side of grading: a process in which math-verify checks one answer after another.

The parent (`pool`) runs this file by its path, so that a worker loads math-verify but nothing of this
package. The parent kills a worker when an answer takes too long, so this file sets no wall-clock limit. A
worker without a parent also ends: if idle, at the end of its input; if busy, at its limit of CPU time.

    stdin    one JSON line per request: [[gold, [[answer, whole], ...]], ...]
    stdout   one JSON line [status, seconds, extracted] when ready, then after each gold and answer, in order
"""

import contextlib
import gc
import json
import logging
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

from antlr4.atn.PredictionMode import PredictionMode
from latex2sympy2_extended import latex2sympy2
from math_verify import LatexExtractionConfig, parse, verify

Reply = tuple[str, float, str | None]


class _TwoStageParser(latex2sympy2.PSParser):
    """ANTLR's two-stage parsing: SLL first, full LL only where SLL finds a syntax error.

    SLL gives the same tree as LL or an error (documentation of `PredictionMode.SLL`). For tuples, intervals,
    and sets it is 10 to 20 times as fast.
    """

    def math(self) -> Any:
        self._interp.predictionMode = PredictionMode.SLL
        try:
            return super().math()
        except Exception:
            self.reset()
            self._interp.predictionMode = PredictionMode.LL
            return super().math()


def _expressions(parsed: list[Any]) -> list[Any]:
    """The parsed expressions; math-verify returns the text itself, a str, where it cannot parse."""
    return [item for item in parsed if not isinstance(item, str)]


@lru_cache(maxsize=1024)  # a gold recurs with each completion of its group, and often as the answer
def parse_isolated(text: str) -> list[Any]:
    """The expressions in a text that is one LaTeX answer; empty if it does not parse."""
    return _expressions(parse(f"$${text}$$", [LatexExtractionConfig()], parsing_timeout=None))


def judge_gold(gold: str) -> tuple[str, None]:
    """`correct` or `unparsed_gold`. No answer can match a gold that does not equal itself (1/0)."""
    parsed = parse_isolated(gold)
    return "correct" if verify(parsed, parsed, timeout_seconds=None) else "unparsed_gold", None


def judge_answer(gold: str, text: str, whole: bool) -> tuple[str, str | None]:
    """Status of an answer and, for a whole completion, the extracted text.

    Args:
        gold: a gold that parses.
        text: the answer.
        whole: the text is a completion, from which math-verify extracts the answer.
    """
    extracted = None
    if whole:
        parsed = parse(text, parsing_timeout=None)  # math-verify's own extraction, LaTeX and plain numbers
        if not parsed:
            return "no_answer", None
        answer, extracted = _expressions(parsed), str(parsed[-1])
    else:
        answer = parse_isolated(text)
    if not answer:
        return "unparsed_answer", extracted
    right = verify(parse_isolated(gold), answer, timeout_seconds=None, raise_on_error=True)
    return "correct" if right else "incorrect", extracted


def _memory_peak() -> int:
    """Peak address space of this process in bytes; 0 where the system does not report it."""
    with contextlib.suppress(OSError), open("/proc/self/status") as status:
        for line in status:
            if line.startswith("VmPeak:"):
                return int(line.split()[1]) << 10
    return 0


def _reply_of(cpu_seconds: float, judge: Callable[..., tuple[str, str | None]], *arguments: Any) -> Reply:
    _limit(resource.RLIMIT_CPU, int(time.process_time() + cpu_seconds) + 1)
    started = time.perf_counter()
    try:
        status, extracted = judge(*arguments)
    except Exception:  # sympy cannot compare the two, or the stack overflowed
        status, extracted = "error", None
    # Out of memory, math-verify reports two expressions as unequal: discard such a verdict.
    if _memory_peak() > resource.getrlimit(resource.RLIMIT_AS)[0] // 2 > 0:
        status = "error"
    return status, time.perf_counter() - started, extracted


def judge_group(gold: str, answers: list[tuple[str, bool]], cpu_seconds: float) -> Iterator[Reply]:
    """The reply to the gold, then one to each answer; stops after an error, which may leave a bad state.

    Args:
        gold: reference answer.
        answers: (answer, whole) pairs.
        cpu_seconds: limit of CPU time for each reply.
    """
    of_gold = _reply_of(cpu_seconds, judge_gold, gold)
    yield of_gold
    for answer in answers:
        if of_gold[0] != "correct":
            yield of_gold[0], 0.0, None
            continue
        of_answer = _reply_of(cpu_seconds, judge_answer, gold, *answer)
        yield of_answer
        if of_answer[0] == "error":
            return


def _limit(which: int, value: int) -> None:
    hard = resource.getrlimit(which)[1]
    with contextlib.suppress(ValueError, OSError):  # macOS defines RLIMIT_AS but rejects it
        resource.setrlimit(which, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def main(memory_bytes: int, cpu_seconds: float) -> None:
    """Reply to requests until the input ends or an error occurs; the parent then starts a new worker."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # output of a library must not be mistaken for a reply
    logging.disable()  # math-verify warns that its own timeout, by SIGALRM, is off
    latex2sympy2.PSParser = _TwoStageParser
    gc.freeze()  # imported objects stay, so the collector can skip them
    _limit(resource.RLIMIT_AS, memory_bytes)
    _limit(resource.RLIMIT_CORE, 0)

    def reply(status: str, seconds: float, extracted: str | None) -> None:
        replies.write(json.dumps([status, seconds, extracted]) + "\n")
        replies.flush()

    with contextlib.suppress(BrokenPipeError):
        reply("ready", 0.0, None)
        for line in sys.stdin:
            for gold, answers in json.loads(line):
                for status, seconds, extracted in judge_group(gold, answers, cpu_seconds):
                    reply(status, seconds, extracted)
                if status == "error":
                    return


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
