"""Small random models and a tokenizer for the collection tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from nptool.checkpoints import save_model

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


TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|bos|>", "<|end|>", "<|user|>", "<|assistant|>"]
END = 1


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face directory: a random Llama with a context of 128 and a byte tokenizer with a chat template."""
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(SPECIAL)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|bos|>", eos_token="<|end|>", chat_template=TEMPLATE
    )
    torch.manual_seed(1)
    sizes = SIZES | {"vocab_size": len(vocabulary), "max_position_embeddings": 128, "eos_token_id": END}
    model = LlamaForCausalLM(LlamaConfig(**sizes))
    path = tmp_path_factory.mktemp("checkpoint") / "model"
    save_model(model, tokenizer, path)
    return path


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """150 questions, answered."""
    path = tmp_path / "questions.jsonl"
    lines = (json.dumps({"question": f"What is {number}?", "answer": f"It is {number}."}) for number in range(150))
    path.write_text("\n".join(lines))
    return path
