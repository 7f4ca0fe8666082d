"""The paper's tables as data, and an audit of what can be checked from the page alone.

`data/paper/*.csv` holds the printed values of https://arxiv.org/abs/2602.09000; they are read as decimals, so that 62.10
keeps its zero and no sum is rounded twice. Each check returns `Finding`s: what is printed, what the other
printed numbers imply, whether they agree, and which innocent reading remains where they do not. A finding is
a question to the authors, not a verdict.
"""

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from itertools import combinations
from pathlib import Path

import numpy as np

from igrpo_kit.analysis.stats.intervals import wilson_interval
from igrpo_kit.core.data import data_path

PAPER = data_path("paper")
TABLES = ("table_1", "table_2", "table_3", "table_s1", "table_s3", "table_s4")
"""the tables of numbers; `table_s2` holds settings and `text` the numbers of the running text"""
BENCHMARKS: dict[str, int] = {
    "AIME25": 30,
    "AIME24": 30,
    "MATH500": 500,
    "AMC": 40,
    "GSM8K": 1319,
    "Minerva": 272,
}
"""Problems per benchmark, from the data sets. The AMC set the paper cites has 83; its values fit 40."""

Table = dict[str, dict[str, Decimal]]
"""row label -> column -> printed value"""


@dataclass(frozen=True)
class Finding:
    """One check: what is printed, and what the rest of the page makes of it."""

    check: str
    where: str
    printed: str
    computed: str
    agrees: bool
    innocent: str = ""
    """what could explain a disagreement without any mistake in the work"""


def _cells(name: str, folder: str | Path) -> dict[str, dict[str, str]]:
    path = Path(folder) / f"{name}.csv"
    with open(path, encoding="utf-8", newline="") as file:
        head, *lines = list(csv.reader(file)) or [[]]
    if head[:1] != ["row"] or len(set(head)) != len(head) or len(head) < 2:
        raise ValueError(f"{path}: the head must be 'row' and the columns' names, each once, got {head}")
    rows: dict[str, dict[str, str]] = {}
    for number, line in enumerate(lines, start=2):
        if len(line) != len(head) or not all(cell.strip() for cell in line):
            raise ValueError(f"{path}, line {number}: {len(head)} filled cells are needed, got {line}")
        if line[0] in rows:
            raise ValueError(f"{path}, line {number}: there is a row {line[0]!r} already")
        rows[line[0]] = dict(zip(head[1:], line[1:], strict=True))
    return rows


def _decimal(cell: str, where: str) -> Decimal:
    try:
        value = Decimal(cell)
    except InvalidOperation:
        raise ValueError(f"{where}: not a number, {cell!r}") from None
    if not value.is_finite():
        raise ValueError(f"{where}: not a finite number, {cell!r}")
    return value


def load_table(name: str, folder: str | Path = PAPER) -> Table:
    """A table of the paper by its file's name (`TABLES`): row label -> column -> printed value.

    Raises FileNotFoundError, and ValueError naming file and line or row: cells that are missing or not
    numbers, rows or columns that are there twice.
    """
    return {
        row: {
            c: _decimal(cell, f"{Path(folder, name)}.csv, row {row!r}, column {c!r}")
            for c, cell in cells.items()
        }
        for row, cells in _cells(name, folder).items()
    }


def load_settings(folder: str | Path = PAPER) -> dict[str, str]:
    """Table S.2: hyperparameter -> value as printed. Raises as `load_table` does."""
    return {row: cells["Value"] for row, cells in _cells("table_s2", folder).items()}


def load_text(folder: str | Path = PAPER) -> dict[str, Decimal]:
    """Numbers of the running text by what they count (`text.csv`). Raises as `load_table` does."""
    return {
        row: _decimal(cells["Value"], f"{Path(folder, 'text')}.csv, row {row!r}")
        for row, cells in _cells("text", folder).items()
    }


def half_unit(printed: Decimal) -> Decimal:
    """Half of the last printed digit: how far rounding alone may have moved a value."""
    exponent = printed.as_tuple().exponent
    assert isinstance(exponent, int)  # loaders let finite numbers through only
    return Decimal(5).scaleb(exponent - 1)


# ------------------------------------------------------------------------------- sums and copies


