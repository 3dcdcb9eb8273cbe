"""A model, and trajectories of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from nptool.collection.store import Trajectory


@pytest.fixture
def checkpoint(tmp_path: Path, save_byte_model: Callable[[Path, int], Path]) -> Path:
    """A two-layer Llama with a byte-level tokenizer and a chat template."""
    return save_byte_model(tmp_path / "base" / "model", 2)


@pytest.fixture
def collected(
    tmp_path: Path, checkpoint: Path, make_trajectory: Callable[..., Trajectory], write_rows: Callable[..., Path]
) -> Path:
    """A file of 3 random trajectories of the checkpoint's vocabulary, n = 4."""
    path = tmp_path / "collected" / "trajectories.parquet"
    return write_rows(path, checkpoint, [make_trajectory(seed) for seed in range(3)])
