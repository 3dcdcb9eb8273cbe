"""The Trainer's arguments on a machine with one GPU or several."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from transformers import TrainingArguments

from nptool.runs import Run
from nptool.training.arguments import training_arguments
from nptool.training.config import TrainingConfig


@pytest.mark.parametrize(
    ("found", "messages"), [(1, []), (3, ["one of 3 GPUs is used; `accelerate launch -m nptool ...` uses them all"])]
)
def test_a_packed_batch_is_not_cut_among_gpus(
    found: int, messages: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def look(arguments: TrainingArguments) -> torch.device:
        arguments.__dict__.setdefault("_n_gpu", found)
        return torch.device("cpu")

    monkeypatch.setattr(TrainingArguments, "_setup_devices", property(look))
    with caplog.at_level(logging.WARNING, "nptool"):
        arguments = training_arguments(TrainingConfig(), Run(tmp_path), steps=3)
    # The Trainer puts a model into DataParallel where this is above 1.
    assert arguments.n_gpu == 1
    assert [record.getMessage() for record in caplog.records] == messages
