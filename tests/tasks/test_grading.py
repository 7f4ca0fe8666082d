"""Extraction by hand, verdicts against labels and against math-verify itself, and faults really injected."""

import asyncio
import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from itertools import product
from pathlib import Path

import psutil
import pytest
import torch  # noqa: F401  its threads run in this process while workers are started
from hypothesis import given, settings
from hypothesis.strategies import lists, sampled_from

from igrpo_kit.tasks.grading import grader as grading
from igrpo_kit.tasks.grading import pool
from igrpo_kit.tasks.grading import worker as worker_program
from igrpo_kit.tasks.grading.extraction import extract_answer
from igrpo_kit.tasks.grading.grader import Grade, Grader, _bare, _bare_gold, _compare_numbers, _refused

CASES = [
    json.loads(line)
    for line in (Path(__file__).parents[1] / "data" / "grading_cases.jsonl").read_text().splitlines()
]
TIME_LIMIT = 2.0


@pytest.fixture(scope="module")
def grader():
    with Grader(2, time_limit=20.0) as grader:  # a loaded machine must not change a verdict
        yield grader


@pytest.fixture(scope="module")
def hasty():
    """A grader for text that does not end."""
    with Grader(2, time_limit=TIME_LIMIT, memory_mb=512) as grader:
        yield grader


@pytest.fixture(scope="module")
def lenient():
    with Grader(1, time_limit=20.0, fallback=True) as grader:
        yield grader


def statuses(grader, rows):
    return [grade.status for grade in grader.grade(*zip(*rows, strict=True))]


# ------------------------------------------------------------------------------------------------ extraction


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{18}", "18"),
        (r"\fbox{18}", "18"),
        ("\\boxed \n{ 18 }", "18"),
        (r"\boxed{1} \fbox{2}", "2"),
        (r"\fbox{1} \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
        (r"\boxed{a \\}", r"a \\"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{7 } } {", "7"),
        (r"{ {{ \boxed{7}", "7"),
        (r"\boxed{7}{8}", "7"),
        (r"\\boxed{5}", "5"),
        (r"\boxed{19} no wait \boxed{18}", "18"),
        (r"\boxed{19} no wait \boxed{18", None),
        (r"\boxed{19 no wait \boxed{18}", "18"),
        (r"\boxed{18} \boxed{}", None),
        (r"\boxed{18\}", None),
        (r"\boxed{18} as asked in \boxed", "18"),
        (r"\boxed 18", None),
        ("18", None),
        ("", None),
        ("<answer>18</answer>", "18"),
        ("<answer>\n18 </answer>", "18"),
        ("<answer>1</answer> <answer>2</answer>", "2"),
        ("<answer>1</answer> <answer>2", None),
        ("<answer>1<answer>2</answer>", "2"),
        ("<answer></answer>", None),
        ("</answer>18<answer>", None),
        (r"<answer>about \boxed{18} of them</answer>", "18"),
        (r"\boxed{1} <answer>2</answer>", "1"),
        (r"<answer>2</answer> \boxed{1}", "1"),
        (r"<answer>2</answer> \boxed{1", None),
        (r"<think>\boxed{1}</think> <answer>2</answer>", "2"),
        (r"<think>\boxed{1}</think> \boxed{2}", "2"),
        (r"<think>\boxed{1}</think> so it is 1.", "1"),
        (r"<think><answer>1</answer></think> so it is 1.", "1"),
        (r"<think>\boxed{1}</think> <answer>2", None),
        (r"<think>\boxed{1} and <answer>2</answer>", "1"),
        ("\\boxed{\ud800\x00}", "\ud800\x00"),
    ],
)
def test_extract_answer(text, answer):
    assert extract_answer(text) == answer


def naive_answer(text):
    """The rules once more, one character after another."""

    def box(text):
        starts = [i for i in range(len(text)) if re.match(r"\\(boxed|fbox)\s*\{", text[i:])]
        if not starts:
            return None
        start = i = text.index("{", starts[-1]) + 1
        depth = 1
        while i < len(text):
            depth += (text[i] == "{") - (text[i] == "}")
            if depth == 0:
                return text[start:i]
            i += 2 if text[i] == "\\" else 1
        return ""

    def tag(text):
        if "<answer>" not in text:
            return None
        pieces = text.split("<answer>")[-1].split("</answer>")
        return pieces[0] if len(pieces) > 1 else ""

    parts = text.split("</think>")
    for part in (parts[-1], text):
        for content in (box(part), tag(part)):
            if content is not None:
                return content.strip() or None
    return None


PIECES = ["\\boxed{", "\\fbox {", "\\boxed", "{", "}", "}", "\\{", "\\}", "\\", "1", " ", "\n", "x"]
PIECES += ["<answer>", "</answer>", "</think>", "$"]


