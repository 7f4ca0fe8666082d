"""The paper's tables as data, and an audit of the printed numbers.

`data/paper/*.csv` holds the printed values of https://arxiv.org/abs/2602.09000. They are read as decimals, so
that 62.10 keeps its zero and sums are not rounded twice. Each check returns `Finding`s: the printed value,
the value implied by the other printed numbers, whether they agree, and otherwise an explanation that assumes
no error. A finding is a question to the authors, not a verdict.
"""

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from functools import reduce
from itertools import combinations
from operator import or_
from pathlib import Path

import numpy as np

from igrpo_kit.analysis.stats.intervals import wilson_interval
from igrpo_kit.core.data import data_path

TABLES = ("table_1", "table_2", "table_3", "table_s1", "table_s3", "table_s4")
"""the tables of numbers; `table_s2` holds settings, and `text` the numbers of the running text"""
BENCHMARKS: dict[str, int] = {
    "AIME25": 30,
    "AIME24": 30,
    "MATH500": 500,
    "AMC": 40,
    "GSM8K": 1319,
    "Minerva": 272,
}
"""Problems per benchmark, from the data sets. The AMC set that the paper cites has 83, and none of the 19
values of Table 1 is possible there. With 40 problems (AMC23) 12 are, so 40 was taken *because* values fit: a
check of AMC cells assumes it."""

Table = dict[str, dict[str, Decimal]]
"""row label -> column -> printed value"""


@dataclass(frozen=True)
class Finding:
    """The result of one check: a printed value and the value implied by other printed numbers."""

    check: str
    where: str
    printed: str
    computed: str
    agrees: bool
    innocent: str = ""
    """a possible explanation of a disagreement that assumes no error in the work"""


def _cells(name: str, folder: str | Path | None) -> dict[str, dict[str, str]]:
    path = Path(folder or data_path("paper")) / f"{name}.csv"
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


def load_table(name: str, folder: str | Path | None = None) -> Table:
    """Read a table of the paper: row label -> column -> printed value.

    Args:
        name: one of `TABLES`.
        folder: folder of the CSV files.

    Raises:
        FileNotFoundError: there is no such table.
        ValueError: cells are missing or not numbers, or a row or column occurs twice (the message has file
            and line or row).
    """
    return {
        row: {c: _decimal(cell, f"{name}.csv, row {row!r}, column {c!r}") for c, cell in cells.items()}
        for row, cells in _cells(name, folder).items()
    }


def load_settings(folder: str | Path | None = None) -> dict[str, str]:
    """Table S.2: hyperparameter -> printed value. Raises as `load_table`."""
    return {row: cells["Value"] for row, cells in _cells("table_s2", folder).items()}


def load_text(folder: str | Path | None = None) -> dict[str, Decimal]:
    """Numbers in the running text by description (`text.csv`). Raises as `load_table`."""
    return {
        row: _decimal(cells["Value"], f"text.csv, row {row!r}")
        for row, cells in _cells("text", folder).items()
    }


def half_unit(printed: Decimal) -> Decimal:
    """Half a unit of the last printed digit: the largest change by rounding."""
    exponent = printed.as_tuple().exponent
    assert isinstance(exponent, int)  # the loaders accept only finite numbers
    return Decimal(5).scaleb(exponent - 1)


# ------------------------------------------------------------------------------- sums and copies


def row_means(table: Table, where: str, average: str = "Avg") -> Iterator[Finding]:
    """Compare each printed average with the mean of the other cells in its row.

    They agree if the difference is at most half a unit of the average plus half a unit of the cells' mean.

    Args:
        table: printed values.
        where: name of the table, for the findings.
        average: column of the average.
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
    """Compare each printed Δ with the difference of the two columns before it."""
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
    """Pairs of rows that share at least `at_least` values in the same columns, not counting the average.

    Coarse benchmarks repeat by chance (AMC has 41 possible single-run values), so a single shared cell is not
    reported.

    Args:
        table: printed values.
        where: name of the table, for the findings.
        at_least: minimum number of shared values.
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


# ------------------------------------------------------------------------------- possible values


