"""The child's side of grading: one process that asks math-verify about one answer after another.

The parent (`pool`) runs this file by its path, so that a worker loads math-verify and nothing of
this package. It is killed when an answer takes too long, so nothing here has a time limit of its own. A
worker whose parent is gone ends as well: if idle at the end of its input, if busy at its limit of CPU time.

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

    SLL gives the tree that LL gives, or an error (so the documentation of `PredictionMode.SLL`), and for
    tuples, intervals and sets it is 10 to 20 times as fast.
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
    """What math-verify understood; it hands back the text itself, a str, where it did not."""
    return [item for item in parsed if not isinstance(item, str)]


@lru_cache(maxsize=1024)  # a gold is met with every completion of its group, and often as the answer as well
def parse_isolated(text: str) -> list[Any]:
    """The expressions in an answer that stands alone, all of it LaTeX; empty if it does not parse."""
    return _expressions(parse(f"$${text}$$", [LatexExtractionConfig()], parsing_timeout=None))


def judge_gold(gold: str) -> tuple[str, None]:
    """`correct` or `unparsed_gold`. A gold that does not even equal itself (1/0) can never be answered."""
    parsed = parse_isolated(gold)
    return "correct" if verify(parsed, parsed, timeout_seconds=None) else "unparsed_gold", None


def judge_answer(gold: str, text: str, whole: bool) -> tuple[str, str | None]:
    """The status of an answer to a gold that parses; of a whole completion also what was extracted."""
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
    """The most address space this process has had, in bytes; 0 where the system does not tell."""
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
    except Exception:  # sympy cannot compare the two, or the stack ran out
        status, extracted = "error", None
    # math-verify takes for unequal what it has no memory to compare: such a verdict is worth nothing.
    if _memory_peak() > resource.getrlimit(resource.RLIMIT_AS)[0] // 2 > 0:
        status = "error"
    return status, time.perf_counter() - started, extracted


def judge_group(gold: str, answers: list[tuple[str, bool]], cpu_seconds: float) -> Iterator[Reply]:
    """The reply to the gold, then one to each answer, up to an error, which may leave a bad state behind."""
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
    with contextlib.suppress(ValueError, OSError):  # macOS knows RLIMIT_AS but does not accept it
        resource.setrlimit(which, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def main(memory_bytes: int, cpu_seconds: float) -> None:
    """Reply to requests until the input ends, or an error: the parent starts a new worker then."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not be taken for a reply
    logging.disable()  # math-verify warns that its own time-out, by SIGALRM, is off
    latex2sympy2.PSParser = _TwoStageParser
    gc.freeze()  # all that was imported stays: the collector need not walk through it again and again
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
