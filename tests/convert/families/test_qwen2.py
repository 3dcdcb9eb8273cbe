"""Qwen 2 and 2.5."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from nptool.convert.conversion import Conversion

YARN_ROPE = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 1024}
CASES: dict[str, dict[str, Any]] = {
    "tied": {"tie_word_embeddings": True, "shards": 3},
    "with yarn": {"rope_parameters": YARN_ROPE},
}


@pytest.mark.parametrize("case", CASES)
def test_equal_to_transformers(case: str, convert_equal: Callable[..., Conversion]) -> None:
    assert convert_equal("Qwen2ForCausalLM", "qwen2", **CASES[case]).architecture == "llama"
