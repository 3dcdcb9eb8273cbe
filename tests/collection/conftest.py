"""Small random models and a tokenizer for the collection tests."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCABULARY = 61
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.6,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}


def build_model(family: str, seed: int = 0, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    """A two-layer model with random weights; "mistral" has a sliding window of 12 tokens."""
    torch.manual_seed(seed)
    model: PreTrainedModel
    if family == "llama":
        model = LlamaForCausalLM(LlamaConfig(**SIZES))
    elif family == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**SIZES))
    elif family == "qwen3":
        model = Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=8))
    else:
        model = MistralForCausalLM(MistralConfig(**SIZES, sliding_window=12))
    return model.to(dtype).eval()


FAMILIES = ["llama", "qwen2", "qwen3", "mistral"]


@pytest.fixture(scope="session", params=FAMILIES)
def float32_model(request: pytest.FixtureRequest) -> PreTrainedModel:
    """One model of each family, float32."""
    return build_model(request.param, dtype=torch.float32)


@pytest.fixture(scope="session", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    """One model of each family, float64."""
    return build_model(request.param)


@pytest.fixture(scope="session")
def llama() -> PreTrainedModel:
    """A float64 Llama."""
    return build_model("llama")
