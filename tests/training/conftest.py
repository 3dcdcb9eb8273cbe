"""Small models, tokenizers and data files for the tests of training."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from nptool.checkpoints import save_model
from nptool.training.base.config import BaseConfig
from nptool.training.base.model import new_llama
from nptool.training.base.tokenizer import train_tokenizer

TEXT = "the cat sat on a mat and saw seven red birds in one tall tree near our house"
WORDS = TEXT.split()


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
