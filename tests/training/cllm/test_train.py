"""Training runs: from trajectories or prompts to a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from nptool.training.cllm.config import CllmConfig
from nptool.training.cllm.train import train_cllm


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_training_lowers_both_terms(collected: Path, checkpoint: Path) -> None:
    config = CllmConfig(data=(collected,), lr=1e-2, epochs=20, batch_tokens=200, log_every=5, name="one")
    result = train_cllm(config)
    print(result)
    assert result.consistency_last < result.consistency_first
    assert result.ar_last < result.ar_first
