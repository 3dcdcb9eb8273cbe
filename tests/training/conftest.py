"""Small models, tokenizers and data files for the tests of training."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
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

from nptool.checkpoints import load_tokenizer, save_model
from nptool.collection.store import CollectionMetadata, Trajectory, write_collected
from nptool.data.rendering import tokenizer_digest
from nptool.training.base.config import SMALLEST_VOCABULARY, BaseConfig
from nptool.training.base.model import new_llama
from nptool.training.base.tokenizer import train_tokenizer

TEXT = "the cat sat on a mat and saw seven red birds in one tall tree near our house"
WORDS = TEXT.split()
VOCABULARY = 29
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.5,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}


def sentence(number: int) -> str:
    """A sentence of 6 to 12 words that differs for every number."""
    return " ".join(WORDS[(number * 7 + index * (number % 5 + 1)) % len(WORDS)] for index in range(6 + number % 7))


@pytest.fixture(autouse=True)
def _one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two-layer models are fastest on one thread; run directories and files belong into the test's own folder."""
    monkeypatch.chdir(tmp_path)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer((sentence(number) for number in range(50)), 320)


@pytest.fixture
def records_file(tmp_path: Path) -> Path:
    """60 prompt/response records of different lengths."""
    path = tmp_path / "records.jsonl"
    lines = ({"prompt": f"{number}: {sentence(number)}", "response": sentence(3 * number + 1)} for number in range(60))
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture
def tiny() -> Callable[..., BaseConfig]:
    """A configuration of a two-layer model; any field by keyword."""

    def make(**fields: object) -> BaseConfig:
        defaults: dict[str, object] = {
            "data": (Path("records.jsonl"),),
            "hidden_size": 32,
            "layers": 2,
            "attention_heads": 2,
            "vocab_size": 320,
            "context": 128,
            "batch_tokens": 256,
            "steps": 12,
            "save_every": 5,
            "log_every": 2,
            "heldout": 0.1,
        }
        return BaseConfig(**{**defaults, **fields})  # type: ignore[arg-type]  # fields of several types

    return make


@pytest.fixture
def model(tokenizer: PreTrainedTokenizerFast, tiny: Callable[..., BaseConfig]) -> LlamaForCausalLM:
    return new_llama(tiny(), tokenizer).eval()


@pytest.fixture
def checkpoint(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    """A two-layer model saved as a Hugging Face directory."""
    path = tmp_path / "checkpoint"
    save_model(model, tokenizer, path)
    return path


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test asks the network."""
    monkeypatch.setattr("nptool.checkpoints.hub_has", lambda ref: False)
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")


class ExactNorm(nn.Module):
    """RMSNorm in the dtype of its input: transformers' own goes through float32, also in a float64 model."""

    def __init__(self, weight: nn.Parameter, epsilon: float) -> None:
        super().__init__()
        self.weight = weight
        self.epsilon = epsilon

    def forward(self, hidden: Tensor) -> Tensor:
        return self.weight * hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + self.epsilon)


def _exact_model(family: str, layers: int, **options: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = SIZES | {"num_hidden_layers": layers} | options
    classes: dict[str, Any] = {
        "llama": (LlamaForCausalLM, LlamaConfig(**sizes)),
        "qwen2": (Qwen2ForCausalLM, Qwen2Config(**sizes)),
        "qwen3": (Qwen3ForCausalLM, Qwen3Config(**sizes, head_dim=4)),
        "mistral": (MistralForCausalLM, MistralConfig(**sizes, sliding_window=None)),
    }
    make, config = classes[family]
    model: PreTrainedModel = make(config).double()
    for name, module in list(model.named_modules()):
        if type(module).__name__.endswith("RMSNorm"):
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, ExactNorm(module.weight, module.variance_epsilon))
    return model


@pytest.fixture(scope="session")
def exact_model() -> Callable[..., PreTrainedModel]:
    """Builds a float64 model of a family; equal calls give equal weights."""
    return _exact_model


@pytest.fixture(scope="session")
def save_byte_model() -> Callable[[Path, int], Path]:
    """Saves a Llama of so many layers with a byte-level tokenizer and a chat template; returns its path."""

    def save(path: Path, layers: int) -> Path:
        tokenizer = train_tokenizer(["select a from b"], SMALLEST_VOCABULARY)
        torch.manual_seed(0)
        sizes = SIZES | {"vocab_size": len(tokenizer), "num_hidden_layers": layers}
        sizes |= {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
        save_model(LlamaForCausalLM(LlamaConfig(**sizes)), tokenizer, path)
        return path

    return save


@pytest.fixture(scope="session")
def write_rows() -> Callable[[Path, Path, Sequence[Trajectory]], Path]:
    """Writes a file of trajectories, n = 4, of a checkpoint; returns its path."""

    def write(path: Path, checkpoint: Path, rows: Sequence[Trajectory]) -> Path:
        tokenizer = load_tokenizer(checkpoint)
        metadata = CollectionMetadata(
            n=4,
            model=str(checkpoint),
            model_digest="0",
            tokenizer_digest=tokenizer_digest(tokenizer),
            vocab_size=len(tokenizer),
            template=str(tokenizer.chat_template),
            seed=0,
            temperature=0.0,
            max_new_tokens=32,
            end_token_ids=(int(tokenizer.eos_token_id),),
            pad_token_id=int(tokenizer.pad_token_id),
            augmented=False,
        )
        write_collected(path, metadata, rows)
        return path

    return write


@pytest.fixture(scope="session")
def make_trajectory() -> Callable[..., Trajectory]:
    """Makes a trajectory of random tokens from a seed and lengths."""

    def make(seed: int, prompt: int = 5, response: int = 9, block: int = 4) -> Trajectory:
        rng = np.random.default_rng(seed)

        def draw(count: int) -> np.ndarray:
            return rng.integers(VOCABULARY, size=count).astype(np.int32)

        response_ids = draw(response)
        fixed = np.concatenate([response_ids, draw(-response % block)]).reshape(-1, block)
        return Trajectory(draw(prompt), response_ids, draw(response + 2), tuple(_states(row, rng) for row in fixed))

    return make


def _states(fixed: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """States that each correct the first wrong token, and by chance some after it."""
    state = rng.integers(VOCABULARY, size=len(fixed)).astype(np.int32)
    states = [state]
    while (state != fixed).any():
        right = int(np.flatnonzero(state != fixed)[0]) + 1
        state = np.where(rng.random(len(fixed)) < 0.3, fixed, rng.integers(VOCABULARY, size=len(fixed)))
        state[:right] = fixed[:right]
        states.append(state.astype(np.int32))
    return np.stack(states)