@given(lists(sampled_from(PIECES), max_size=30).map("".join))
@settings(max_examples=1000, deadline=None)
def test_extraction_agrees_with_a_loop(text):
    assert extract_answer(text) == naive_answer(text)


MEGABYTES = {  # name: (text, length of its answer)
    "digits in a box": ("\\boxed{" + "1" * 10**6 + "}", 1_000_000),
    "braces": ("\\boxed{" + "{" * 10**6, None),
    "braces before": ("{" * 10**6 + "\\boxed{5}", 1),
    "balanced braces": ("\\boxed{" + "{" * 500_000 + "}" * 500_000 + "}", 1_000_000),
    "boxes": ("\\boxed{" * 150_000, None),
    "closed boxes": ("\\boxed{1}" * 110_000, 1),
    "boxes without braces": ("\\boxed" * 160_000, None),
    "white space": ("\\boxed" + " " * 10**6, None),
    "much white space": (("\\boxed" + " " * 1000) * 1000, None),
    "backslashes": ("\\boxed{" + "\\" * 10**6, None),
    "tags": ("<answer>" * 120_000, None),
    "closing tags": ("</answer>" * 110_000, None),
    "thoughts": ("</think>" * 120_000, None),
    "a sum": ("\\boxed{" + "1+" * 500_000 + "1}", 1_000_001),
    "delimiters": ("<answer>" + "\\(" * 250_000 + "\\)" * 250_000 + "</answer>", 1_000_000),
    "stars and dots": ("<answer>" + "**." * 330_000 + "</answer>", 990_000),
    "NULs": ("\\boxed{" + "\0" * 10**6 + "}", 1_000_000),
    "lone surrogates": ("\\boxed{" + "\ud800" * 10**6 + "}", 1_000_000),
    "prose": ("so the answer is 1, or " * 45_000, None),
}


@pytest.mark.parametrize("name", MEGABYTES)
def test_a_megabyte_is_extracted_in_linear_time(name):
    """Anything quadratic takes hours: longer than a test may."""
    text, length = MEGABYTES[name]
    answer = extract_answer(text)
    assert (None if answer is None else len(answer)) == length


# --------------------------------------------------------------------------------------- verdicts by label


def test_labeled_cases(grader):
    """A case marked `known` has math-verify's verdict instead of a teacher's: `over-accepted` or `missed`."""
    assert len(CASES) >= 200
    assert all(
        (case["status"] == "correct") == (case["known"] == "over-accepted")
        for case in CASES
        if "known" in case
    )
    got = statuses(grader, [(case["gold"], case["completion"]) for case in CASES])
    wrong = [(case, status) for case, status in zip(CASES, got, strict=True) if case["status"] != status]
    assert not wrong
    assert Counter(got).keys() == {"correct", "incorrect", "no_answer", "unparsed_gold", "unparsed_answer"}