def row_means(table: Table, where: str, average: str = "Avg") -> Iterator[Finding]:
    """Each printed average against the mean of its row's other cells, all of them rounded.

    They agree where the gap is within half a unit for the average and half a unit for the cells' mean.
    """
    for row, cells in table.items():
        values = [value for column, value in cells.items() if column != average]
        mean, printed = sum(values, Decimal(0)) / len(values), cells[average]
        slack = half_unit(printed) + sum(map(half_unit, values), Decimal(0)) / len(values)
        yield Finding(
            "row mean",
            f"{where}, {row}",
            str(printed),
            f"the columns average to {mean:.3f}",
            abs(printed - mean) <= slack,
            "a value left from an earlier version of the table, in the average or in a column",
        )


def differences(table: Table, where: str) -> Iterator[Finding]:
    """Each printed Δ against the two columns before it."""
    for row, cells in table.items():
        before, after, printed = cells.values()
        slack = half_unit(printed) + half_unit(before) + half_unit(after)
        computed = after - before
        agrees = abs(printed - computed) <= slack
        yield Finding("difference", f"{where}, {row}", str(printed), f"{computed:+}", agrees)


def model_and_method(row: str) -> tuple[str, str]:
    """ "X + GRPO" -> ("X", "GRPO"); a row without a method is ("X", "base")."""
    model, _, method = row.partition(" + ")
    return model, method or "base"


def repeated_cells(table: Table, where: str, at_least: int = 2) -> Iterator[Finding]:
    """Pairs of rows that share `at_least` values, column by column; the average is left out.

    Coarse benchmarks repeat by chance (AMC has 41 possible single-run values), so one shared cell is nothing.
    """
    for (a, cells_a), (b, cells_b) in combinations(table.items(), 2):
        columns = [c for c in cells_a if c != "Avg" and cells_a[c] == cells_b[c]]
        if len(columns) >= at_least:
            yield Finding(
                "repeated cells",
                f"{where}: {a} / {b}",
                ", ".join(f"{c} {cells_a[c]}" for c in columns),
                f"{len(columns)} of {len(cells_a) - 1} columns are the same in both rows",
                False,
                "a row filled in from the wrong column of a log, or one model evaluated under both names",
            )


# ------------------------------------------------------------------------------- which values can be


def reachable(printed: Decimal, trials: int) -> bool:
    """Whether some k of `trials` right answers is, in percent and rounded, the printed value (GRIM).

    Brown and Heathers (2017): a mean of whole numbers lies on a grid. Rounding half up and half to even are
    both allowed. Raises ValueError for trials below 1 or a value outside 0 to 100.
    """
    if trials < 1 or not 0 <= printed <= 100:
        raise ValueError(f"a percentage and at least one trial are needed, got {printed} and {trials}")
    value, slack = Fraction(printed), Fraction(half_unit(printed))
    lowest = math.ceil((value - slack) * trials / 100)
    return lowest <= math.floor((value + slack) * trials / 100)


def reachability(
    table: Table, where: str, runs: Mapping[str, int], problems: Mapping[str, int] = BENCHMARKS
) -> Iterator[Finding]:
    """Each cell against the percentages that k of problems * runs can give, and those of a single run."""
    for row, cells in table.items():
        for column, n in problems.items():
            printed, stated = cells[column], runs[column]
            single = "is" if reachable(printed, n) else "is not"
            yield Finding(
                "reachable",
                f"{where}, {row}, {column}",
                str(printed),
                f"multiples of 1/({n} x {stated}); {single} a value of one run",
                reachable(printed, n * stated),
                "runs rounded before averaging, another number of runs, or a cell quoted from elsewhere",
            )


@dataclass(frozen=True)
class Count:
    """How many cells have a property, how many would by chance, and the chance of at least so many."""

    hits: int
    cells: int
    expected: float
    chance: float


def _hundredths(trials: int) -> np.ndarray:
    """The reachable percentages as whole hundredths; what Decimal rounds half to even, too."""
    return np.rint(10_000 * np.arange(trials + 1) / trials).astype(np.int64)


def _count(cells: Sequence[tuple[bool, np.ndarray, np.ndarray]]) -> Count:
    """Exact tail of the sum of independent cells: (hit, values a cell may take, which of them would hit)."""
    shares = [float(np.isin(values, hitting).mean()) for _, values, hitting in cells]
    hits, distribution = sum(hit for hit, _, _ in cells), np.array([1.0])
    for share in shares:
        distribution = np.convolve(distribution, [1 - share, share])
    return Count(hits, len(cells), sum(shares), float(distribution[hits:].sum()))


def _near(trials: int, printed: Decimal) -> np.ndarray:
    values = _hundredths(trials)
    return values[np.abs(values / 100 - float(printed)) <= 5]


