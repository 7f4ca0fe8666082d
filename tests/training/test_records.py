import gzip
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from igrpo_kit.core import rows as row_files
from igrpo_kit.core.rows import (
    SkippedLinesWarning,
    append_row,
    keep_rows,
    read_checked_rows,
    read_columns,
    read_rows,
    write_atomically,
)
from igrpo_kit.training import records
from igrpo_kit.training.config import TrainConfig
from igrpo_kit.training.records import RunLog, environment, pack_run, read_run, upgraded, with_live_tokens

RECORDS = Path(__file__).parents[2] / "data" / "runs"


def test_rows_come_back_in_order(tmp_path):
    path = tmp_path / "rows.jsonl"
    for row in ({"step": 1, "text": "3 + 4\n= 7 \u2603"}, {"step": 2, "x": 0.1 + 0.2}):
        append_row(path, row)
    assert list(read_rows(path)) == [
        {"step": 1, "text": "3 + 4\n= 7 \u2603"},
        {"step": 2, "x": 0.30000000000000004},
    ]


def test_what_json_cannot_hold(tmp_path):
    path = tmp_path / "rows.jsonl"
    append_row(
        path, {"nan": math.nan, "inf": math.inf, "nested": [math.nan], "lone": "a\ud800b", "nul": "\x00"}
    )
    (row,) = read_rows(path)
    assert row == {"nan": None, "inf": "inf", "nested": [None], "lone": "a\ud800b", "nul": "\x00"}


def test_a_torn_last_line_is_skipped_and_the_next_row_starts_a_new_one(tmp_path):
    path = tmp_path / "rows.jsonl"
    append_row(path, {"step": 1})
    with open(path, "ab") as file:
        file.write(b'{"step": 2, "rew')
    assert list(read_rows(path)) == [{"step": 1}]
    append_row(path, {"step": 2})
    with pytest.raises(ValueError, match="line 2"):  # no longer the last line: now it is damage
        list(read_rows(path))


@pytest.mark.parametrize("line", ["not json", "[1, 2]", '{"a": 1}{"b": 2}'])
def test_a_damaged_line_is_named(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"step": 1}\n' + line + '\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 2"):
        list(read_rows(path))


def test_keeping_rows_up_to_a_step_repairs_the_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    for step in (1, 2, 3):
        append_row(path, {"step": step})
    with open(path, "ab") as file:
        file.write(b'{"step": 4')
    keep_rows(path, 2)
    append_row(path, {"step": 3, "again": True})
    assert list(read_rows(path)) == [{"step": 1}, {"step": 2}, {"step": 3, "again": True}]


def test_what_utf8_cannot_hold_survives_trimming_and_packing(tmp_path):
    RunLog(tmp_path / "run", {}).samples([{"step": 1, "text": "a\ud800b"}, {"step": 2, "text": "c"}])
    keep_rows(tmp_path / "run" / "samples.jsonl", 1)
    (tmp_path / "run" / "metrics.jsonl").write_bytes(b"")
    pack_run(tmp_path / "run", tmp_path / "packed")
    assert list(read_rows(tmp_path / "packed" / "samples.jsonl")) == [{"step": 1, "text": "a\ud800b"}]


def test_a_run_is_never_overwritten(tmp_path):
    folder = tmp_path / "run"
    log = RunLog(folder, {"seed": 0})
    log.metrics({"step": 1})
    with pytest.raises(FileExistsError, match="holds a run already"):
        RunLog(folder, {"seed": 1})
    config, rows = read_run(folder)
    assert (config, rows) == ({"schema": 2, "seed": 0}, [{"step": 1}])


def test_resuming_from_the_very_start_writes_the_config_anew(tmp_path):
    RunLog(tmp_path, {"seed": 0}).metrics({"step": 1})
    RunLog(tmp_path, {"seed": 5}, resume_at=0)
    assert read_run(tmp_path) == ({"schema": 2, "seed": 5}, [])
    assert json.loads((tmp_path / "config.json").read_text()) == {"schema": 2, "seed": 5}


@pytest.mark.faults
def test_a_writer_killed_at_any_moment_leaves_the_old_or_the_new_file(tmp_path):
    """A process rewrites a 4 MB file over and over and is killed with SIGKILL, twelve times."""
    path = tmp_path / "state.json"
    code = (
        "import sys, itertools, json; from pathlib import Path\n"
        "from igrpo_kit.core.rows import write_atomically\n"
        "for i in itertools.count():\n"
        "    write_atomically(Path(sys.argv[1]), json.dumps([i] * 1_000_000).encode())\n"
        "    print(i, flush=True)\n"
    )
    for attempt in range(12):
        process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
        process.stdout.readline()  # it has written once and is at the second
        time.sleep(0.013 * attempt)
        process.kill()
        process.wait()
        process.stdout.close()
        content = json.loads(path.read_text())
        assert len(content) == 1_000_000
        assert len(set(content)) == 1