def reachable(printed: Decimal, trials: int) -> bool:
    """Whether k correct of `trials` answers give the printed percentage, after rounding, for some k (GRIM).

    A mean of whole numbers lies on a grid (Brown and Heathers, 2017,
    https://doi.org/10.1177/1948550616673876). Rounding half up and half to even are both accepted.

    Args:
        printed: percentage.
        trials: number of answers.

    Raises:
        ValueError: trials is below 1, or the value is not within 0 to 100.
    """
    if trials < 1 or not 0 <= printed <= 100:
        raise ValueError(f"a percentage and at least one trial are needed, got {printed} and {trials}")
    value, slack = Fraction(printed), Fraction(half_unit(printed))
    lowest = math.ceil((value - slack) * trials / 100)
    return lowest <= math.floor((value + slack) * trials / 100)


def always_reachable(printed: Decimal, trials: int) -> bool:
    """Whether every percentage with the digits of `printed` is reachable: GRIM cannot fail there.

    The grid 100 / trials is then at most one unit of the last printed digit, 2 * `half_unit`.
    """
    return trials * half_unit(printed) >= 50


def reachable_in_rounded_runs(printed: Decimal, problems: int, runs: int) -> bool:
    """Whether `printed` is a mean of `runs` scores, each a k of `problems` in percent rounded to one decimal.

    Args:
        printed: percentage.
        problems: number of problems.
        runs: number of runs that were averaged.
    """
    tenths = {round(Fraction(1000 * k, problems)) for k in range(problems + 1)}
    sums = 1  # bit t is set if t tenths of a percent are a sum of the scores so far
    for _ in range(runs):
        sums = reduce(or_, (sums << score for score in tenths))
    low, high = (10 * runs * (printed + sign * half_unit(printed)) for sign in (-1, 1))
    return any(sums >> t & 1 for t in range(max(math.ceil(low), 0), math.floor(high) + 1))


def reachability(
    table: Table, where: str, runs: Mapping[str, int], problems: Mapping[str, int] = BENCHMARKS
) -> Iterator[Finding]:
    """Compare each cell with the percentages possible for k of problems * runs, and for k of a single run.

    Cells that cannot fail (`always_reachable`) are left out.

    Args:
        table: printed values.
        where: name of the table, for the findings.
        runs: stated number of runs, by benchmark.
        problems: number of problems, by benchmark.
    """
    for row, cells in table.items():
        for column, n in problems.items():
            printed, stated = cells[column], runs[column]
            if always_reachable(printed, n * stated):
                continue
            agrees = reachable(printed, n * stated)
            rounded = not agrees and reachable_in_rounded_runs(printed, n, stated)
            single = "is" if reachable(printed, n) else "is not"
            yield Finding(
                "reachable",
                f"{where}, {row}, {column}",
                str(printed),
                f"multiples of 1/({n} x {stated}); {single} a value of one run",
                agrees,
                "each run rounded to one decimal before averaging"
                if rounded
                else "another number of runs or of problems, or a cell quoted from elsewhere",
            )


@dataclass(frozen=True)
class Count:
    """Number of cells with a property, the number expected by chance, and the probability of as many."""

    hits: int
    cells: int
    expected: float
    chance: float


def _hundredths(trials: int) -> np.ndarray:
    """The possible percentages in whole hundredths, rounded half to even as in Decimal."""
    return np.rint(10_000 * np.arange(trials + 1) / trials).astype(np.int64)


def _count(cells: Sequence[tuple[bool, np.ndarray, np.ndarray]]) -> Count:
    """Exact tail of a sum of independent cells: (hit, values a cell may take, values that would hit)."""
    shares = [float(np.isin(values, hitting).mean()) for _, values, hitting in cells]
    hits, distribution = sum(hit for hit, _, _ in cells), np.array([1.0])
    for share in shares:
        distribution = np.convolve(distribution, [1 - share, share])
    return Count(hits, len(cells), sum(shares), float(distribution[hits:].sum()))


def _near(trials: int, printed: Decimal) -> np.ndarray:
    values = _hundredths(trials)
    return values[np.abs(values / 100 - float(printed)) <= 5]


