import random

import numpy as np
import pytest
import torch

from igrpo_kit.core.randomness import derived_seed, random_states, restore_random_states


@pytest.mark.parametrize(
    ("seed", "purpose", "expected"),
    [
        # the first 14 digits of `printf '0 sampling' | sha256sum`: seeds of committed runs, not to be changed
        (0, "sampling", 0xEB8B6352706F9D),
        (0, "selection", 0xB101997724F7B9),
        (1, "epoch 0", 0xD2B4E088004DC5),
    ],
)
def test_seeds_by_hand(seed, purpose, expected):
    assert derived_seed(seed, purpose) == expected


def test_no_two_purposes_or_runs_share_a_seed_and_every_library_takes_it():
    purposes = ["sampling", "selection", *(f"epoch {i}" for i in range(100))]
    seeds = {derived_seed(seed, purpose) for seed in range(20) for purpose in purposes}
    assert len(seeds) == 2040
    assert all(0 <= seed < 2**56 for seed in seeds)
    largest = max(seeds)
    torch.Generator().manual_seed(largest)
    np.random.default_rng(largest)


def numbers():
    """From each global generator; normal numbers come in pairs, of which the second is kept for later."""
    return [
        random.random(),
        random.gauss(0.0, 1.0),
        np.random.random(),
        np.random.standard_normal(),
        *torch.rand(3).tolist(),
    ]


def test_restored_generators_go_on_as_they_would_have():
    before = random_states()
    try:
        numbers()  # now Python and NumPy hold the second number of a pair
        states = random_states()
        expected = [numbers(), numbers()]
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        assert numbers() != expected[0]
        restore_random_states(states)
        assert [numbers(), numbers()] == expected
    finally:
        restore_random_states(before)


def test_states_are_plain_data_that_a_checkpoint_can_hold(tmp_path):
    states = random_states()
    torch.save(states, tmp_path / "states.pt")
    expected = numbers()
    restore_random_states(torch.load(tmp_path / "states.pt", weights_only=True))
    assert numbers() == expected
