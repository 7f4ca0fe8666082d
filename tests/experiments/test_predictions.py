"""The predictions of the revision cipher, judged on small records whose outcomes are typed by hand."""

import re

import pytest

from igrpo_kit.analysis.compare import Record
from igrpo_kit.core.data import data_path
from igrpo_kit.experiments.regimes.predictions import PREDICTIONS, crossing, judged, outcome_table

STEPS = (0, 50, 100, 200)
SEEDS = {"core": range(10), "other": range(5)}


def record(method, seed, p, correct=0.9, dead=0.8):
    """p at `STEPS`; a little different in each seed, so that intervals have a width."""
    exact = [{"step": s, "p": x + seed * 1e-5} for s, x in zip(STEPS, p, strict=True)]
    return Record(method, seed, [{"step": 200, "correct": correct, "dead_groups": dead}], [], exact)


def runs_of(curves, seeds, **metrics):
    return [record(method, seed, p, **metrics) for method, p in curves.items() for seed in seeds]


LATE, STALLED, EARLY = (0, 0, 0, 0.05), (0, 0.2, 0.4, 0.6), (0, 0.5, 0.92, 0.97)


def everything():
    """Runs of which all predictions are hits but 21, which contradicts 20."""
    runs = {}
    for length, grpo, igrpo in (
        (8, (0, 0.7, 0.9, 0.97), STALLED),
        (12, (0, 0.1, 0.9, 0.97), (0, 0.2, 0.5, 0.6)),
        (15, (0, 0.0, 0.1, 0.95), STALLED),
        (19, LATE, STALLED),
    ):
        core = {"GRPO-8": grpo, "iGRPO 4+4": igrpo, "both stages": EARLY, "drafts, then GRPO": EARLY}
        runs[f"revision-{length}"] = runs_of(core, range(10))
    for length in (15, 19):
        controls = {
            "iGRPO 1+7": (0, 0.3, 0.5, 0.7),
            "iGRPO 4+4, random draft": STALLED,
            "iGRPO 4+4, no draft": (0, 0, 0, 0.001),
            "iGRPO 4+4, foreign draft": (0, 0, 0, 0.001),
            "both stages, random draft": (0, 0.5, 0.9, 0.95),
            "refinements trained on q": EARLY,
            "GRPO-4": (0, 0, 0, 0.01),
            "GRPO-8 at T = 0.7": (0, 0, 0.1, 0.96),
            "GRPO-8, partial credit": EARLY,
            **{f"GRPO-8, batch x{n}{x}": LATE for n in (4, 8) for x in ("", ", rate x2")},
        }
        runs[f"revision-{length}-controls"] = runs_of(controls, range(5))
    three = {"GRPO-8": (0, 0, 0, 0.5), "iGRPO 4+4": (0, 0, 0, 0.05), "both stages": (0, 0, 0, 0.5)}
    runs["revision-15-fresh"] = runs_of(three, range(5))
    runs["revision-15-shifted"] = runs_of(three, range(5))
    runs["revision-15-after"] = runs_of({**three, "both stages": EARLY}, range(5))
    runs["revision-19-rates"] = runs_of(
        dict.fromkeys(("GRPO-8 at 0.00015", "GRPO-8 at 0.0006"), LATE), range(10)
    )
    shared = {"GRPO-8 at 0.0003": (0, 0, 0.1, 0.95), "iGRPO 4+4 at 0.0003": STALLED}
    runs["revision-15-shared"] = runs_of(shared, range(10))
    prefix = dict.fromkeys(("GRPO-8, prefix given, at 0.0003", "GRPO-8, prefix given, at 0.0006"), EARLY)
    runs["revision-19-prefix"] = runs_of(prefix, range(5))
    for kind in ("fresh", "shifted"):
        runs[f"revision-19-{kind}"] = runs_of(dict.fromkeys(three, LATE), range(5))
    return runs


def changed(where, method, p, seeds, **metrics):
    """`everything()` with another curve for some seeds of one method."""
    runs = everything()
    runs[where] = [
        record(method, r.seed, p, **metrics) if r.method == method and r.seed in seeds else r
        for r in runs[where]
    ]
    return runs


