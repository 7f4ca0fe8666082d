import json
import math
import os
import subprocess
import sys
import time

import pytest

from igrpo_kit.runlog import (
    RunLog,
    append_row,
    keep_rows,
    pack_run,
    read_rows,
    read_run,
    write_atomically,
)


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
    assert (config, rows) == ({"seed": 0}, [{"step": 1}])


def test_resuming_from_the_very_start_writes_the_config_anew(tmp_path):
    RunLog(tmp_path, {"seed": 0}).metrics({"step": 1})
    RunLog(tmp_path, {"seed": 5}, resume_at=0)
    assert read_run(tmp_path) == ({"seed": 5}, [])


def test_a_writer_killed_at_any_moment_leaves_the_old_or_the_new_file(tmp_path):
    """A process rewrites a 4 MB file over and over and is killed with SIGKILL, twelve times."""
    path = tmp_path / "state.json"
    code = (
        "import sys, itertools, json; from pathlib import Path\n"
        "from igrpo_kit.runlog import write_atomically\n"
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
