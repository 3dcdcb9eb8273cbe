"""Small random models of every family, and trajectories of random tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedModel

from nptool.collection.store import Trajectory

Build = Callable[..., PreTrainedModel]


@pytest.fixture(scope="session", params=["llama", "qwen2", "qwen3", "mistral"])
def model(request: pytest.FixtureRequest, exact_model: Build) -> PreTrainedModel:
    """One model of each family."""
    return exact_model(request.param, 2)


@pytest.fixture(scope="session")
def llama(exact_model: Build) -> PreTrainedModel:
    """A Llama."""
    return exact_model("llama", 2)


@pytest.fixture(scope="session")
def eager_llama(exact_model: Build) -> PreTrainedModel:
    """The same Llama with eager attention."""
    return exact_model("llama", 2, attn_implementation="eager")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, save_byte_model: Callable[[Path, int], Path]) -> Path:
    """A two-layer Llama with a byte-level tokenizer and a chat template."""
    return save_byte_model(tmp_path_factory.mktemp("base") / "model", 2)


@pytest.fixture(scope="session")
def collected(
    tmp_path_factory: pytest.TempPathFactory,
    checkpoint: Path,
    make_trajectory: Callable[..., Trajectory],
    write_rows: Callable[..., Path],
) -> Path:
    """A file of 30 random trajectories of the checkpoint's vocabulary, n = 4."""
    rows = [make_trajectory(seed, 3 + seed % 5, 5 + seed % 9) for seed in range(30)]
    return write_rows(tmp_path_factory.mktemp("collected") / "trajectories.parquet", checkpoint, rows)
