"""Converts a family's checkpoints and compares them with transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nptool.checkpoints import load_model
from nptool.convert.conversion import Conversion, convert
from nptool.llama.context import Context
from nptool.llama.model import Model

F32_TOLERANCE = 1e-3
"""Of the logits' spread."""


@pytest.fixture
def convert_equal(make_checkpoint: Callable[..., Path], tmp_path: Path) -> Callable[..., Conversion]:
    """Convert a random checkpoint to F32 and check its logits: `convert_equal(architecture, tokenizer, **settings)`."""

    def convert_one(architecture: str, tokenizer: str, **settings: Any) -> Conversion:
        directory = make_checkpoint(architecture, tokenizer, **settings)
        done = convert(directory, tmp_path / "model.gguf", type_name="f32")
        assert done.verification is not None
        assert done.verification.logits.relative < F32_TOLERANCE
        assert done.verification.logits.same_choice == 1.0
        assert _plain_difference(directory, done.path) < F32_TOLERANCE
        return done

    return convert_one


def _plain_difference(directory: Path, path: Path) -> float:
    """Largest difference of the logits in units of their spread, by the code that decodes, not that which verifies."""
    ids = np.random.default_rng(5).integers(0, 400, 48).astype(np.int32)
    with torch.inference_mode():
        expected = load_model(directory)(torch.tensor(ids[None].tolist())).logits[0].numpy()
    with (
        Model.load(path) as model,
        Context(
            model, 128, width=48, batch=64, flash_attention=False, cache_type_k="f32", cache_type_v="f32"
        ) as context,
    ):
        found = context.evaluate(ids, 0).copy()
    return float(np.abs(found - expected).max() / expected.std())
