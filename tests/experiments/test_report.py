"""The generated blocks of README.md and docs/results.md are what the records say today."""

import re
from pathlib import Path

import pytest

from igrpo_kit.cli import main
from igrpo_kit.experiments import report
from igrpo_kit.experiments.presets import committed
from igrpo_kit.experiments.report import BLOCKS, comparison_text, with_blocks, write_blocks

ROOT = Path(__file__).parents[2]
FILES = ("README.md", "docs/results.md")
BLOCK = re.compile(r"^<!-- generated: (\S+) -->\n.*?^<!-- end generated -->\n", re.MULTILINE | re.DOTALL)
FOUND = {
    (file, found[1]): found[0] for file in FILES for found in BLOCK.finditer((ROOT / file).read_text("utf-8"))
}


@pytest.mark.parametrize(("file", "name"), FOUND)
def test_a_block_is_what_the_records_say(file, name):
    """If it is not: `igrpo report --write`."""
    assert with_blocks(FOUND[file, name]) == FOUND[file, name]


def test_every_block_is_used_exactly_once_and_every_marker_is_a_block():
    assert sorted(name for _, name in FOUND) == sorted(BLOCKS)
    for file in FILES:
        text, blocks = (ROOT / file).read_text("utf-8"), sum(where == file for where, _ in FOUND)
        assert text.count("<!-- generated") == text.count("<!-- end generated") == blocks


@pytest.fixture
def blocks(monkeypatch):
    """Two blocks typed by hand."""
    monkeypatch.setattr(report, "BLOCKS", {"one": lambda: "| 1 |", "two": lambda: r"\1 and \g<2>"})


OLD = """\
before
<!-- generated: one -->
stale

<!-- end generated -->
between <!-- generated: two --> in a line
<!-- generated: two -->
<!-- end generated -->
after
"""
NEW = r"""before
<!-- generated: one -->

| 1 |

<!-- end generated -->
between <!-- generated: two --> in a line
<!-- generated: two -->

\1 and \g<2>

<!-- end generated -->
after
"""


def test_blocks_are_filled_and_nothing_else_is_touched(blocks):
    assert with_blocks(OLD) == NEW == with_blocks(NEW)
    assert with_blocks("no block\n") == "no block\n"


def test_an_unknown_block_names_those_there_are(blocks):
    with pytest.raises(ValueError, match="no generated block 'three'; there is one, two"):
        with_blocks(OLD.replace(": one", ": three"))


def test_only_files_that_change_are_written(blocks, tmp_path):
    old, new = tmp_path / "old.md", tmp_path / "new.md"
    old.write_text(OLD)
    new.write_text(NEW)
    new.chmod(0o444)
    before = new.stat().st_mtime_ns
    assert write_blocks([new, old]) == [old]
    assert (old.read_text(), new.read_text(), new.stat().st_mtime_ns) == (NEW, NEW, before)
    assert write_blocks([new, old]) == []


def test_a_wrong_block_leaves_every_file_as_it_was(blocks, tmp_path):
    first, second = tmp_path / "first.md", tmp_path / "second.md"
    first.write_text(OLD)
    second.write_text(OLD.replace(": one", ": three"))
    with pytest.raises(ValueError, match="three"):
        write_blocks([first, second])
    assert first.read_text() == OLD


def test_the_command_writes_blocks_and_names_the_files_that_changed(blocks, tmp_path, capsys, monkeypatch):
    (tmp_path / "docs").mkdir()
    for file in FILES:
        (tmp_path / file).write_text(OLD)
    monkeypatch.chdir(tmp_path)
    assert main(["report", "--write", "README.md"]) == 0
    assert capsys.readouterr().out == "README.md\n"
    assert main(["report", "--write"]) == 0
    assert capsys.readouterr().out == "docs/results.md\n"
    assert [(tmp_path / file).read_text() for file in FILES] == [NEW, NEW]
    (tmp_path / "README.md").write_text("<!-- generated: three -->\n<!-- end generated -->\n")
    assert main(["report", "--write"]) == 1
    assert capsys.readouterr().err == "igrpo report: no generated block 'three'; there is one, two\n"


def test_the_text_of_one_comparison():
    experiment, *_ = committed("addition-cpu")
    text, records, base = comparison_text(experiment, ROOT / "data/runs/addition-cpu")
    assert len(records) == 32 and base["num_samples"] == 32
    head = next(line for line in text.splitlines() if line.startswith("| method"))
    assert head.split(" | ")[2:5] == ["accuracy", "greedy", "pass@8"] and "vote of 8" not in head
    assert text.splitlines()[1].endswith("Mean [95% interval over 8 seeds].")
    assert text.splitlines()[-1].startswith(
        "iGRPO 4+4, both stages trained (ours): greedy is lower than that of GRPO-8 (-0.056 ["
    )


def test_a_comparison_of_one_seed_says_what_its_intervals_leave_out():
    experiment, *_ = committed("smollm2-cpu")
    text, records, _ = comparison_text(experiment, ROOT / "data/runs/smollm2-cpu")
    assert len(records) == 4
    assert "they exclude run-to-run variance" in text and "| one run each |" in text
