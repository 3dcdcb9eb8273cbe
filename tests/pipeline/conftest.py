"""A small random model and plain texts to continue, because a random model does not end its answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fixtures.random_models import save_byte_model


@pytest.fixture(autouse=True)
def _one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run directories go to the test's own folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Llama with a byte-level tokenizer and a context of 256 tokens."""
    return save_byte_model(tmp_path_factory.mktemp("base") / "model", 2, max_position_embeddings=256)


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 texts from which prompts are cut."""
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    lines = (f"{i} select all the rows of table {i} where the value is {7 * i}. " * 4 for i in range(30))
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return path