def misses(runs):
    return [o.number for o in judged(runs) if o.hit is False and o.number != 21]


def test_there_are_as_many_predictions_as_were_written():
    folder = data_path("preregistrations")
    text = (folder / "revision-cipher.md").read_text(encoding="utf-8")
    assert "\n16. *" in text and "\n17. " not in text
    addenda = "".join(
        path.read_text(encoding="utf-8") for path in sorted(folder.glob("revision-cipher.addendum-*.md"))
    )
    assert re.findall(r"Prediction (\d+)[ :]", addenda) == ["17", "18", "19", "20", "21", "22"]
    assert len(PREDICTIONS) == 22


def test_all_hits():
    outcomes = judged(everything())
    assert [o.number for o in outcomes] == [*range(1, 23)]
    assert [o.hit for o in outcomes] == [True] * 20 + [False, True]
    first = outcomes[0].measured
    assert "19: iGRPO 4+4 minus GRPO-8 at 200 +0.550 [" in first
    assert "19: GRPO-8 took off in 0 of 10; 19: iGRPO 4+4 took off in 10 of 10" in first
    # the curves of 15 digits: .4 - .1 at step 100 and .6 - .95 at 200, so 0 at 100 + 100 * .3 / .65
    assert "15: curves cross at 146" in outcomes[1].measured
    assert "19: iGRPO 4+4, dead groups at the end 0.8" in outcomes[4].measured


@pytest.mark.parametrize(
    ("where", "method", "p", "seeds", "expected"),
    [
        ("revision-19", "GRPO-8", (0, 0, 0, 0.2), range(6), [1]),  # takes off in 6 of 10
        ("revision-19", "iGRPO 4+4", LATE, [7], [1]),  # 9 of 10
        ("revision-15", "iGRPO 4+4", (0, 0.0, 0.4, 0.6), range(10), [2]),  # no lead at 50
        ("revision-15", "GRPO-8", (0, 0.1, 0.95, 0.95), range(10), [2, 6]),  # crosses at 58
        ("revision-12", "iGRPO 4+4", (0, 0.2, 0.89, 0.6), range(10), [3]),  # crosses at 91
        ("revision-12", "GRPO-8", (0, 0.3, 0.9, 0.97), range(10), [3]),  # never behind: no crossing
        ("revision-8", "iGRPO 4+4", (0, 0.8, 0.8, 0.6), range(10), [4]),
        ("revision-15", "iGRPO 4+4", (0, 0.2, 0.4, 0.8), range(10), [5, 8]),
        ("revision-8", "both stages", (0, 0.5, 0.92, 0.89), [7], [6]),  # one seed of ten
        ("revision-8", "GRPO-8", (0, 0.7, 0.9, 0.999), range(10), [6]),  # .97 - .999 < -.02
        ("revision-12", "drafts, then GRPO", (0, 0.5, 0.6, 0.6), range(10), [7]),
        ("revision-19-controls", "iGRPO 4+4, random draft", LATE, range(5), [8]),
        ("revision-15-controls", "iGRPO 1+7", STALLED, range(5), [8]),  # equal is not higher
        ("revision-19-controls", "iGRPO 4+4, foreign draft", (0, 0.03, 0, 0), [0], [8]),
        ("revision-15-controls", "iGRPO 4+4, foreign draft", (0, 0.03, 0, 0), [0], []),  # only 19 digits
        ("revision-19-controls", "both stages, random draft", (0, 0.5, 0.9, 0.93), range(5), [9]),
        ("revision-15-controls", "refinements trained on q", STALLED, range(5), [10]),
        ("revision-19-controls", "GRPO-4", (0, 0, 0, 0.2), [0], [11]),
        ("revision-15-controls", "GRPO-8, partial credit", (0, 0, 0.9, 0.89), [4], [12]),
        ("revision-19-controls", "GRPO-8, batch x8, rate x2", (0, 0, 0.3, 0.61), range(5), [13]),
        ("revision-19-controls", "GRPO-8, batch x4", (0, 0, 0.9, 0.9), [0], []),  # the mean stays below
        ("revision-15-fresh", "both stages", (0, 0, 0.1, 0.5), range(5), [14]),
        ("revision-15-shifted", "iGRPO 4+4", (0, 0, 0.1, 0.2), range(5), [15]),
        ("revision-15-after", "iGRPO 4+4", STALLED, range(5), [16]),
        ("revision-19-rates", "GRPO-8 at 0.0006", (0, 0, 0, 0.2), range(4), [17]),
        ("revision-19-rates", "GRPO-8 at 0.0006", (0, 0, 0, 0.2), range(3), []),
        ("revision-15-shared", "GRPO-8 at 0.0003", LATE, range(3), [18]),
        ("revision-15-shared", "iGRPO 4+4 at 0.0003", EARLY, range(10), [18]),
        ("revision-19-fresh", "both stages", (0, 0, 0, 0.2), range(2), [19]),
        ("revision-19-shifted", "iGRPO 4+4", (0, 0, 0, 0.2), range(2), [20]),
        ("revision-19-prefix", "GRPO-8, prefix given, at 0.0003", LATE, range(2), [22]),  # 3 of 5
        ("revision-19-prefix", "GRPO-8, prefix given, at 0.0003", (0, 0, 0.1, 0.5), range(5), [22]),
        ("revision-19-prefix", "GRPO-8, prefix given, at 0.0006", LATE, range(5), []),
    ],
)
def test_what_is_not_as_predicted_is_a_miss(where, method, p, seeds, expected):
    assert misses(changed(where, method, p, seeds)) == expected


