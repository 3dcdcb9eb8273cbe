"""Small random models of every family, and a collection of a model that says what it was taught."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures.trajectories import write_trajectories
from torch import Tensor, nn
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

from nptool.checkpoints import save_model
from nptool.collection.store import Trajectory
from nptool.training.base.config import SMALLEST_VOCABULARY
from nptool.training.base.tokenizer import train_tokenizer

VOCABULARY = 29
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.5,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
FAMILIES = ("llama", "qwen2", "qwen3", "mistral")


class ExactNorm(nn.Module):
    """RMSNorm in the dtype of its input: transformers' own goes through float32, also in a float64 model."""

    def __init__(self, weight: nn.Parameter, epsilon: float) -> None:
        super().__init__()
        self.weight = weight
        self.epsilon = epsilon

    def forward(self, hidden: Tensor) -> Tensor:
        return self.weight * hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + self.epsilon)


def _build(family: str, tied: bool = False) -> PreTrainedModel:
    """A three-layer float64 model."""
    torch.manual_seed(0)
    sizes = {**SIZES, "tie_word_embeddings": tied}
    make, config = {
        "llama": (LlamaForCausalLM, lambda: LlamaConfig(**sizes)),
        "qwen2": (Qwen2ForCausalLM, lambda: Qwen2Config(**sizes)),
        "qwen3": (Qwen3ForCausalLM, lambda: Qwen3Config(**sizes, head_dim=4)),
        "mistral": (MistralForCausalLM, lambda: MistralConfig(**sizes, sliding_window=None)),
    }[family]
    model: Any = make(config()).double()
    for name, module in list(model.named_modules()):
        if type(module).__name__.endswith("RMSNorm"):
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, ExactNorm(module.weight, module.variance_epsilon))
    built: PreTrainedModel = model
    return built


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    """Every architecture that `nptool convert` knows."""
    return str(request.param)


@pytest.fixture
def build() -> Callable[..., PreTrainedModel]:
    """Builds a float64 model of a family, tied or not; equal calls give equal weights."""
    return _build


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A small Llama with a byte-level tokenizer and a chat template."""
    tokenizer = train_tokenizer(["select a from b"], SMALLEST_VOCABULARY)
    torch.manual_seed(0)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    sizes = SIZES | {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id} | ends
    path = tmp_path / "base" / "model"
    save_model(LlamaForCausalLM(LlamaConfig(**sizes)), tokenizer, path)
    return path


@pytest.fixture
def collected(tmp_path: Path, checkpoint: Path) -> Path:
    """A file of 40 trajectories, n = 4, whose responses count, modulo 5, upwards from the prompt's last token."""
    rows = [_counting(seed, 3 + seed % 5, 5 + seed % 9) for seed in range(40)]
    return write_trajectories(tmp_path / "collected" / "trajectories.parquet", checkpoint, rows)


def _counting(seed: int, prompt: int, response: int, block: int = 4) -> Trajectory:
    prompt_ids = np.random.default_rng(seed).integers(200, size=prompt).astype(np.int32)
    fixed = (10 + (prompt_ids[-1] + np.arange(response + -response % block)) % 5).astype(np.int32)
    states = tuple(row[None] for row in fixed.reshape(-1, block))
    return Trajectory(prompt_ids, fixed[:response], None, states)
