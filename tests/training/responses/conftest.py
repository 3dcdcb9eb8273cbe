"""A model, and trajectories of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from fixtures.random_models import save_byte_model
from fixtures.trajectories import random_trajectory, write_trajectories


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A two-layer Llama with a byte-level tokenizer and a chat template."""
    return save_byte_model(tmp_path / "base" / "model", 2)


@pytest.fixture
def collected(tmp_path: Path, checkpoint: Path) -> Path:
    """A file of 3 random trajectories of the checkpoint's vocabulary, n = 4."""
    path = tmp_path / "collected" / "trajectories.parquet"
    return write_trajectories(path, checkpoint, [random_trajectory(seed) for seed in range(3)])