PROMISES = [
    # Golds without dollars parse, and with them.
    (r"\sqrt{2}", r"\boxed{\sqrt{2}}", "correct"),
    (r"2\sqrt{3}", r"\boxed{2\sqrt{3}}", "correct"),
    (r"3\pi", r"\boxed{3\pi}", "correct"),
    (r"\text{Evelyn}", r"\boxed{\text{Evelyn}}", "correct"),
    ("C", r"\boxed{C}", "correct"),
    (r"$\sqrt{2}$", r"\boxed{\sqrt{2}}", "correct"),
    (r"\boxed{\sqrt{2}}", r"\boxed{\sqrt{2}}", "correct"),
    # A number in prose is no answer; the tag is.
    ("18", "18 dollars", "no_answer"),
    ("18", "#### 18", "no_answer"),
    ("18", "The final answer is 18.", "no_answer"),
    ("18", "<answer>18</answer>", "correct"),
    (r"\frac{1}{2}", r"\boxed{\frac12}", "correct"),
    # The last box, at any distance.
    ("18", r"\boxed{19} no wait \boxed{18}", "correct"),
    ("19", r"\boxed{19} no wait \boxed{18}", "incorrect"),
    ("18", r"The draft said \boxed{19}. I get: \boxed{18}", "correct"),
    ("15", r"Draft: \boxed{12}. Correct: \boxed{15}", "correct"),
    ("15", r"Draft: \boxed{12}." + " So what?" * 100 + r" Correct: \boxed{15}", "correct"),
    ("18", r"\boxed{18} but \boxed{1", "no_answer"),
    # Units, percents, bases, sums and lists are math-verify's.
    ("5 cm", r"\boxed{5 m}", "correct"),
    ("50%", r"\boxed{50}", "correct"),
    ("50%", r"\boxed{0.5}", "correct"),
    ("2516", r"\boxed{2516_8}", "correct"),
    ("4", r"\boxed{2+2}", "correct"),
    ("1,2", r"\boxed{2,1}", "correct"),
    ("(1,2)", r"\boxed{1,2}", "correct"),
    ("(1,2)", r"\boxed{(2,1)}", "incorrect"),
    # Reported false positives: three of four are gone once the answer stands alone.
    ("1728", r"\boxed{1331 and 1728}", "incorrect"),
    ("4", r"\boxed{4\sqrt{2}}", "incorrect"),
    ("4", r"\boxed{4\sqrt(2)}", "unparsed_answer"),
    (r"1-\frac{1}{e}", r"\boxed{1+\frac{1}{e}}", "incorrect"),
    (r"1-\frac{1}{\mathrm{e}}", r"\boxed{1+\frac{1}{\mathrm{e}}}", "unparsed_gold"),
    ("1/2004!", r"\boxed{1/2006!}", "correct"),
    # The order of the arguments is gold, answer.
    ("1<x<2", r"\boxed{(1,2)}", "correct"),
    ("(1,2)", r"\boxed{1<x<2}", "incorrect"),
    # No end, no crash.
    ("18", r"\boxed{9^9^9^9}", "unparsed_answer"),
    ("18", r"\boxed{99999999!}", "unparsed_answer"),
    ("18", r"\boxed{2^{10^9}}", "unparsed_answer"),
    ("18", r"\boxed{" + "{" * 40 + "18" + "}" * 40 + "}", "unparsed_answer"),
    # Reported by others.
    (r"\frac{9}{7}", r"\boxed{\dfrac{9}{7}}", "correct"),
    ("73", "<answer>**73**</answer>", "correct"),
    (r"\sqrt{\frac{1}{n}}", r"\boxed{sqrt(1/n)}", "correct"),
    ("x^2-1=0", r"\boxed{x^2-4=0}", "incorrect"),
    (r"\{1,2,3\}", r"\boxed{\{1,2\}}", "incorrect"),
]


def test_every_measured_failure_of_math_verify_has_the_promised_verdict(grader):
    got = statuses(grader, [promise[:2] for promise in PROMISES])
    assert [(*promise[:2], status) for promise, status in zip(PROMISES, got, strict=True)] == PROMISES


def test_a_grade_says_all(grader):
    rows = [
        ("1/2", r"so \boxed{\frac{3}{6}}."),
        ("(1,2)", r"\boxed{(1,3)}"),
        ("7", "seven"),
        ("7", r"\boxed{*}"),
    ]
    fast, slow, none, unparsed = grader.grade(*zip(*rows, strict=True))
    assert fast == Grade(reward=1.0, status="correct", answer=r"\frac{3}{6}", seconds=0.0)
    assert (slow.reward, slow.status, slow.answer) == (0.0, "incorrect", "(1,3)")
    assert 0 < slow.seconds < 20
    assert none == Grade(0.0, "no_answer", None, 0.0)
    assert (unparsed.reward, unparsed.status, unparsed.answer) == (0.0, "unparsed_answer", "*")
    with pytest.raises(AttributeError):
        fast.reward = 0.0


def test_golds_that_do_not_parse_are_found(grader):
    golds = [r"\sqrt{2}", "", "C", "{", "1/0", r"50\%", "(0,1]", "9^{9^9}", "½", "18", r"\frac{1}{2}", "a}{b"]
    assert grader.unparsed_golds(golds) == [1, 3, 4, 7, 8, 11]
    assert grader.unparsed_golds([]) == []
    assert statuses(grader, [("½", r"\boxed{½}"), ("½", r"\boxed{0.5}")]) == ["unparsed_gold"] * 2


def test_fallback_asks_math_verify_only_where_no_answer_was_begun(lenient):
    rows = {
        "The final answer is 18.": "correct",
        "It costs 18 dollars": "correct",
        "so $x = 18$ as claimed": "correct",
        "x " * 5000 + "The answer is 18.": "correct",
        "The answer is 19.": "incorrect",
        "I do not know.": "no_answer",
        "The answer is $\\frac{$": "unparsed_answer",
        "": "no_answer",
        r"The answer is 18. \boxed{18": "no_answer",
        "The answer is 18. <answer>": "no_answer",
        r"The answer is 18. \boxed{19}": "incorrect",
        r"<think>\boxed{18</think> The answer is 18.": "no_answer",
    }
    grades = lenient.grade(["18"] * len(rows), list(rows))
    assert dict(zip(rows, (grade.status for grade in grades), strict=True)) == rows
    assert [grade.answer for grade in grades[:2]] == ["18", "18"]