def round_digits(table: Table, rows: Sequence[str], runs: Mapping[str, int]) -> Count:
    """How many cells of `rows` are multiples of 0.05, against chance.

    By chance means: each cell, on its own, any of the values within 5 points of it that k of problems * runs
    can give. Where such a grid itself favors round values, that is allowed for. Choosing the rows *because*
    they look round is not.
    """
    cells = []
    for row in rows:
        for column, n in BENCHMARKS.items():
            values = _near(n * runs[column], table[row][column])
            cells.append((table[row][column] * 100 % 5 == 0, values, values[values % 5 == 0]))
    return _count(cells)


def single_run_values(table: Table, rows: Sequence[str], runs: Mapping[str, int]) -> Count:
    """How many cells of `rows` one run alone can give, against chance as in `round_digits`, AIME left out."""
    cells = []
    for row in rows:
        for column, n in BENCHMARKS.items():
            if not column.startswith("AIME"):
                printed = table[row][column]
                hit = reachable(printed, n)
                cells.append((hit, _near(n * runs[column], printed), _hundredths(n)))
    return _count(cells)


# ------------------------------------------------------------------------------- how sure


def binomial_se(percent: Decimal | float, trials: int) -> float:
    """sqrt(p (1 - p) / trials), in percentage points.

    With trials = problems * runs it is the largest the sampling error can be for these very problems
    (problems that differ in difficulty vary less); with trials = problems, the largest for other problems of
    the kind.
    """
    p = float(percent) / 100
    return 100 * math.sqrt(p * (1 - p) / trials)


@dataclass(frozen=True)
class Gap:
    """A difference of two printed scores, in points, beside two standard errors of it."""

    model: str
    benchmark: str
    points: Decimal
    sampling_se: float
    """other answers to the same problems; an upper bound"""
    problems_se: float
    """other problems of the same kind, scores independent; an upper bound"""


def gaps(table: Table, runs: Mapping[str, int], method: str = "iGRPO", against: str = "GRPO") -> list[Gap]:
    """method minus against for each model and benchmark, with standard errors the paper does not give.

    Both methods are scored on the same problems: a paired analysis would have a smaller error than
    `problems_se`, and needs the scores per problem. Neither error holds the choice of the training seed.
    """
    found = []
    for row, cells in table.items():
        model, label = model_and_method(row)
        other = table.get(f"{model} + {against}")
        if label != method or other is None:
            continue
        for column, n in BENCHMARKS.items():
            errors = [
                math.hypot(binomial_se(cells[column], trials), binomial_se(other[column], trials))
                for trials in (n * runs[column], n)
            ]
            found.append(Gap(model, column, cells[column] - other[column], *errors))
    return found


def stated_runs(text: Mapping[str, Decimal]) -> dict[str, int]:
    """Runs per benchmark as Section 4.1 states them."""
    aime, other = int(text["runs per AIME score"]), int(text["runs per other score"])
    return {name: aime if name.startswith("AIME") else other for name in BENCHMARKS}


def pass_at_n(text: Mapping[str, Decimal]) -> Iterator[Finding]:
    """The pass@N values of Appendix B.1 as k of 30 problems, with Wilson's interval for k of 30."""
    for quantity, value in text.items():
        if "pass@" not in quantity or quantity.endswith("pass@1"):
            continue
        k = round(value * 30 / 100)
        interval = wilson_interval(k, 30)
        yield Finding(
            "pass@N",
            f"Appendix B.1, {quantity}",
            str(value),
            f"{k} of 30, 95% interval {100 * interval.low:.0f} to {100 * interval.high:.0f}",
            not reachable(value, 30),
            "drawn once for a figure that shows a trend; the unbiased estimator is seldom a k of 30",
        )


# ------------------------------------------------------------------------------- batches and hours


def _with_slack(numerator: Decimal, denominator: Decimal) -> tuple[Decimal, Decimal, Decimal]:
    """A ratio, and the least and the most it can be when both were rounded."""
    a, b = half_unit(numerator), half_unit(denominator)
    return numerator / denominator, (numerator - a) / (denominator + b), (numerator + a) / (denominator - b)


