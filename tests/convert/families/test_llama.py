"""Llama and models of its architecture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from nptool.convert.conversion import Conversion

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 512,
}
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 100000.0, "factor": 4.0}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama 1": ("prepend+model", {"num_key_value_heads": 4}),
    "llama 2": ("prepend+both", {}),
    "llama 3": ("llama-bpe", {"rope_parameters": LLAMA3_ROPE, "tie_word_embeddings": True}),
    "with biases": ("gpt-2", {"attention_bias": True, "mlp_bias": True}),
    "with wide heads": ("own", {"head_dim": 32}),
    "smollm": ("smollm", {"tie_word_embeddings": True, "num_attention_heads": 8, "num_key_value_heads": 1}),
    "tinyllama": ("prepend+json", {"dtype": torch.bfloat16}),
    "deepseek-coder": ("deepseek-coder", {"rope_parameters": LINEAR_ROPE, "vocab_size": 544}),
    "deepseek-llm": ("deepseek-llm", {}),
}


@pytest.mark.parametrize("case", CASES)
def test_equal_to_transformers(case: str, convert_equal: Callable[..., Conversion]) -> None:
    tokenizer, settings = CASES[case]
    assert convert_equal("LlamaForCausalLM", tokenizer, **settings).architecture == "llama"