# ---------------------------------------------------------------------------- verdicts against math-verify


@pytest.fixture(scope="module")
def math_verify():
    """math-verify as it comes, with its own extraction and its own parser, in this process."""
    from functools import cache

    from math_verify import parse, verify

    parsed = cache(lambda text: parse(f"\\boxed{{{text}}}", parsing_timeout=None))
    return lambda gold, answer: verify(parsed(gold), parsed(answer), timeout_seconds=None)


def test_verdicts_are_math_verifys_on_the_isolated_answer(math_verify):
    """Of all labeled cases that reach a comparison; among them every known over-acceptance and miss."""
    compared = [case for case in CASES if case["status"] in ("correct", "incorrect")]
    for case in compared:
        gold, answer = _bare_gold(case["gold"]), _bare(extract_answer(case["completion"]))
        assert math_verify(gold, answer) == (case["status"] == "correct"), case
    assert len(compared) > 200


def test_two_stage_parsing_gives_the_same_trees(monkeypatch):
    from latex2sympy2_extended import latex2sympy2
    from math_verify import parser
    from sympy import srepr

    texts = {
        _bare(text) for case in CASES for text in (case["gold"], extract_answer(case["completion"]) or "")
    }
    texts = sorted(text for text in texts if not _refused(text))

    def trees():
        worker_program.parse_isolated.cache_clear()
        parser.parse_latex_cached.cache_clear()
        return {text: list(map(srepr, worker_program.parse_isolated(text))) for text in texts}

    exact = trees()
    monkeypatch.setattr(latex2sympy2, "PSParser", worker_program._TwoStageParser)
    assert trees() == exact
    assert sum(map(bool, exact.values())) > 180


NUMBERS = r"""
0 1 2 3 10 18 99 100 999 1000 1234 1,234 1235 12,345 123,456 1,234,567 1234567 007 00 -0 -1 -3 -18 -1,234 -007
1.0 1.00 1.5 2.5 2.50 0.5 0.50 0.1 0.10 0.2 0.25 0.3 0.125 0.333333 0.3333333 0.3333 0.666667 0.142857 3.14
1,234.5 1234.5 1234.50 1,234.0 -0.5 -1.5 -0.0 0.0 0.000001 0.0000001 0.0000005 1.000001 1.0000001 1.0000015
1.00000049 1.000002 1.000003 100.000001 1234567.891 123456789.123456 12345678901.5 0.1234565 0.1234575 99.99
1/2 1/3 2/3 1/4 3/4 2/4 4/2 6/3 -1/2 -3/4 10/4 1/7 7/1 0/5 1/8 125/1000 5/2 10/3 \frac{1}{2} \frac{2}{4}
\dfrac{1}{2} \tfrac{3}{4} \cfrac{3}{4} -\frac{1}{2} -\dfrac{3}{4} \frac{5}{2} \frac{4}{2} \frac{1}{3}
\frac{125}{1000} \frac{0}{5} \frac{1234567}{10} \frac{007}{2} 123456.7 12345678901234567890
12345678901234567891 9007199254740993 9007199254740992 9007199254740993.0 1.23456789012345678901 12,34 0,123
""".split()  # noqa: SIM905


def random_number(rng):
    sign, whole = rng.choice(["", "", "-"]), rng.choice([rng.randrange(30), rng.randrange(10**7)])
    return rng.choice(
        [
            f"{sign}{whole}",
            f"{sign}{whole:,}",
            f"{sign}{whole:,}.{rng.randrange(1000)}",
            f"{sign}{whole}.{rng.randrange(100)}0",
            f"{sign}{whole}/{rng.randrange(1, 12)}",
            rf"{sign}\frac{{{whole}}}{{{rng.randrange(1, 12)}}}",
        ]
    )


def test_numeric_fast_path_agrees_with_math_verify(math_verify):
    rng = random.Random(0)
    pairs = [*product(NUMBERS, NUMBERS), *((random_number(rng), random_number(rng)) for _ in range(1000))]
    pairs += [
        (f"{x}/{y}", f"{x / y:.{digits}f}") for x in range(1, 9) for y in (3, 4, 7) for digits in (2, 5, 6, 9)
    ]
    verdicts = {pair: _compare_numbers(*pair) for pair in pairs}
    decided = {pair: verdict for pair, verdict in verdicts.items() if verdict}
    right = {pair for pair, verdict in decided.items() if verdict == "correct"}
    checked = right | set(rng.sample(sorted(decided.keys() - right), 1500))
    assert len(right) > 300
    assert len(decided) > 0.8 * len(pairs)
    assert {pair: math_verify(*pair) for pair in checked} == {pair: pair in right for pair in checked}