def test_the_end_of_the_training_metrics_counts():
    runs = changed("revision-19", "iGRPO 4+4", STALLED, range(10), correct=0.7)
    assert misses(runs) == [5]
    assert "19: iGRPO 4+4, refinements correct at the end 0.7 (✗)" in judged(runs)[4].measured
    assert misses(changed("revision-19", "iGRPO 4+4", STALLED, range(10), dead=0.5)) == [5]
    assert misses(changed("revision-15-shifted", "iGRPO 4+4", LATE, range(5), correct=0.5)) == [15]


def test_the_meter_and_we_cannot_both_be_right_about_the_shifted_base():
    started = changed("revision-19-shifted", "iGRPO 4+4", (0, 0, 0, 0.2), range(4))
    assert [o.hit for o in judged(started)[19:21]] == [False, True]


def test_what_was_not_run_is_said():
    outcomes = judged({"revision-19": everything()["revision-19"]})
    assert [o.number for o in outcomes if o.hit] == [1]
    assert [o.hit for o in outcomes[1:]] == [None] * 21
    assert outcomes[3].measured == (
        "GRPO-8 in revision-8: 0 of 10 seeds; iGRPO 4+4 in revision-8: 0 of 10 seeds"
    )
    assert outcomes[3].verdict == "not run"
    few = everything()
    few["revision-19"] = [r for r in few["revision-19"] if r.seed < 9]
    assert judged(few)[0].verdict == "not run"
    assert all(o.hit is None for o in judged({}))


def test_runs_that_refute_a_claim_are_a_miss_even_if_others_are_missing():
    runs = {"revision-19": changed("revision-19", "both stages", LATE, [0])["revision-19"]}
    assert judged(runs)[5].verdict == "miss"
    assert "both stages in revision-8: 0 of 10 seeds" in judged(runs)[5].measured


def test_the_last_fall_is_the_crossing():
    """Ahead, behind, ahead again, and behind from step 150 on."""
    ours = [record("a", 0, (0, 0.3, 0.1, 0.2))]
    theirs = [record("b", 0, (0, 0.1, 0.2, 0.1))]
    assert crossing(ours, theirs) == pytest.approx(50 + 50 * 0.2 / 0.3)
    assert crossing(theirs, ours) == pytest.approx(150)
    assert crossing(ours, ours) is None


def test_the_table_has_a_line_for_each():
    table = outcome_table(judged({}))
    assert len(table.splitlines()) == 24 and table.count("**not run**") == 22