def test_atomic_write_leaves_no_temporary_file(tmp_path):
    write_atomically(tmp_path / "a", b"1")
    assert os.listdir(tmp_path) == ["a"]


def test_a_packed_file_that_was_cut_is_an_error_and_no_torn_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    content = b"".join(
        b'{"step": %d, "noise": "%s"}\n' % (i, os.urandom(20).hex().encode()) for i in range(999)
    )
    for packed in (gzip.compress(content)[:-2000], gzip.compress(content[:-9])):
        path.with_name("rows.jsonl.gz").write_bytes(packed)
        with pytest.raises(ValueError, match=r"rows\.jsonl\.gz, line \d+: (the packed file breaks|cut off)"):
            list(read_rows(path))
    path.with_name("rows.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(ValueError, match=r"rows\.jsonl\.gz, line 1: the packed file breaks off"):
        list(read_rows(path))


DAMAGED = (
    '{"step": 1}\nnot json\n{"step": 3}\n[4]\n\n{"step": 5, "x": "bad"}\n{"step": 6, "x": 2}\n{"step": 7, "x'
)


def refuse_bad(row):
    if row.get("x") == "bad":
        raise ValueError("x is bad")
    return row


def test_checked_rows_name_the_first_wrong_line_or_skip_all_of_them_aloud(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(DAMAGED)
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 2: not a JSON row .*skip"):
        list(read_checked_rows(path, refuse_bad))
    with pytest.warns(SkippedLinesWarning) as warned:
        rows = list(read_checked_rows(path, refuse_bad, on_error="skip"))
    assert rows == [{"step": 1}, {"step": 3}, {"step": 6, "x": 2}]
    (message,) = [str(w.message) for w in warned]
    assert "left out 4 of 8 lines: line 2: not a JSON row" in message
    for part in ("line 4: not a JSON object", "line 6: x is bad", "line 8: cut off in the middle"):
        assert part in message


def test_a_torn_end_is_an_error_in_a_finished_record(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"step": 1}\n{"st')
    assert list(read_rows(path)) == [{"step": 1}]
    with pytest.raises(ValueError, match="line 2: cut off in the middle"):
        list(read_checked_rows(path, refuse_bad))


def test_columns_by_hand(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1, "b": null, "text": "x"}\n{"a": 2.5}\n{"a": "inf", "b": -3}\n')
    columns = read_columns(path, ["a", "b"])
    np.testing.assert_array_equal(columns["a"], [1.0, 2.5, np.inf])
    np.testing.assert_array_equal(columns["b"], [np.nan, np.nan, -3.0])
    with pytest.raises(LookupError, match="no row has 'c', 'd'"):
        read_columns(path, ["d", "a", "c"])
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 1: 'text' is not a number: 'x'"):
        read_columns(path, ["text"])
    path.write_text('{"a": 1, "b": 2}\n{"a": 2, "b": true}\n{"a": 3, "b": 4}\n')
    with pytest.warns(SkippedLinesWarning, match="line 2: 'b' is not a number: True"):
        columns = read_columns(path, ["a", "b"], on_error="skip")
    np.testing.assert_array_equal(columns["a"], [1.0, 3.0])  # the columns stay side by side


@pytest.mark.parametrize(
    "line", ['{"a": "\\ud800"}', '{"a": NaN}', '{"a": 1e999}', '{"a": 12345678901234567890123}']
)
def test_what_the_fast_parser_refuses_the_standard_one_decides(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    path.write_text(line + "\n")
    assert repr(list(read_rows(path))) == repr([json.loads(line)])


def test_both_parsers_give_the_same_numbers(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    numbers = [float(x) for x in rng.normal(size=500) * 10.0 ** rng.integers(-300, 300, 500)]
    path = tmp_path / "rows.jsonl"
    append_row(path, {"numbers": numbers, "text": '\u2603 \x00 "', "none": None, "int": 2**60})
    fast = list(read_rows(path))
    monkeypatch.setattr(row_files, "_decode_fast", json.loads)
    assert list(read_rows(path)) == fast
    assert fast[0]["numbers"] == numbers


def test_checked_rows_are_what_the_check_returns(tmp_path):
    path = tmp_path / "rows.jsonl"
    append_row(path, {"step": 1, "old": 5})
    assert list(read_checked_rows(path, lambda row: {"step": row["step"]})) == [{"step": 1}]


# ---------------------------------------------------------------- records of schema 1


def test_old_settings_get_todays_names():
    old = {"policy": "tiny", "prompts": 32, "inner_epochs": 2, "final_learning_rate": 0.1, "select": "best"}
    assert upgraded(old) == {
        "policy": "tiny",
        "prompts_per_step": 32,
        "num_iterations": 2,
        "min_lr_ratio": 0.1,
        "select": "best",
    }


def test_an_old_evaluation_gets_todays_names():
    old = {
        "step": 20,
        "protocol": "own_draft",
        "right": [1, 3],
        "draft_right": [0, 4],
        "reward": [0.25, 0.75],
    }
    assert upgraded(old) == {
        "step": 20,
        "protocol": "own_draft",
        "correct": [1, 3],
        "draft_correct": [0, 4],
        "reward": [0.25, 0.75],
    }


OLD_METRICS = {
    "step": 3, "reward": 0.5, "right": 0.5, "all_right_groups": 0.25, "clip_share": 0.125,
    "stage1/right": 0.375, "stage1/all_right_groups": 0.0, "best_draft_right": 0.75, "copy_rate": 0.5,
    "copy_rate_of_right": 0.625, "right_to_wrong": 0.25, "wrong_to_right": 0.25,
    "status/correct": 4.0, "status/incorrect": 4.0, "stage1/status/incorrect": 8.0,
}  # fmt: skip
"""8 refinements: 4 of a correct draft, one of which regressed, and 4 of an incorrect one, one repaired"""


def test_old_metrics_get_todays_names_and_their_counts():
    row = upgraded(OLD_METRICS)
    assert row == {
        "step": 3, "reward": 0.5, "correct": 0.5, "all_correct_groups": 0.25, "clip_fraction": 0.125,
        "stage1/correct": 0.375, "stage1/all_correct_groups": 0.0, "best_draft_correct": 0.75,
        "copy_rate": 0.5, "copy_rate_of_correct": 0.625, "regressed": 0.25, "repaired": 0.25,
        "status/correct": 4.0, "status/incorrect": 4.0, "stage1/status/incorrect": 8.0,
        "transitions/kept": 3, "transitions/regressed": 1, "transitions/repaired": 1,
        "transitions/still_incorrect": 3,
    }  # fmt: skip
    assert upgraded(row) is row  # a row of today is left alone
    assert list(OLD_METRICS)[2] == "right"  # and the old one was not changed


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (
            {
                "right": 0.75,
                "status/right_verdict": 6.0,
                "status/wrong_verdict": 1.0,
                "status/no_verdict": 1.0,
            },
            {
                "correct": 0.75,
                "status/correct_verdict": 6.0,
                "status/incorrect_verdict": 1.0,
                "status/no_verdict": 1.0,
            },
        ),
        (
            {"status/not_drawn": 2.0, "stage1/status/not_drawn": 3.0},
            {"status/not_sampled": 2.0, "stage1/status/not_sampled": 3.0},
        ),
    ],
)
def test_old_statuses_get_todays_names(old, new):
    assert upgraded(old) == new


@pytest.mark.parametrize(
    ("correct", "regressed", "repaired", "counts"),
    [
        (0.75, 0.25, None, [6, 2, 0, 0]),  # every draft that was shown was correct
        (0.25, None, 0.25, [0, 0, 2, 6]),  # none was
        (0.625, 0.333333, 0.5, [4, 2, 1, 1]),  # 6 digits of 1/3
        (0.125, 0.75, 0.0, [1, 3, 0, 4]),
        (0.5, 0.5, 0.5, [None] * 4),  # either kind of draft ends alike: any mix of them fits
    ],
)
def test_counts_are_restored_from_old_shares(correct, regressed, repaired, counts):
    shares = {"right": correct, "right_to_wrong": regressed, "wrong_to_right": repaired}
    row = upgraded({**OLD_METRICS, **shares})
    names = ("kept", "regressed", "repaired", "still_incorrect")
    assert [row[f"transitions/{name}"] for name in names] == counts


@pytest.mark.parametrize("shares", [{}, {"right_to_wrong": None, "wrong_to_right": None}])
def test_where_no_draft_was_shown_there_are_no_counts(shares):
    row = upgraded({"step": 1, "right": 0.5, "status/correct": 4.0, "status/incorrect": 4.0, **shares})
    assert row["correct"] == 0.5
    assert not [name for name in row if name.startswith("transitions/")]


def test_old_shares_of_no_whole_numbers_name_the_step():
    with pytest.raises(ValueError, match=r"step 7: .* no whole numbers"):
        upgraded({**OLD_METRICS, "step": 7, "right_to_wrong": 0.4})


NAMES_OF_SCHEMA_1 = {
    "prompts", "inner_epochs", "final_learning_rate", "clip_share", "right", "stage1/right",
    "all_right_groups", "stage1/all_right_groups", "best_draft_right", "copy_rate_of_right",
    "right_to_wrong", "wrong_to_right", "draft_right",
}  # fmt: skip


@pytest.mark.parametrize("experiment", sorted(p.name for p in RECORDS.iterdir() if p.is_dir()))
def test_every_committed_record_reads_under_todays_names(experiment):
    """Those of schema 1 are read as this version would have written them."""
    folders = sorted(path.parent for path in (RECORDS / experiment).rglob("config.json"))
    assert len(folders) > 3
    for folder in folders:
        evaluations = list(map(upgraded, read_rows(folder / RunLog.EVALUATIONS)))
        assert all({"correct", "draft_correct"} <= row.keys() for row in evaluations)
        if folder.name == "base":
            config, rows = records.read_config(folder), []
        else:
            config, rows = read_run(folder)
            assert config.get("schema", 1) in (1, 2)
            assert TrainConfig(steps=1).to_row().keys() <= config.keys()
            assert len(rows) == config["steps"]
        for row in rows:
            assert {"correct", "all_correct_groups", "clip_fraction"} <= row.keys()
        for row in (config, *rows, *evaluations):
            assert not NAMES_OF_SCHEMA_1 & row.keys()


def test_restored_counts_of_a_committed_record_add_up():
    config, rows = read_run(RECORDS / "countdown-cpu" / "igrpo-4-4" / "seed-0")
    assert (config["prompts_per_step"], config["num_refinements"]) == (32, 4)
    determined = [row for row in rows if row["transitions/kept"] is not None]
    assert len(determined) >= 198
    for row in determined:
        kept, regressed, repaired, still = (row[f"transitions/{name}"] for name in records.TRANSITIONS)
        assert kept + regressed + repaired + still == 128
        assert kept + repaired == row["status/correct"] == round(128 * row["correct"])


# ---------------------------------------------------------------- the environment


def commit_of(folder, monkeypatch):
    monkeypatch.setattr(records, "checkout", lambda: folder)
    return environment("cpu")["git_commit"]


def test_the_commit_is_that_of_the_checkout_and_none_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    git = ["git", "-C", str(tmp_path / "repo"), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    (tmp_path / "repo" / "inside").mkdir(parents=True)
    (tmp_path / "plain").mkdir()
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout
    assert commit_of(tmp_path / "repo", monkeypatch) == head.strip()
    assert commit_of(tmp_path / "plain", monkeypatch) is None
    # An installed package may lie inside a repository of something else: that one's commit is not ours.
    monkeypatch.chdir(tmp_path / "repo" / "inside")
    assert commit_of(None, monkeypatch) is None


def test_without_git_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit_of(tmp_path, monkeypatch) is None


def test_a_record_of_a_later_version_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"schema": 3, "steps": 5}')
    with pytest.raises(ValueError, match=r"config\.json: schema 3 of a later version"):
        records.read_config(tmp_path)


def test_live_tokens_of_an_old_record_by_hand():
    """Two optimizer steps per row: 30, 20 and 0 tokens were computed twice each."""
    rows = [{"step": i, "update_tokens": t} for i, t in enumerate((60.0, 40.0, 0.0), start=1)]
    config = {"num_iterations": 2, "objective": {"name": "GRPO", "beta": 0.0}}
    assert [row["tokens_live"] for row in with_live_tokens(rows, config)] == [30, 50, 50]
    assert [row["tokens_live"] for row in with_live_tokens(rows, {})] == [60, 100, 100]
    penalized = {"objective": {"name": "GRPO", "beta": 0.01}}  # dead groups were computed as well: unknown
    assert [row["tokens_live"] for row in with_live_tokens(rows, penalized)] == [None] * 3
    current = [{"step": 1, "tokens_live": 7, "live_tokens": 7.0}]
    assert with_live_tokens(current, config) == current
    assert with_live_tokens([], config) == []


def test_packing_a_packed_run_copies_it(tmp_path):
    source = RECORDS / "countdown-cpu" / "grpo-8" / "seed-0"
    pack_run(source, tmp_path)
    for path in source.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name