def test_numeric_fast_path_keeps_off_what_is_not_plain():
    for text in [
        "1 234",
        "0,123",
        "12,34",
        "1e5",
        "+3",
        ".5",
        "٣",
        "１２",
        "1/0",
        r"\frac{1}{0}",
        "1.",
        "",
        "x",
    ]:
        assert _compare_numbers(text, "3") is None
    assert _compare_numbers("1.0", "1.0000001") is None


# -------------------------------------------------------------------------------------------- hostile text


REFUSED = [
    "9^9^9^9",
    "9^{9^{9^{9}}}",
    "10^{10^{10}}",
    "2^{1000000000}",
    "99999999!",
    r"\sum_{i=1}^{1000000000} \frac{1}{i}",
    r"\prod_{i=1}^{10^9} i",
    "{" * 40 + "1" + "}" * 40,
    "(" * 40 + "1" + ")" * 40,
    r"\frac{1}{" * 40 + "2" + "}" * 40,
    r"\left(" * 300 + "1" + r"\right)" * 300,
    "1" * 10**6,
    "1+" * 500_000 + "1",
]
ENDLESS = ["(10^9)!", "((5!)!)!", r"\binom{10^9}{5\cdot 10^8}", "e^{e^{e^{e^{e}}}}"]
CANARY = "grading_canary"
PAYLOADS = [
    f"__import__('os').system('touch {CANARY}')",
    f"open('{CANARY}','w').close()",
    f"eval(\"open('{CANARY}','w')\")",
    f"exec(\"open('{CANARY}','w')\")",
    f"getattr(__builtins__,'open')('{CANARY}','w')",
    f"[open(n,'w') for n in ['{CANARY}']]",
    f"(lambda: open('{CANARY}','w'))()",
    "eval(" + "+".join(f"chr({ord(c)})" for c in f"open('{CANARY}','w')") + ")",
    f"().__class__.__base__.__subclasses__()[0].__init__.__globals__['open']('{CANARY}','w')",
    f"1+__import__('pathlib').Path('{CANARY}').touch()",
    f"x.func.__globals__['__builtins__']['open']('{CANARY}','w')",
    "Symbol('x').__class__.__mro__[-1].__subclasses__()",
    f"sympify(\"open('{CANARY}','w')\")",
]


def test_what_cannot_end_is_refused_or_killed(hasty):
    """Every hostile answer, and after each an honest one for the same worker or its successor."""
    honest = (r"\sqrt{8}", r"\boxed{2\sqrt{2}}")
    hostile = [("18", f"\\boxed{{{text}}}") for text in [*REFUSED, *ENDLESS]]
    grades = hasty.grade(*zip(*[row for bad in hostile for row in (bad, honest)], strict=True))
    got = [grade.status for grade in grades[::2]]
    assert got == ["unparsed_answer"] * len(REFUSED) + ["timeout"] * len(ENDLESS)
    assert {grade.status for grade in grades[1::2]} == {"correct"}
    assert max(grade.seconds for grade in grades) < TIME_LIMIT + 2
    assert all(grade.seconds == 0 for grade in grades[: 2 * len(REFUSED) : 2])


def test_nothing_executes(tmp_path, monkeypatch):
    """The worker's folder stays empty. sympy's own parser does run such text, so the trap works."""
    from sympy import parse_expr

    monkeypatch.chdir(tmp_path)  # where the worker starts, too
    with pytest.raises(Exception):  # noqa: B017  whatever sympy makes of the 0 that it returns
        parse_expr(PAYLOADS[0] + "+'")
    parse_expr(PAYLOADS[0])
    Path(CANARY).unlink()
    wraps = ["\\boxed{%s}", "<answer>%s</answer>", "\\boxed{\\text{%s}}", "The final answer is %s."]
    with Grader(1, time_limit=20.0, fallback=True) as grader:
        for wrap in wraps:
            grades = grader.grade(["18"] * len(PAYLOADS), [wrap % payload for payload in PAYLOADS])
            assert not any(grade.reward for grade in grades)
        grader.grade(PAYLOADS, ["\\boxed{18}"] * len(PAYLOADS))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text", ["1\0008", "\0", "\ud800", "1\udfff8", "\U0001f600" * 900, "\u202e18", "18\r\n", "\x1b[2J"]
)
def test_strange_characters_have_a_status(text, grader):
    as_answer, as_gold = grader.grade(["18", text], [f"\\boxed{{{text}}}", r"\boxed{18}"])
    assert as_answer.status == ("correct" if text.strip() == "18" else "unparsed_answer")
    assert as_gold.status == ("correct" if text.strip() == "18" else "unparsed_gold")


