"""The tables against numbers typed from the page; the audit against hand counts and planted faults."""

import shutil
from collections import Counter
from decimal import Decimal
from itertools import product

import pytest

from igrpo_kit.analysis.paper import (
    BENCHMARKS,
    TABLES,
    always_reachable,
    audit,
    batches,
    binomial_se,
    differences,
    gaps,
    half_unit,
    hours,
    implied_steps,
    load_settings,
    load_table,
    load_text,
    memory,
    model_and_method,
    pass_at_n,
    reachable,
    reachable_in_rounded_runs,
    repeated_cells,
    round_digits,
    row_means,
    single_run_values,
    stated_runs,
    steps,
)
from igrpo_kit.core.data import data_path

# Typed from the page, not from the files: (file, row, column, printed).
SPOTS = """
table_1|Nemotron-H-8B-Base-8K|AIME25|6.20
table_1|Nemotron-H-8B-Base-8K|Avg|29.65
table_1|Nemotron-H-8B-Base-8K + GRPO|GSM8K|81.93
table_1|Nemotron-H-8B-Base-8K + Self-Verification|Minerva|31.10
table_1|Nemotron-H-8B-Base-8K + Critique-GRPO|MATH500|76.05
table_1|Nemotron-H-8B-Base-8K + iGRPO|AMC|48.75
table_1|DeepSeek-R1-Distill-Qwen-7B|AIME24|54.40
table_1|DeepSeek-R1-Distill-Qwen-7B|Avg|61.93
table_1|DeepSeek-R1-Distill-Qwen-7B + GRPO|Minerva|40.44
table_1|DeepSeek-R1-Distill-Qwen-7B + Self-Verification|AMC|92.50
table_1|DeepSeek-R1-Distill-Qwen-7B + Critique-GRPO|AIME25|39.60
table_1|DeepSeek-R1-Distill-Qwen-7B + iGRPO|AIME24|56.30
table_1|DeepSeek-R1-Distill-Qwen-7B + iGRPO|Avg|69.87
table_1|OpenMath-Nemotron-7B|GSM8K|90.52
table_1|OpenMath-Nemotron-7B + GRPO|AIME24|73.62
table_1|OpenMath-Nemotron-7B + iGRPO|Minerva|34.94
table_1|DeepSeek-R1-Distill-Qwen-14B|MATH500|93.10
table_1|DeepSeek-R1-Distill-Qwen-14B + GRPO|Avg|71.29
table_1|DeepSeek-R1-Distill-Qwen-14B + iGRPO|AMC|93.45
table_1|OpenMath-Nemotron-14B|AIME25|61.18
table_1|OpenMath-Nemotron-14B + GRPO|AIME24|74.79
table_1|OpenMath-Nemotron-14B + iGRPO|Avg|78.00
table_2|DAPO|Base Avg|69.74
table_2|GSPO|+ iGRPO Avg|70.31
table_2|GSPO|Δ|1.11
table_3|AIME24|GPT-5 Judge|57.45
table_3|Minerva|Δ|1.34
table_3|Average|Rule-based|69.87
table_s1|OpenMath-Nemotron-14B + iGRPO|AIME25|66.04
table_s1|OpenMath-Nemotron-14B + iGRPO|Avg|78.24
table_s3|GRPO|Peak Memory (GB)|54.9286
table_s3|iGRPO|Peak Memory (GB)|54.9349
table_s3|iGRPO|Throughput (Samples/sec)|0.34
table_s3|GRPO|Total GPU Hours|83.3
table_s4|beta 0.0001|Score (%)|70.23
table_s4|beta 0.01|Score (%)|69.91
table_s4|completions 4|Score (%)|67.79
table_s4|completions 32|Score (%)|70.33
"""


@pytest.mark.parametrize("spot", SPOTS.split("\n")[1:-1])
def test_the_tables_hold_what_the_page_says(spot):
    name, row, column, printed = spot.split("|")
    value = load_table(name)[row][column]
    assert str(value) == printed  # digits and all: 62.10 is not 62.1