def batches(settings: Mapping[str, str], text: Mapping[str, Decimal]) -> list[Finding]:
    """Sections 4.1 and C on the batch: completions per step, and prompts and steps under each reading."""
    per_device = int(settings["per_device_train_batch_size"])
    accumulation = int(settings["gradient_accumulation_steps"])
    G, problems = int(settings["num_generations"]), int(text["training problems"])
    seven = per_device * accumulation * int(text["training GPUs (7B)"])
    fourteen = int(text["per-device batch size (14B)"]) * accumulation * int(text["training GPUs (14B)"])
    stated, alternative = int(text["batch size"]), int(text["global batch size"])
    grpo, igrpo = stated // int(text["completions per prompt"]), stated // G
    return [
        Finding("batch", "Section 4.1, 7B", str(stated), f"{seven} completions a step", seven == stated),
        Finding(
            "batch", "Section 4.1, 14B", str(stated), f"{fourteen} completions a step", fourteen == stated
        ),
        Finding(
            "batch",
            "Appendix C, global batch",
            str(alternative),
            f"{stated} completions are {grpo} prompts of {text['completions per prompt']}, or {igrpo} of {G}",
            alternative == igrpo,
            f"{alternative} counts prompts, as GRPO has them; then iGRPO's update holds {alternative * G} "
            f"completions, not {stated}",
        ),
        Finding(
            "steps",
            "Section 4.1, one epoch",
            "one epoch for either method",
            f"{problems / grpo:.1f} steps at {grpo} prompts, {problems / igrpo:.1f} at {igrpo}",
            False,
            "equal steps with updates of half the size; the paper does not say which",
        ),
    ]


def hours(table: Table, settings: Mapping[str, str], text: Mapping[str, Decimal]) -> Iterator[Finding]:
    """Table S.3: its GPU-hours, its throughput and one epoch, three ways to say how long a run took."""
    grpo, igrpo = table["GRPO"], table["iGRPO"]
    rate, time = "Throughput (Samples/sec)", "Total GPU Hours"
    longer, low_h, high_h = _with_slack(igrpo[time], grpo[time])
    slower, low_t, high_t = _with_slack(grpo[rate], igrpo[rate])
    yield Finding(
        "hours",
        "Table S.3, iGRPO over GRPO",
        f"{longer:.3f} in GPU-hours",
        f"{slower:.3f} in seconds per sample, {low_t:.3f} to {high_t:.3f} before rounding",
        bool(low_t <= high_h and low_h <= high_t),
        "throughput read at one moment, hours over a run; or measured with completions cut at "
        f"{text['maximum completion length while measuring']} instead of "
        f"{settings['max_completion_length']} tokens",
    )
    for method, cells in table.items():
        seconds = cells[time] * 3600 / text["all GPUs (7B)"]
        share = half_unit(cells[rate]) / cells[rate] + half_unit(cells[time]) / cells[time]
        samples, epoch = seconds * cells[rate], text["training problems"]
        per_step = int(settings["per_device_train_batch_size"]) * int(text["training GPUs (7B)"])
        yield Finding(
            "hours",
            f"Table S.3, {method}",
            f"{cells[rate]} samples/s for {cells[time]} GPU-hours on {text['all GPUs (7B)']} GPUs",
            f"{samples:.0f} samples, {samples / per_step:.1f} steps of {per_step}; the epoch has {epoch}",
            abs(samples - epoch) <= samples * share,
            "hours that include starting, saving or evaluating; throughput that varied over the run",
        )


def memory(table: Table, bytes_per_token: float) -> Finding:
    """Table S.3's difference in peak memory, in tokens of draft at `bytes_per_token` (see `cost`)."""
    column = "Peak Memory (GB)"
    difference = table["iGRPO"][column] - table["GRPO"][column]
    return Finding(
        "memory",
        "Table S.3, peak memory",
        f"{difference:+} GB for the longer prompts",
        f"{float(difference) * 1e9 / bytes_per_token:.1f} tokens at {bytes_per_token / 1e6:.1f} MB a token",
        False,
        "prompts padded or cut to one length for both methods, or a peak set outside the update",
    )


def audit(folder: str | Path = PAPER) -> list[Finding]:
    """Every check that needs nothing but the page, in the order of the paper.

    Raises as `load_table` does.
    """
    tables = {name: load_table(name, folder) for name in TABLES}
    settings, text = load_settings(folder), load_text(folder)
    by_method = {
        column: {row: cells[column] for row, cells in tables["table_3"].items()}
        for column in ("Rule-based", "GPT-5 Judge")
    }
    return [
        *row_means(tables["table_1"], "Table 1"),
        *repeated_cells(tables["table_1"], "Table 1"),
        *reachability(tables["table_1"], "Table 1", stated_runs(text)),
        *differences(tables["table_2"], "Table 2"),
        *row_means(by_method, "Table 3", average="Average"),
        *differences(tables["table_3"], "Table 3"),
        *row_means(tables["table_s1"], "Table S.1"),
        *pass_at_n(text),
        *batches(settings, text),
        *hours(tables["table_s3"], settings, text),
    ]