def round_digits(table: Table, rows: Sequence[str], runs: Mapping[str, int]) -> Count:
    """Number of cells in `rows` that are multiples of 0.05, compared with chance.

    Chance: each cell independently takes any value within 5 points of its own that is possible for k of
    problems * runs. This accounts for grids that favor round values, but not for choosing the rows *because*
    they look round.

    Args:
        table: printed values.
        rows: the rows to count.
        runs: number of runs, by benchmark.
    """
    cells = []
    for row in rows:
        for column, n in BENCHMARKS.items():
            values = _near(n * runs[column], table[row][column])
            cells.append((table[row][column] * 100 % 5 == 0, values, values[values % 5 == 0]))
    return _count(cells)


def single_run_values(table: Table, rows: Sequence[str], runs: Mapping[str, int]) -> Count:
    """Number of cells in `rows` possible for a single run, compared with chance as in `round_digits`.

    Not counted are AIME, and AMC, whose number of problems was chosen because such values fit (`BENCHMARKS`).

    Args:
        table: printed values.
        rows: the rows to count.
        runs: number of runs, by benchmark.
    """
    cells = []
    for row in rows:
        for column, n in BENCHMARKS.items():
            if not column.startswith(("AIME", "AMC")):
                printed = table[row][column]
                hit = reachable(printed, n)
                cells.append((hit, _near(n * runs[column], printed), _hundredths(n)))
    return _count(cells)


# ------------------------------------------------------------------------------- uncertainty


def binomial_se(percent: Decimal | float, trials: int) -> float:
    """Standard error sqrt(p (1 - p) / trials), in percentage points.

    With trials = problems * runs, it is an upper bound of the sampling error for these problems (the error is
    smaller if problems differ in difficulty). With trials = problems, it is an upper bound of the error for
    other problems of the same kind.

    Args:
        percent: p in percent.
        trials: number of trials.
    """
    p = float(percent) / 100
    return 100 * math.sqrt(p * (1 - p) / trials)


@dataclass(frozen=True)
class Gap:
    """Difference of two printed scores in points, with two standard errors."""

    model: str
    benchmark: str
    points: Decimal
    sampling_se: float
    """for other answers to the same problems; an upper bound"""
    problems_se: float
    """for other problems of the same kind, with independent scores; an upper bound"""


def gaps(table: Table, runs: Mapping[str, int], method: str = "iGRPO", against: str = "GRPO") -> list[Gap]:
    """`method` minus `against` for each model and benchmark, with standard errors (not in the paper).

    Both methods are scored on the same problems, so a paired analysis would have a smaller error than
    `problems_se`, but needs the scores per problem. Neither error includes the variance between training
    seeds.

    Args:
        table: printed values.
        runs: number of runs, by benchmark.
        method: the method's name in row labels.
        against: name of the method to compare with.
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
    """Runs per benchmark, as stated in Section 4.1."""
    aime, other = int(text["runs per AIME score"]), int(text["runs per other score"])
    return {name: aime if name.startswith("AIME") else other for name in BENCHMARKS}


def pass_at_n(text: Mapping[str, Decimal]) -> Iterator[Finding]:
    """Check the pass@N values of Appendix B.1 as k of 30 problems, with Wilson's interval."""
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
    """A ratio, and its lowest and highest value before both numbers were rounded."""
    a, b = half_unit(numerator), half_unit(denominator)
    return numerator / denominator, (numerator - a) / (denominator + b), (numerator + a) / (denominator - b)


def batches(settings: Mapping[str, str], text: Mapping[str, Decimal]) -> Iterator[Finding]:
    """Check that per-device batch, devices and accumulation give the batches that the text states.

    The two stated batches agree: Appendix C's is per-device batch * devices, and Section 4.1's is that times
    the accumulation. Table S.2 gives the accumulation for 7B; for 14B it is assumed to be the same.

    Args:
        settings: Table S.2.
        text: numbers in the running text.
    """
    accumulation = int(settings["gradient_accumulation_steps"])
    per_device = {
        "7B": int(settings["per_device_train_batch_size"]),
        "14B": int(text["per-device batch size (14B)"]),
    }
    for size, rows in per_device.items():
        devices = int(text[f"training GPUs ({size})"])
        at_once, stated = rows * devices, int(text["global batch size"])
        yield Finding(
            "batch",
            f"Appendix C, {size}",
            str(stated),
            f"{rows} per device x {devices} GPUs = {at_once}",
            at_once == stated,
        )
        update, stated = at_once * accumulation, int(text["batch size"])
        yield Finding(
            "batch",
            f"Section 4.1, {size}",
            str(stated),
            f"{at_once} x accumulation {accumulation} = {update} completions an update",
            update == stated,
        )