def workers_of(process=None):
    """The workers that this process, or another one, has running."""
    workers = []
    for child in psutil.Process(process).children():
        with contextlib.suppress(psutil.Error):  # it has just ended
            if "worker.py" in map(os.path.basename, child.cmdline()):
                workers.append(child)
    return workers


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits a process's address space")
def test_memory_stays_bounded():
    others, peak, done = {worker.pid for worker in workers_of()}, 0, threading.Event()

    def watch(worker):
        nonlocal peak
        while not done.wait(0.01):
            peak = max(peak, worker.memory_info().rss)

    with Grader(1, time_limit=60.0, memory_mb=256) as grader:
        assert grader.grade(["x^2"], [r"\boxed{x+1}"])[0].status == "incorrect"
        (worker,) = (worker for worker in workers_of() if worker.pid not in others)
        watcher = threading.Thread(target=watch, args=[worker])
        watcher.start()
        grade = grader.grade(["x^2"], [r"\boxed{(x+y+z+w)^{999}}"])[0]  # 4 * 10^8 terms
        done.set()
        watcher.join()
        assert grader.grade(["x^2"], [r"\boxed{x\cdot x}"])[0].status == "correct"  # by another worker
        assert not worker.is_running()
    assert (grade.reward, grade.status) == (0, "error")
    assert 100 < peak / 2**20 < 256


# ---------------------------------------------------------------------------------- faults of the workers

SCRIPTED_WORKER = """
import json, os, sys, time
from pathlib import Path

here = Path(__file__).parent
assert os.environ["PYTHONHASHSEED"] == "0"  # the same verdicts in every worker

def act(text):
    with open(here / "asked", "a") as file:
        file.write(text + "\\n")
    first = (here / "asked").read_text().splitlines().count(text) == 1
    if text == "die" or text == "die once" and first:
        os._exit(9)
    if text == "stall" or text == "stall once" and first:
        time.sleep(60)
    return "error" if text == "fail" else "correct"

def reply(*content):
    print(json.dumps(content), flush=True)

START
reply("ready", 0.0, None)
for line in sys.stdin:
    for gold, answers in json.loads(line):
        status = act(gold)
        reply(status, 0.0, None)
        for answer, whole in answers:
            reply(act(answer) if status == "correct" else status, 0.0, None)
"""


@pytest.fixture
def scripted(tmp_path, monkeypatch):
    """Make a Grader whose worker acts out its text; `start` is run before it is ready."""

    def make(start="", **options):
        path = tmp_path / "worker.py"
        path.write_text(SCRIPTED_WORKER.replace("START", start))
        monkeypatch.setattr(pool, "WORKER_FILE", path)
        graders.append(Grader(options.pop("num_workers", 2), time_limit=1.0, **options))
        return graders[-1]

    graders = []
    yield make
    for grader in graders:
        grader.close()


def boxed(*texts):
    return [f"\\boxed{{{text}}}" for text in texts]


def test_a_dying_or_stalling_worker_harms_only_the_answer_at_fault(scripted):
    answers = ["a", "die", "b", "die once", "c", "stall", "d", "fail", "e"]
    got = [grade.status for grade in scripted().grade(["gold"] * 9, boxed(*answers))]
    assert got == [
        "correct",
        "error",
        "correct",
        "correct",
        "correct",
        "timeout",
        "correct",
        "error",
        "correct",
    ]


def test_a_gold_at_fault_takes_its_own_answers_with_it(scripted, tmp_path):
    """All of them: a gold that does not end costs one time limit, not one for each answer."""
    golds = ["gold", "die", "die", *["stall"] * 8, "die once", "fail", "gold"]
    got = [grade.status for grade in scripted(num_workers=1).grade(golds, boxed(*"abcdefghijklmn"))]
    assert got == ["correct", "error", "error", *["unparsed_gold"] * 8, "correct", "error", "correct"]
    assert Counter((tmp_path / "asked").read_text().split("\n"))["stall"] == 1


def test_what_is_known_is_not_asked_again_but_what_timed_out_is(scripted, tmp_path):
    grader = scripted(num_workers=1)
    rows = (["gold", "gold", "gold", "7"], boxed("a", "a", "stall once", "7"))
    assert [grade.status for grade in grader.grade(*rows)] == ["correct", "correct", "timeout", "correct"]
    assert [grade.status for grade in grader.grade(*rows)] == ["correct"] * 4
    assert Counter((tmp_path / "asked").read_text().split("\n")) == {
        "gold": 3,
        "a": 1,
        "stall once": 2,
        "": 1,
    }


