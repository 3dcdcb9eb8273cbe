"""The estimate of a training of heads."""

from __future__ import annotations

from pathlib import Path

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