def test_the_tables_are_whole():
    assert {name: (len(load_table(name)), len(next(iter(load_table(name).values())))) for name in TABLES} == {
        "table_1": (19, 7), "table_2": (2, 3), "table_3": (7, 3),
        "table_s1": (2, 7), "table_s3": (2, 3), "table_s4": (8, 1),
    }  # fmt: skip


def test_settings_and_text():
    settings, text = load_settings(), load_text()
    assert len(settings) == 17
    assert settings["num_generations"] == "4"
    assert settings["max_completion_length"] == "4096"
    assert settings["reward_funcs"] == "accuracy, format"
    assert text["batch size"] == 1024
    assert text["global batch size"] == 128
    assert str(text["iGRPO entropy at 15 %"]) == "0.80"
    assert str(text["AIME24 of OpenReasoning-Nemotron-7B + iGRPO"]) == "85.62"
    assert stated_runs(text) == {
        "AIME25": 64, "AIME24": 64, "MATH500": 8, "AMC": 8, "GSM8K": 8, "Minerva": 8,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (("54.9349", "54,9349"), r"line 3: 4 filled cells are needed"),
        (("0.34", " "), r"line 3: 4 filled cells are needed"),
        (("0.34", "O.34"), r"row 'iGRPO', column 'Throughput \(Samples/sec\)': not a number, 'O.34'"),
        (("0.34", "nan"), r"row 'iGRPO', column .*: not a finite number"),
        (("\niGRPO", "\nGRPO"), r"line 3: there is a row 'GRPO' already"),
        (("row,", "method,"), r"the head must be 'row'"),
        (("Total GPU Hours", "Throughput (Samples/sec)"), r"the head must be 'row' and .* each once"),
    ],
)
def test_a_damaged_table_names_file_and_place(tmp_path, damage, message):
    content = (data_path("paper") / "table_s3.csv").read_text()
    assert damage[0] in content
    (tmp_path / "table_s3.csv").write_text(content.replace(*damage))
    with pytest.raises(ValueError, match=r"table_s3\.csv.*" + message):
        load_table("table_s3", tmp_path)


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"table_9\.csv"):
        load_table("table_9", tmp_path)
    (tmp_path / "table_9.csv").write_text("")
    with pytest.raises(ValueError, match=r"table_9\.csv: the head"):
        load_table("table_9", tmp_path)


def test_half_of_the_last_digit():
    assert [half_unit(Decimal(x)) for x in ("0.41", "83.3", "64", "54.9286")] == [
        Decimal("0.005"), Decimal("0.05"), Decimal("0.5"), Decimal("0.00005"),
    ]  # fmt: skip


def table(text):
    head, *lines = [line.split() for line in text.strip().splitlines()]
    return {row: dict(zip(head, map(Decimal, cells), strict=True)) for row, *cells in lines}


def test_row_means_forgive_rounding_and_nothing_else():
    rows = table("""
        a b c Avg
        right 1.00 2.00 2.00 1.67
        edge  1.00 2.00 3.00 2.01
        off   1.00 2.00 3.00 2.02
    """)
    found = list(row_means(rows, "T"))
    assert [f.agrees for f in found] == [True, True, False]
    assert found[2].where == "T, off"
    assert (found[2].printed, found[2].computed) == ("2.02", "the columns average to 2.000")
    assert found[2].innocent


def test_one_row_of_the_paper_disagrees_with_its_mean():
    findings = [f for f in audit() if f.check == "row mean"]
    assert len(findings) == 23
    (off,) = [f for f in findings if not f.agrees]
    assert off.where == "Table 1, DeepSeek-R1-Distill-Qwen-7B"
    assert (off.printed, off.computed) == ("61.93", "the columns average to 67.817")


def test_differences():
    rows = {"a": dict(zip("xyd", map(Decimal, ("69.74", "70.93", "+1.19")), strict=True))}
    assert next(differences(rows, "T")).agrees
    rows["a"]["d"] = Decimal("+1.29")
    assert not next(differences(rows, "T")).agrees
    assert all(f.agrees for f in audit() if f.check == "difference")


