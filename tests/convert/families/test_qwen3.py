"""Qwen 3, dense."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nptool.convert.conversion import Conversion, convert
from nptool.errors import CheckpointError

ARCHITECTURE = "Qwen3ForCausalLM"
YARN_ROPE = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 1024}
CASES: dict[str, dict[str, Any]] = {
    "tied": {"head_dim": 32, "tie_word_embeddings": True},
    "with yarn": {"rope_parameters": YARN_ROPE, "head_dim": 16, "shards": 2},
}


@pytest.mark.parametrize("case", CASES)
def test_equal_to_transformers(case: str, convert_equal: Callable[..., Conversion]) -> None:
    assert convert_equal(ARCHITECTURE, "qwen2", **CASES[case]).architecture == "qwen3"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_bias": True}, "attention_bias is on; llama.cpp's qwen3 graph has no biases"),
        (
            {"rope_parameters": {"rope_type": "llama3", "factor": 8.0}},
            "RoPE scaling 'llama3' is not supported; expected one of default, linear, yarn",
        ),
    ],
)
def test_refused(changes: dict[str, Any], message: str, make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    directory = make_checkpoint(ARCHITECTURE, "qwen2")
    config = directory / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    with pytest.raises(CheckpointError) as caught:
        convert(directory, tmp_path / "model.gguf", verified=False)
    assert str(caught.value) == f"{directory}: {message}"
    assert not list(tmp_path.iterdir())
