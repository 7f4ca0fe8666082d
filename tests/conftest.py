"""What every test shares: one torch thread (two stall each other on two cores), and no network."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")

import pytest


@pytest.fixture(scope="session")
def tiny_policy():
    """The committed Countdown policy; shared, so not to be trained (copy its model first)."""
    from igrpo_kit.policies.load import load_policy

    return load_policy("tiny", device="cpu")
