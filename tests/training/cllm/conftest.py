"""Small random models of every family, and trajectories of random tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
from fixtures.random_models import FAMILIES, exact_model, save_byte_model
from fixtures.trajectories import random_trajectories, write_trajectories
from transformers import PreTrainedModel


@pytest.fixture(scope="session", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    """One model of each family."""
    return exact_model(request.param, 2)


@pytest.fixture(scope="session")
def llama() -> PreTrainedModel:
    """A Llama."""
    return exact_model("llama", 2)


@pytest.fixture(scope="session")
def eager_llama() -> PreTrainedModel:
    """The same Llama with eager attention."""
    return exact_model("llama", 2, attn_implementation="eager")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Llama with a byte-level tokenizer and a chat template."""
    return save_byte_model(tmp_path_factory.mktemp("base") / "model", 2)


@pytest.fixture(scope="session")
def collected(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:
    """A file of 30 random trajectories of the checkpoint's vocabulary, n = 4."""
    path = tmp_path_factory.mktemp("collected") / "trajectories.parquet"
    return write_trajectories(path, checkpoint, random_trajectories(30))