def test_the_cache_forgets_the_oldest(scripted, tmp_path, monkeypatch):
    monkeypatch.setattr(grading, "CACHE_SIZE", 3)
    grader = scripted(num_workers=1)
    for answer in "abaca":  # gold, a, b fill it; a is used again, so gold and b go first
        grader.grade(["gold"], boxed(answer))
    asked = (tmp_path / "asked").read_text().split()
    assert [asked.count(answer) for answer in "abc"] == [1, 1, 1]
    grader.grade(["gold"], boxed("b"))
    assert (tmp_path / "asked").read_text().split().count("b") == 2


def test_a_worker_that_cannot_start_is_an_error_that_says_how_to_find_out(scripted):
    with pytest.raises(RuntimeError, match=r"could not start \(exit status 3\).*run: .*worker\.py"):
        scripted("sys.exit(3)").grade(["gold"], boxed("a"))


def test_a_start_that_fails_now_and_then_is_tried_again(scripted):
    start = "if act('start') and len((here / 'asked').read_text().split()) < 3: sys.exit(1)"
    assert scripted(start, num_workers=1).grade(["gold"], boxed("a"))[0].status == "correct"


def test_a_worker_that_died_idle_is_replaced(scripted, tmp_path):
    grader = scripted(num_workers=1)
    for answer in "abc":
        assert grader.grade(["gold"], boxed(answer))[0].status == "correct"
        own = str(tmp_path / "worker.py")  # other graders have workers as well
        (worker,) = (worker for worker in workers_of() if own in worker.cmdline())
        worker.kill()


HARD = [(f"x^2-{i}x+{i + 1}", f"(x-{i})(x+{i})-{i}x") for i in range(2, 60)]  # some ms each


@pytest.mark.faults
def test_workers_killed_in_the_middle_lose_nothing(grader):
    golds = [gold for gold, _ in HARD] * 2
    completions = boxed(*(answer for _, answer in HARD), *(f"{gold}+0" for gold, _ in HARD))
    killed, struck, done = set(), set(), threading.Event()

    def assassin():
        """Kills workers at work: none while it starts, none at an answer that has cost one before."""
        while len(killed) < 3 and not done.wait(0.1):
            for victim in grader._pool._alive - killed:
                if None in list(victim.steps):  # it starts
                    continue
                victim.process.send_signal(signal.SIGSTOP)
                done.wait(0.3)  # the pool reads what it has replied: the next step is the one it is at
                step = next(iter(list(victim.steps)), None)
                if step is None or step in struck:
                    victim.process.send_signal(signal.SIGCONT)
                    continue
                victim.process.kill()
                killed.add(victim)
                struck.add(step)
                break

    thread = threading.Thread(target=assassin)
    thread.start()
    grades = grader.grade(golds, completions)
    done.set()
    thread.join()
    assert killed
    assert [grade.status for grade in grades] == ["incorrect"] * len(HARD) + ["correct"] * len(HARD)


# -------------------------------------------------------------------- threads, event loops, processes, ends


def rows_of(thread):
    """Thirty rows of which those divisible by three are right, different for each thread."""
    golds = [f"{i}x+{thread}" for i in range(1, 31)]
    completions = boxed(*(f"{thread}+{i}x" if i % 3 == 0 else f"{i}x-{thread}" for i in range(1, 31)))
    return golds, completions, ["correct" if i % 3 == 0 else "incorrect" for i in range(1, 31)]


def test_eight_threads_and_an_event_loop_share_a_grader(grader):
    async def main():
        ticks = 0

        async def tick():
            nonlocal ticks
            while True:
                await asyncio.sleep(0.005)
                ticks += 1

        ticker = asyncio.create_task(tick())
        calls = [asyncio.to_thread(grader.grade, *rows_of(thread)[:2]) for thread in range(1, 9)]
        graded = await asyncio.gather(*calls)
        ticker.cancel()
        inside = grader.grade(*rows_of(9)[:2])  # blocks the loop, as in a notebook's cell, and works
        return [*graded, inside], ticks

    graded, ticks = asyncio.run(main())
    for thread, grades in enumerate(graded, start=1):
        assert [grade.status for grade in grades] == rows_of(thread)[2]
    assert ticks > 5


def test_arguments_are_checked(grader):
    with pytest.raises(ValueError, match="1 golds for 2 completions"):
        grader.grade(["1"], ["1", "2"])
    for name, value, error, message in [
        ("num_workers", 0, ValueError, "num_workers must be positive, got 0"),
        ("time_limit", -1.0, ValueError, "time_limit must be positive"),
        ("memory_mb", 64, ValueError, "memory_mb must be at least 256"),
    ]:
        with pytest.raises(error, match=message):
            Grader(**{name: value})
    assert grader.grade([], []) == []


