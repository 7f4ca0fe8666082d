import random

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from igrpo_kit.core.randomness import random_states, restore_random_states
from igrpo_kit.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint


def test_a_tree_comes_back_with_its_types(tmp_path):
    tied = torch.arange(6).view(2, 3).float()
    state = {
        "step": 3,
        "lr": 1e-6,
        "name": "π \u2603",
        "none": None,
        "flag": True,
        "nan": float("nan"),
        "list": [tied, [tied.t(), torch.zeros(0)], torch.tensor(7, dtype=torch.int64)],
        "by index": {0: {"exp_avg": tied.bfloat16()}, 1: {}},
    }
    save_checkpoint(tmp_path / "c", state)
    got = load_checkpoint(tmp_path / "c")
    assert [got[k] for k in ("step", "lr", "name", "none", "flag")] == [3, 1e-6, "π \u2603", None, True]
    assert got["nan"] != got["nan"]
    assert got["list"][0].equal(tied)
    assert got["list"][1][0].equal(tied.t())
    assert got["list"][1][1].shape == (0,)
    assert got["list"][2].dtype == torch.int64
    assert got["by index"][0]["exp_avg"].dtype == torch.bfloat16
    assert list(got["by index"]) == [0, 1]


def test_only_plain_values_and_tensors_are_taken(tmp_path):
    with pytest.raises(TypeError, match="function"):
        save_checkpoint(tmp_path / "c", {"f": test_a_tree_comes_back_with_its_types})
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("position", [0, 100, -1, -50])
def test_a_changed_byte_is_noticed(tmp_path, position):
    path = tmp_path / "c"
    save_checkpoint(path, {"weights": torch.arange(100.0), "step": 3})
    content = bytearray(path.read_bytes())
    content[position] ^= 0x01
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"damaged|not a checkpoint"):
        load_checkpoint(path)


@pytest.mark.parametrize("size", [0, 7, 60, 400])
def test_a_short_file_is_noticed(tmp_path, size):
    path = tmp_path / "c"
    save_checkpoint(path, {"weights": torch.arange(100.0)})
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(path)


def test_a_foreign_file_is_no_checkpoint(tmp_path):
    save_file({"weights": torch.zeros(3)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="not a checkpoint of igrpo_kit"):
        load_checkpoint(tmp_path / "model.safetensors")
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "missing")


def test_every_generator_goes_on_where_it_was(tmp_path):
    def draw():
        return random.random(), np.random.rand(), np.random.randn(), torch.rand(1).item(), random.gauss(0, 1)

    draw()
    save_checkpoint(tmp_path / "c", random_states())
    expected = draw()
    draw()
    restore_random_states(load_checkpoint(tmp_path / "c"))
    assert draw() == expected
