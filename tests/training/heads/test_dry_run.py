"""The estimate of a training of heads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nptool.checkpoints import load_model
from nptool.training.heads.config import HeadsConfig
from nptool.training.heads.dry_run import dry_run
from nptool.training.heads.train import train_heads


def test_the_estimate_counts_what_the_training_will_do(collected: Path) -> None:
    config = HeadsConfig(data=(collected,), epochs=3.0, batch_tokens=150, heldout=0.2, name="one")
    estimate = dry_run(config)
    result = train_heads(config)
    assert estimate["steps"] == result.steps
    assert estimate["trained_parameters"] == result.trained_parameters
    assert estimate["parameters"] == result.parameters + result.trained_parameters
    assert estimate["memory"]["gradients"] == 4 * result.trained_parameters
    joint = dry_run(HeadsConfig(data=(collected,), joint=True, name="two"))
    assert joint["trained_parameters"] == estimate["parameters"]
    assert joint["memory"]["total"] > estimate["memory"]["total"]


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_a_frozen_trunk_takes_what_it_is_loaded_in(collected: Path, checkpoint: Path, stored: torch.dtype) -> None:
    load_model(checkpoint, stored).save_pretrained(checkpoint)
    estimate = dry_run(HeadsConfig(data=(collected,), precision="bfloat16", name="one"))
    heads = estimate["trained_parameters"]
    trunk = estimate["parameters"] - heads
    # Weights of heads are in float32, with autocast's copies; so are those of a trunk in float32.
    assert estimate["memory"]["weights"] == 6 * heads + (2 if stored is torch.bfloat16 else 6) * trunk