def test_repeated_cells():
    rows = table("a b Avg\nx 1.0 2.0 1.5\ny 1.0 2.0 9.9\nz 1.0 7.0 1.5")
    (found,) = repeated_cells(rows, "T")
    assert found.where == "T: x / y"
    assert found.printed == "a 1.0, b 2.0"
    assert len(list(repeated_cells(rows, "T", at_least=1))) == 3
    assert [f.where for f in audit() if f.check == "repeated cells"] == [
        "Table 1: OpenMath-Nemotron-7B / OpenMath-Nemotron-14B",
        "Table 1: OpenMath-Nemotron-7B + iGRPO / OpenMath-Nemotron-14B + GRPO",
    ]


@pytest.mark.parametrize(
    ("printed", "trials", "can"),
    [
        ("93.80", 500, True),  # 469
        ("92.42", 1319, True),  # 1219
        ("41.54", 272, True),  # 113
        ("95.00", 40, True),
        ("95.00", 83 * 8, False),  # 630 is 94.88, 631 is 95.03
        ("54.40", 30 * 64, False),  # 1044 is 54.375, 1045 is 54.427
        ("54.38", 30 * 64, True),
        ("0.00", 7, True),
        ("100.00", 7, True),
        ("12.5", 8, True),
        ("12.5", 1000, True),
        ("0.3", 300, True),  # 1 of 300 is 0.33
        ("0.13", 800, True),  # 1 of 800 is 0.125, rounded up
        ("0.12", 800, True),  # ... or to even
        ("0.14", 800, False),
    ],
)
def test_reachable(printed, trials, can):
    assert reachable(Decimal(printed), trials) is can


def test_reachable_against_trying_every_count():
    for n, value in product((7, 30, 83), range(0, 10_001, 13)):
        printed = Decimal(value).scaleb(-2)
        brute = any(abs(Decimal(100 * k) / n - printed) <= Decimal("0.005") for k in range(n + 1))
        assert reachable(printed, n) == brute, (n, printed)


def test_reachable_refuses_nonsense():
    for value, trials in (("101", 5), ("-1", 5), ("50", 0)):
        with pytest.raises(ValueError, match="a percentage and at least one trial"):
            reachable(Decimal(value), trials)


@pytest.mark.parametrize(
    ("printed", "trials", "always"),
    [
        ("92.42", 1319 * 8, True),  # GSM8K: the grid is 100/10552 = 0.0095
        ("41.54", 272 * 8, False),
        ("92.4", 1000, True),
        ("92.4", 999, False),
    ],
)
def test_where_grim_cannot_fail(printed, trials, always):
    assert always_reachable(Decimal(printed), trials) is always
    unit = Decimal(1).scaleb(-len(printed.split(".")[1]))
    seen = {round(Decimal(100 * k) / trials / unit) for k in range(trials + 1)}  # in units of the last digit
    assert (seen == set(range(int(100 / unit) + 1))) is always


@pytest.mark.parametrize(
    ("printed", "problems", "runs", "can"),
    [
        ("66.70", 3, 2, True),  # both runs 66.7; the unrounded mean would be 66.67
        ("66.67", 3, 2, False),
        ("50.00", 3, 2, True),  # 66.7 and 33.3
        ("83.35", 3, 2, True),  # 66.7 and 100.0
        ("92.80", 40, 8, False),  # k of 40 has one decimal already: rounding changes nothing
        ("95.00", 40, 8, True),
        ("54.40", 30, 64, True),
        ("39.10", 272, 8, True),
    ],
)
def test_runs_rounded_before_averaging(printed, problems, runs, can):
    assert reachable_in_rounded_runs(Decimal(printed), problems, runs) is can


def test_rounded_runs_against_trying_all_pairs():
    scores = [Decimal(tenths).scaleb(-1) for tenths in (0, 143, 286, 429, 571, 714, 857, 1000)]  # k of 7
    means = {(a + b) / 2 for a, b in product(scores, repeat=2)}
    for value in range(0, 10_001, 7):
        printed = Decimal(value).scaleb(-2)
        brute = any(abs(mean - printed) <= Decimal("0.005") for mean in means)
        assert reachable_in_rounded_runs(printed, 7, 2) == brute, printed


