"""Small random models, and trajectories as a random model would leave them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.trajectories import random_trajectories, random_trajectory, write_trajectories
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
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
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


def build_model(family: str, attention: str = "sdpa") -> PreTrainedModel:
    """A two-layer float64 model."""
    torch.manual_seed(0)
    classes: dict[str, Any] = {
        "llama": (LlamaForCausalLM, LlamaConfig(**SIZES, attn_implementation=attention)),
        "qwen2": (Qwen2ForCausalLM, Qwen2Config(**SIZES, attn_implementation=attention)),
        "qwen3": (Qwen3ForCausalLM, Qwen3Config(**SIZES, head_dim=4, attn_implementation=attention)),
        "mistral": (MistralForCausalLM, MistralConfig(**SIZES, sliding_window=None, attn_implementation=attention)),
    }
    make, config = classes[family]
    model: PreTrainedModel = make(config).double()
    for name, module in list(model.named_modules()):
        if type(module).__name__.endswith("RMSNorm"):
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, ExactNorm(module.weight, module.variance_epsilon))
    return model


@pytest.fixture(scope="session", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    """One model of each family."""
    return build_model(request.param)


@pytest.fixture(scope="session")
def llama() -> PreTrainedModel:
    """A Llama."""
    return build_model("llama")


@pytest.fixture(scope="session")
def eager_llama() -> PreTrainedModel:
    """The same Llama with eager attention."""
    return build_model("llama", "eager")


@pytest.fixture(scope="session")
def make_trajectory() -> Callable[..., Trajectory]:
    """Makes a random trajectory from a seed and lengths."""
    return random_trajectory


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama with a byte-level tokenizer and a chat template."""
    tokenizer = train_tokenizer(["select a from b"], SMALLEST_VOCABULARY)
    torch.manual_seed(0)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = LlamaConfig(**SIZES | {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id} | ends)
    path = tmp_path_factory.mktemp("base") / "model"
    save_model(LlamaForCausalLM(config), tokenizer, path)
    return path


@pytest.fixture(scope="session")
def collected(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:
    """A file of 30 random trajectories of the checkpoint's vocabulary, n = 4."""
    path = tmp_path_factory.mktemp("collected") / "trajectories.parquet"
    return write_trajectories(path, checkpoint, random_trajectories(30))