def test_what_is_not_text_is_named_by_its_row():
    """In a process of its own, without the type checker that the tests run under."""
    code = """
        from igrpo_kit.tasks import Grader
        with Grader(1) as grader:
            for golds, completions in [(["1", 2], ["1", "2"]), (["1", "2"], ["1", None]), ("12", ["1", "2"])]:
                try:
                    grader.grade(golds, completions)
                except TypeError as error:
                    print(error)
    """
    out = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    assert out.stdout.splitlines() == [
        "golds[1] must be a string, got int: 2",
        "completions[1] must be a string, got NoneType: None",
        "golds must be a sequence of strings, not one string",
    ]


def test_a_closed_grader_says_so_and_has_no_worker_left():
    before = {worker.pid for worker in workers_of()}
    grader = Grader(1)
    grader.grade(["x"], boxed("x+0"))
    assert len(workers_of()) == len(before) + 1
    grader.close()
    grader.close()
    assert {worker.pid for worker in workers_of()} == before
    with pytest.raises(RuntimeError, match="closed"):
        grader.grade(["x"], boxed("x+1"))


def test_closing_from_another_thread_ends_a_call():
    before = {worker.pid for worker in workers_of()}
    grader = Grader(1, time_limit=60.0)
    closer = threading.Timer(1.0, grader.close)
    closer.start()
    with pytest.raises(RuntimeError, match="closed"):
        grader.grade(["18"], boxed("(10^9)!"))
    closer.join()
    assert {worker.pid for worker in workers_of()} == before


# What ends the parent, and how it ends. No `if __name__ == "__main__"` in any of these scripts.
SCRIPT = """
import os, signal, sys, threading, time
from igrpo_kit.tasks import Grader
from igrpo_kit.tasks.grading.pool import _Worker

start = _Worker.__init__
def started(self, command):
    start(self, command)
    print(self.process.pid, flush=True)
_Worker.__init__ = started

grader = Grader(2, time_limit=LIMIT)
busy = threading.Thread(target=grader.grade, args=(["18"], ["\\\\boxed{(10^9)!}"]), daemon=True)
"""
IDLE = "grader.grade(['x', 'y'], ['\\\\boxed{x+0}', '\\\\boxed{y+0}'])\n"
WAIT_UNTIL_BUSY = """
import psutil
busy.start()
def seconds_used():
    return sum(worker.cpu_times().user for worker in psutil.Process().children())
while seconds_used() < 1.2:  # it takes half of that to start
    time.sleep(0.02)
"""
ENDS = {
    "exit": (60, IDLE, "", 0),
    "exit while busy": (60, WAIT_UNTIL_BUSY, "", 0),
    "exception": (60, IDLE, "raise SystemExit(5)", 5),
    "hard exit": (60, IDLE, "os._exit(6)", 6),
    "killed": (60, IDLE, "os.kill(os.getpid(), signal.SIGKILL)", -9),
    "killed while busy": (10, WAIT_UNTIL_BUSY, "os.kill(os.getpid(), signal.SIGKILL)", -9),
    "interrupted": (
        600,  # longer than the parent is waited for
        "threading.Timer(2, os.kill, (0, signal.SIGINT)).start()\n",
        "busy.run()",
        -2,
    ),
    "forked": (
        60,
        IDLE,
        "if os.fork() == 0:\n"
        "    try: grader.grade(['x'], ['\\\\boxed{x+1}'])\n"
        "    except RuntimeError as error: sys.exit('fork' not in str(error))\n"
        "assert os.wait()[1] == 0\n"
        "assert all(worker.process.poll() is None for worker in grader._pool._alive)\n"
        "assert grader.grade(['x'], ['\\\\boxed{x+1}'])[0].status == 'incorrect'\n",
        0,
    ),
}


@pytest.mark.faults
def test_no_end_of_the_parent_leaves_an_orphan():
    """Worker pids are printed as they start; all must go, a busy one at its limit of CPU time."""
    parents = {}
    for name, (limit, setup, end, _) in ENDS.items():
        code = SCRIPT.replace("LIMIT", str(limit)) + setup + end
        parents[name] = subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,  # "interrupted" does to its group what Ctrl-C in a terminal does
        )
    try:
        for name, parent in parents.items():
            out, err = parent.communicate(timeout=60)
            assert parent.returncode == ENDS[name][3], (name, err)
            pids = [int(line) for line in out.split()]
            assert pids, name
            deadline = time.monotonic() + 200  # only so that a failure says which
            while left := [pid for pid in pids if psutil.pid_exists(pid)]:
                assert time.monotonic() < deadline, (name, left)
                time.sleep(0.05)
            if name == "interrupted":
                assert "KeyboardInterrupt" in err
    finally:
        for parent in parents.values():
            parent.kill()