def test_cells_the_stated_runs_cannot_give():
    findings = [f for f in audit() if f.check == "reachable"]
    assert len(findings) == 19 * 5, "GSM8K cannot fail and is not counted"
    off = [f for f in findings if not f.agrees]
    assert len(off) == 35
    assert Counter((f.where.rsplit(", ", 1)[1], f.innocent.split()[0]) for f in off) == {
        ("AIME25", "each"): 11, ("AIME24", "each"): 8, ("Minerva", "each"): 9,  # each run rounded
        ("AMC", "another"): 7,  # another number of runs
    }  # fmt: skip
    of = {f.where: f for f in findings}
    assert not of["Table 1, DeepSeek-R1-Distill-Qwen-7B, AIME24"].agrees
    minerva = of["Table 1, DeepSeek-R1-Distill-Qwen-7B + iGRPO, Minerva"]
    assert minerva.agrees and minerva.computed.endswith("is a value of one run")


def test_the_rounding_of_runs_allows_nearly_every_value():
    """So that it explains all cells of AIME and Minerva is no evidence for it."""
    printed = [Decimal(value).scaleb(-2) for value in range(3000, 9900, 69)]
    allowed = {
        name: sum(reachable_in_rounded_runs(p, BENCHMARKS[name], runs) for p in printed) / len(printed)
        for name, runs in (("AIME24", 64), ("Minerva", 8), ("AMC", 8))
    }
    assert allowed["AIME24"] > 0.97 and allowed["Minerva"] == 1 and allowed["AMC"] < 0.05


def test_the_number_of_amc_problems_was_chosen_by_its_values():
    values = [cells["AMC"] for cells in load_table("table_1").values()]
    assert {n: sum(reachable(value, n * 8) for value in values) for n in (83, 40)} == {83: 0, 40: 12}


def rows_of(*methods):
    return [row for row in load_table("table_1") if model_and_method(row)[1] in methods]


def test_round_digits_allow_for_each_columns_grid():
    table_1, runs = load_table("table_1"), stated_runs(load_text())
    baselines = round_digits(table_1, rows_of("Self-Verification", "Critique-GRPO"), runs)
    assert (baselines.hits, baselines.cells) == (23, 24)
    assert baselines.chance < 1e-9
    # One run of 40 problems gives multiples of 2.5 only: round digits are then no surprise at all.
    amc = {"x": {name: Decimal("50.00") for name in BENCHMARKS}}
    certain = round_digits(amc, ["x"], {**dict.fromkeys(BENCHMARKS, 64), "AMC": 1})
    assert 1 < certain.expected < 3
    assert certain.hits == 6


def test_single_run_values():
    table_1, runs = load_table("table_1"), stated_runs(load_text())
    trained = single_run_values(table_1, rows_of("GRPO", "iGRPO"), runs)
    assert (trained.hits, trained.cells) == (16, 30)  # without AMC, whose n was chosen to fit
    assert trained.expected == pytest.approx(4, abs=0.5)
    assert trained.chance < 1e-6
    assert single_run_values(table_1, rows_of("iGRPO")[1:2], runs).hits == 3  # R1-7B: 469, 1219, 113


def test_chance_is_exact():
    """Two cells, each hit with 1/8 on MATH500's grid of 8 runs: 1 - (7/8)^2, but for the window's edges."""
    runs = dict.fromkeys(BENCHMARKS, 8)
    cells = {"x": {name: Decimal("50.00") for name in BENCHMARKS}}
    count = single_run_values(cells, ["x"], runs)
    assert count.cells == 3
    assert 0 < count.chance < count.expected
    assert single_run_values(cells, [], runs).chance == 1


def test_standard_errors():
    assert binomial_se(50, 100) == pytest.approx(5.0)
    assert binomial_se(Decimal("20"), 30) == pytest.approx(7.303, abs=1e-3)
    found = {(g.model, g.benchmark): g for g in gaps(load_table("table_1"), stated_runs(load_text()))}
    assert len(found) == 30
    aime = found["DeepSeek-R1-Distill-Qwen-14B", "AIME24"]
    assert aime.points == Decimal("3.80")
    assert aime.sampling_se == pytest.approx(1.564, abs=1e-3)  # sqrt(.6026 .3974 + .6406 .3594) / sqrt(1920)
    assert aime.problems_se == pytest.approx(12.51, abs=1e-2)