def implied_steps(
    table: Table, settings: Mapping[str, str], text: Mapping[str, Decimal]
) -> dict[str, tuple[Decimal, Decimal, Decimal]]:
    """Optimizer steps of the runs of Table S.3: value, lowest and highest before rounding, by method.

    Appendix D.1 defines throughput as step * per-device batch * devices / elapsed seconds, so

        steps = throughput * (GPU-hours * 3600 / all GPUs) / (per-device batch * devices)

    Args:
        table: Table S.3.
        settings: Table S.2.
        text: numbers in the running text.
    """
    at_once = int(settings["per_device_train_batch_size"]) * text["training GPUs (7B)"]
    scale = 3600 / text["all GPUs (7B)"] / at_once
    found = {}
    for method, cells in table.items():
        rate, time = cells["Throughput (Samples/sec)"], cells["Total GPU Hours"]
        slack = [(sign * half_unit(rate), sign * half_unit(time)) for sign in (0, -1, 1)]
        value, low, high = (scale * (rate + r) * (time + t) for r, t in slack)
        found[method] = (value, low, high)
    return found


def steps(table: Table, settings: Mapping[str, str], text: Mapping[str, Decimal]) -> Iterator[Finding]:
    """Compare the steps that Table S.3 implies with an epoch under Table S.2's flags.

    Args:
        table: Table S.3.
        settings: Table S.2.
        text: numbers in the running text.
    """
    batch, problems = int(text["batch size"]), text["training problems"]
    groups = {"GRPO": int(text["completions per prompt"]), "iGRPO": int(settings["num_generations"])}
    perhaps = {
        "GRPO": "hours that include starting or saving, or throughput read at one moment",
        "iGRPO": f"a step of {batch // groups['GRPO']} prompts, as GRPO's; its {batch} completions then "
        "include the drafts, which are not trained",
    }
    for method, (value, low, high) in implied_steps(table, settings, text).items():
        prompts = batch // groups[method]
        epoch = problems / prompts
        yield Finding(
            "steps",
            f"Table S.3, {method}",
            f"{value:.1f} steps, {low:.1f} to {high:.1f} before rounding",
            f"an epoch is {epoch:.1f} steps, if {batch} completions are {prompts} groups of {groups[method]}",
            low <= epoch <= high,
            perhaps[method],
        )


def hours(table: Table, settings: Mapping[str, str], text: Mapping[str, Decimal]) -> Finding:
    """Check Table S.3: iGRPO over GRPO, in GPU-hours and in throughput.

    Args:
        table: Table S.3.
        settings: Table S.2.
        text: numbers in the running text.
    """
    grpo, igrpo = table["GRPO"], table["iGRPO"]
    rate, time = "Throughput (Samples/sec)", "Total GPU Hours"
    longer, low_h, high_h = _with_slack(igrpo[time], grpo[time])
    slower, low_t, high_t = _with_slack(grpo[rate], igrpo[rate])
    return Finding(
        "hours",
        "Table S.3, iGRPO over GRPO",
        f"{longer:.3f} in GPU-hours",
        f"{slower:.3f} in seconds per sample, {low_t:.3f} to {high_t:.3f} before rounding",
        bool(low_t <= high_h and low_h <= high_t),
        "throughput read at one moment, hours over a run; or hours of runs with completions of up to "
        f"{settings['max_completion_length']} tokens, and throughput with at most "
        f"{text['maximum completion length while measuring']}",
    )


def memory(table: Table, bytes_per_token: float) -> Finding:
    """The difference in peak memory in Table S.3, in draft tokens at `bytes_per_token` (see `cost`)."""
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


def audit(folder: str | Path | None = None) -> list[Finding]:
    """All checks that need only the printed numbers, in the order of the paper. Raises as `load_table`."""
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
        *steps(tables["table_s3"], settings, text),
        hours(tables["table_s3"], settings, text),
    ]
