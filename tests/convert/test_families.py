"""Every family with every tokenizer kind: converted, loaded in llama.cpp, equal to transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nptool.checkpoints import load_model
from nptool.convert.conversion import convert
from nptool.llama.context import Context
from nptool.llama.model import Model

F32_TOLERANCE = 1e-3
"""Of the logits' spread."""
LLAMA, MISTRAL, QWEN2, QWEN3 = (f"{name}ForCausalLM" for name in ("Llama", "Mistral", "Qwen2", "Qwen3"))
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 512,
}
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 100000.0, "factor": 4.0}
YARN_ROPE = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 1024}

CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama 1": (LLAMA, "prepend+model", {"num_key_value_heads": 4}),
    "llama 2": (LLAMA, "prepend+both", {}),
    "llama 3": (LLAMA, "llama-bpe", {"rope_parameters": LLAMA3_ROPE, "tie_word_embeddings": True}),
    "llama with biases": (LLAMA, "gpt-2", {"attention_bias": True, "mlp_bias": True}),
    "llama with wide heads": (LLAMA, "own", {"head_dim": 32}),
    "smollm": (LLAMA, "smollm", {"tie_word_embeddings": True, "num_attention_heads": 8, "num_key_value_heads": 1}),
    "tinyllama": (LLAMA, "prepend+json", {"dtype": torch.bfloat16}),
    "deepseek-coder": (LLAMA, "deepseek-coder", {"rope_parameters": LINEAR_ROPE, "vocab_size": 544}),
    "deepseek-llm": (LLAMA, "deepseek-llm", {}),
    "mistral 0.1": (MISTRAL, "prepend+both", {"sliding_window": 2048}),
    "mistral 0.3": (MISTRAL, "metaspace+json", {"sliding_window": None}),
    "mistral nemo": (MISTRAL, "tekken", {"sliding_window": None, "head_dim": 8}),
    "qwen 2": (QWEN2, "qwen2", {"tie_word_embeddings": True, "shards": 3}),
    "qwen 2.5 with yarn": (QWEN2, "qwen2", {"rope_parameters": YARN_ROPE}),
    "qwen 3": (QWEN3, "qwen2", {"head_dim": 32, "tie_word_embeddings": True}),
    "qwen 3 with yarn": (QWEN3, "qwen2", {"rope_parameters": YARN_ROPE, "head_dim": 16, "shards": 2}),
}


@pytest.mark.parametrize("case", CASES)
def test_family_is_equal_to_transformers(case: str, make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    architecture, tokenizer, settings = CASES[case]
    directory = make_checkpoint(architecture, tokenizer, **settings)
    done = convert(directory, tmp_path / "model.gguf", type_name="f32")
    assert done.verification is not None
    assert done.verification.logits.relative < F32_TOLERANCE
    assert done.verification.logits.same_choice == 1.0
    assert done.architecture == ("qwen3" if architecture == QWEN3 else "llama")
    assert _plain_difference(directory, done.path) < F32_TOLERANCE


def _plain_difference(directory: Path, path: Path) -> float:
    """Largest difference of the logits in units of their spread, by the code that decodes, not that which verifies."""
    ids = np.random.default_rng(5).integers(0, 400, 48).astype(np.int32)
    with torch.inference_mode():
        expected = load_model(directory)(torch.tensor(ids[None].tolist())).logits[0].numpy()
    with (
        Model.load(path) as model,
        Context(model, 128, width=48, batch=64, flash_attention=False, kv_type="f32") as context,
    ):
        found = context.evaluate(ids, 0).copy()
    return float(np.abs(found - expected).max() / expected.std())