def test_pass_at_n_values_are_single_draws():
    seen = {f.where.split(", ")[1]: f.computed for f in pass_at_n(load_text())}
    assert seen == {
        "AIME25 pass@8": "26 of 30, 95% interval 70 to 95",
        "AIME25 pass@32": "27 of 30, 95% interval 74 to 97",
        "AIME25 pass@256": "29 of 30, 95% interval 83 to 99",
        "AIME24 pass@16": "28 of 30, 95% interval 79 to 98",
    }


def test_the_two_stated_batches_are_one():
    """16 x 8 = 4 x 32 = 128 at once, times accumulation 8 is 1,024."""
    found = [f for f in audit() if f.check == "batch"]
    assert [(f.where, f.printed, f.computed, f.agrees) for f in found] == [
        ("Appendix C, 7B", "128", "16 per device x 8 GPUs = 128", True),
        ("Section 4.1, 7B", "1024", "128 x accumulation 8 = 1024 completions an update", True),
        ("Appendix C, 14B", "128", "4 per device x 32 GPUs = 128", True),
        ("Section 4.1, 14B", "1024", "128 x accumulation 8 = 1024 completions an update", True),
    ]


def test_batches_that_differ_are_found():
    settings = {**load_settings(), "gradient_accumulation_steps": "4"}
    assert [f.agrees for f in batches(settings, load_text())] == [True, False, True, False]


def test_samples_of_table_s3_are_steps_of_128():
    """By hand: 0.41 * 83.3 * 3600 / 16 / 128 = 60.03 and 0.34 * 94.1 * 3600 / 16 / 128 = 56.24."""
    found = implied_steps(load_table("table_s3"), load_settings(), load_text())
    assert [float(x) for x in found["GRPO"]] == pytest.approx([60.034, 59.267, 60.803], abs=1e-3)
    assert [float(x) for x in found["iGRPO"]] == pytest.approx([56.239, 55.382, 57.097], abs=1e-3)


def test_the_steps_of_an_epoch_stay_open():
    grpo, igrpo = (f for f in audit() if f.check == "steps")
    assert grpo.printed == "60.0 steps, 59.3 to 60.8 before rounding"
    assert grpo.computed == "an epoch is 58.6 steps, if 1024 completions are 128 groups of 8"
    assert igrpo.printed == "56.2 steps, 55.4 to 57.1 before rounding"
    assert igrpo.computed == "an epoch is 29.3 steps, if 1024 completions are 256 groups of 4"
    assert not grpo.agrees and not igrpo.agrees
    assert "128 prompts, as GRPO's" in igrpo.innocent


def test_steps_that_fit_are_said_to_fit():
    rows = load_table("table_s3")
    rows["GRPO"] = {**rows["GRPO"], "Total GPU Hours": Decimal("81.4")}
    assert next(steps(rows, load_settings(), load_text())).agrees


def test_hours_and_throughput_differ():
    (ratio,) = (f for f in audit() if f.check == "hours")
    assert ratio.printed == "1.130 in GPU-hours"
    assert ratio.computed == "1.206 in seconds per sample, 1.174 to 1.239 before rounding"
    assert not ratio.agrees


def test_hours_that_fit_are_said_to_fit():
    rows = load_table("table_s3")
    rows["iGRPO"] = {**rows["iGRPO"], "Throughput (Samples/sec)": Decimal("0.36")}
    assert hours(rows, load_settings(), load_text()).agrees


def test_memory_in_tokens():
    found = memory(load_table("table_s3"), 3.2e6)
    assert found.printed == "+0.0063 GB for the longer prompts"
    assert found.computed == "2.0 tokens at 3.2 MB a token"


def test_audit_reads_the_folder_it_is_given(tmp_path):
    shutil.copytree(data_path("paper"), tmp_path, dirs_exist_ok=True)
    path = tmp_path / "table_1.csv"
    path.write_text(path.read_text().replace("61.93", "67.82"))
    assert all(f.agrees for f in audit(tmp_path) if f.check == "row mean")


def test_wording_is_neutral():
    words = " ".join(f"{f.computed} {f.innocent}" for f in audit()).lower()
    assert not [w for w in ("error", "wrong number", "fabricat", "false", "fake", "mistake") if w in words]
    assert all(f.innocent for f in audit() if not f.agrees)
