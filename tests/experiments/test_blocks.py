"""Experiments on several bases: the base of a run, exact rates in its record, its preregistration."""

import json
from dataclasses import replace
from hashlib import sha256

import pytest

from igrpo_kit.core.data import data_path
from igrpo_kit.core.rows import read_rows
from igrpo_kit.experiments import experiment as definitions
from igrpo_kit.experiments.experiment import Experiment
from igrpo_kit.experiments.runner import is_complete, run_one
from igrpo_kit.training import sft
from igrpo_kit.training.records import pack_run


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Two bases of the cipher, hardly trained, in a folder of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IGRPO_DATA", str(tmp_path_factory.mktemp("data")))
        task = sft._cipher_task("", 8, 0)
        patch.setattr(sft, "_cipher_task", lambda *arguments: replace(task, steps=2))
        for block in range(2):
            sft.prepare_cipher(8, block)
            assert sft.prepare_cipher(8, block).name == f"cipher-8-{block}"  # the second call finds it
        yield


@pytest.fixture
def small():
    return Experiment(
        name="small", title="small", policy="cipher-8-{block}", problems="cipher-8-{block}", blocks=2,
        methods={
            "GRPO-8": {"num_drafts": 0, "num_refinements": 2, "temperature": 0.7},
            "short": {"num_drafts": 1, "num_refinements": 2, "steps": 2},
        },
        max_new_tokens=9, steps=4, seeds=(0, 1), train_problems=8, held_out_problems=4, evaluate_every=4,
        final_samples=2, draft_samples=1, record_every=2, measure_every=3,
        preregistration="revision-cipher.md",
    )  # fmt: skip


def test_the_seed_chooses_the_base(small):
    assert [small.policy_of(seed) for seed in range(3)] == ["cipher-8-0", "cipher-8-1", "cipher-8-0"]
    assert {p.source for p in small.held_out(1)} == {"cipher-1"}


def test_a_run_records_exact_rates_and_its_preregistration(small, prepared, tmp_path):
    run_one(small, "GRPO-8", 1, tmp_path)
    run_one(small, "short", 0, tmp_path)
    assert is_complete(small, "GRPO-8", 1, tmp_path) and is_complete(small, "short", 0, tmp_path)
    exact = [*read_rows(tmp_path / "grpo-8/seed-1/exact.jsonl")]
    assert [row["step"] for row in exact] == [0, 3, 4]
    assert all(0 < row["p"] < 1 for row in exact)
    assert [row["step"] for row in read_rows(tmp_path / "short/seed-0/exact.jsonl")] == [0, 2]
    config = json.loads((tmp_path / "grpo-8/seed-1/config.json").read_text())
    assert (config["policy"], config["sampling"]["temperature"]) == ("cipher-8-1", 0.7)
    digest = sha256(data_path("preregistrations/revision-cipher.md").read_bytes()).hexdigest()
    assert config["preregistration"] == {"file": "revision-cipher.md", "sha256": digest}
    # Full completions only for the first seed.
    assert not (tmp_path / "grpo-8/seed-1/samples.jsonl").exists()
    assert (tmp_path / "short/seed-0/samples.jsonl").exists()
    pack_run(tmp_path / "grpo-8/seed-1", tmp_path / "packed")
    assert (tmp_path / "packed/exact.jsonl.gz").exists()


def test_rows_that_a_crash_took_are_written_again_once(small, prepared, tmp_path):
    """The checkpoint of the last step is there, but not the evaluation after it."""
    run_one(small, "GRPO-8", 0, tmp_path)
    files = [tmp_path / "grpo-8/seed-0" / name for name in ("exact.jsonl", "evaluations.jsonl")]
    whole = [file.read_text() for file in files]
    for file in files:
        kept = [row for row in read_rows(file) if row["step"] < 4]
        file.write_text("".join(json.dumps(row) + "\n" for row in kept))
    for _ in range(2):
        run_one(small, "GRPO-8", 0, tmp_path)
        assert [file.read_text() for file in files] == whole


def test_bad_blocks_and_problems_are_refused(small):
    with pytest.raises(ValueError, match="blocks"):
        replace(small, blocks=0)
    with pytest.raises(ValueError, match="problems"):
        replace(small, problems="cipher-9-{block}")
    with pytest.raises(ValueError, match="temperature"):
        replace(small, methods={"GRPO-8": {"num_drafts": 0, "num_refinements": 2, "temperature": "hot"}})
    assert "cipher-shifted-15-5" in definitions.PREPARED
