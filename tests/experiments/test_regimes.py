"""Tables and choices of the revision-cipher experiments, on small records typed by hand."""

from dataclasses import replace

import pytest

from igrpo_kit.analysis.compare import Record
from igrpo_kit.core.data import data_path
from igrpo_kit.experiments.experiment import Experiment
from igrpo_kit.experiments.regimes import revision
from igrpo_kit.experiments.regimes.revision import best_rate
from igrpo_kit.experiments.regimes.tables import controls_table, main_table, rarity_table, read_out_table


def run(method, seed, *p):
    """A run measured at the start, after each quarter, and at the end of 200 steps."""
    exact = [{"step": 50 * i, "p": x} for i, x in enumerate(p)]
    greedy = {"final": True, "protocol": "q", "temperature": 0, "correct": [1, 0], "num_samples": 1}
    metrics = [{"step": s, "dead_groups": 0.5, "copy_rate": None} for s in range(1, 201)]
    return Record(method, seed, metrics, [greedy], exact)


RUNS = [
    run("GRPO-8", 0, 0.0, 0.0, 0.0, 0.0, 0.0),
    run("GRPO-8", 1, 0.0, 0.0, 0.0, 0.0, 0.2),
    run("iGRPO 4+4", 0, 0.0, 0.1, 0.2, 0.4, 0.6),
    run("iGRPO 4+4", 1, 0.0, 0.1, 0.2, 0.4, 0.6),
]


def cells(table, method):
    (line,) = [line for line in table.splitlines() if f"| {method} |" in line]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_read_outs_by_hand():
    got = cells(read_out_table(RUNS), "iGRPO 4+4")
    assert got[:7] == [
        "iGRPO 4+4", "2", "0.100 [0.100, 0.100]", "0.200 [0.200, 0.200]", "0.400 [0.400, 0.400]",
        "0.600 [0.600, 0.600]", "0.260 [0.260, 0.260]",
    ]  # fmt: skip
    assert got[7:] == ["2 of 2 [0.34, 1.00]", "200", "0.50", "0.50", ""]


def test_the_main_table_marks_what_both_intervals_show():
    small = Experiment(
        name="x", title="x", policy="tiny", problems="countdown", max_new_tokens=2, seeds=(0, 1),
        methods={"GRPO-8": {"learning_rate": 3e-4}, "iGRPO 4+4": {"learning_rate": 6e-4}},
    )  # fmt: skip
    table = main_table({"revision-15": (small, RUNS), "unknown": (small, RUNS)})
    assert len(table.splitlines()) == 4
    got = cells(table, "iGRPO 4+4")
    assert got[:4] == ["15 digits", "iGRPO 4+4", "0.0006", "2"]
    # .6 - 0 and .6 - .2; Student's interval with two seeds is far wider and holds 0.
    assert got[-2] == "+0.500 [+0.400, +0.600]"
    # Areas .26 - 0 and .26 - .04.
    assert got[-1].startswith("+0.240 [+0.220, +0.260]") or got[-1].startswith("**+0.240")
    assert cells(table, "GRPO-8")[-2:] == ["", ""]


def test_rarities_beside_each_other():
    runs = [replace(r, exact=[{**r.exact[0], "p": 2e-5, "repair": 4e-3}, *r.exact[1:]]) for r in RUNS]
    table = rarity_table([runs, runs])
    start = "p = 1 in 50,000; r = 200 p"
    assert table.splitlines()[0] == f"| runs that take off, and p at the end | {start} | {start} |"
    assert cells(table, "GRPO-8")[1] == "1 of 2; 0.100 [0.000, 0.200]"
    assert cells(table, "iGRPO 4+4")[2] == "2 of 2; 0.600 [0.600, 0.600]"


def test_controls_are_compared_on_their_own_seeds():
    later = [replace(r, seed=7) for r in RUNS]
    table = controls_table(
        [*RUNS, *later], [run("no draft", 0, 0, 0, 0, 0, 0.1), run("no draft", 1, 0, 0, 0, 0, 0.1)]
    )
    assert cells(table, "no draft")[-1].startswith("**-0.500 [-0.500, -0.500]**")
    assert cells(table, "GRPO-8")[4] == "1 of 2 [0.09, 0.91]"


def test_the_best_rate_is_that_of_the_highest_mean_p_or_none():
    def tuned(rate, seed, p):
        return replace(run(f"m at {rate}", seed, 0, 0, 0, 0, p))

    records = [
        tuned("0.0003", 100, 0.4),
        tuned("0.0003", 101, 0.4),
        tuned("0.0006", 100, 0.9),
        tuned("0.0006", 101, 0),
    ]
    assert best_rate(records, "m") == 0.0006
    assert best_rate([tuned("0.0003", 100, 0.04), tuned("0.0006", 100, 0.049)], "m") is None


def test_every_preregistration_is_named_by_an_experiment():
    names = {make().preregistration for make in revision.experiments().values()}
    assert names == {"revision-cipher.md"}
    assert data_path("preregistrations/revision-cipher.md").is_file()
    with pytest.raises(KeyError):
        revision.core(3)
