"""Small random models of every family, and a collection whose responses a head can learn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fixtures.random_models import FAMILIES, exact_model, save_byte_model
from fixtures.trajectories import write_trajectories
from transformers import PreTrainedModel

from nptool.collection.store import Trajectory


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    """Every architecture that `nptool convert` supports."""
    return str(request.param)


@pytest.fixture
def build() -> Callable[..., PreTrainedModel]:
    """Builds a three-layer float64 model of a family, tied or not; equal calls give equal weights."""

    def make(family: str, tied: bool = False) -> PreTrainedModel:
        return exact_model(family, 3, tie_word_embeddings=tied)

    return make


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A three-layer Llama with a byte-level tokenizer and a chat template."""
    return save_byte_model(tmp_path / "base" / "model", 3)


@pytest.fixture
def collected(tmp_path: Path, checkpoint: Path) -> Path:
    """A file of 40 trajectories, n = 4, whose responses count up, modulo 5, from the prompt's last token."""
    rows = [_counting(seed, 3 + seed % 5, 5 + seed % 9) for seed in range(40)]
    return write_trajectories(tmp_path / "collected" / "trajectories.parquet", checkpoint, rows)


def _counting(seed: int, prompt: int, response: int, block: int = 4) -> Trajectory:
    prompt_ids = np.random.default_rng(seed).integers(200, size=prompt).astype(np.int32)
    fixed = (10 + (prompt_ids[-1] + np.arange(response + -response % block)) % 5).astype(np.int32)
    states = tuple(row[None] for row in fixed.reshape(-1, block))
    return Trajectory(prompt_ids, fixed[:response], None, states)
