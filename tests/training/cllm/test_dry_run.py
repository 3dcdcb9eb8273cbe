"""What a training takes from the newest run, the name of its own, and its estimate."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nptool.checkpoints import load_model
from nptool.collection.store import read_collected
from nptool.errors import UsageError
from nptool.runs import Run
from nptool.training.cllm.config import CllmConfig
from nptool.training.cllm.dry_run import dry_run
from nptool.training.cllm.planning import plan
from nptool.training.cllm.train import train_cllm
from nptool.training.responses.config import run_defaults


def test_without_data_the_newest_run_s_trajectories_are_taken(collected: Path, checkpoint: Path) -> None:
    run = Run.create("base-1")
    run.publish()
    with pytest.raises(UsageError, match=r"runs/base-1 holds no collected\.parquet; make trajectories with"):
        run_defaults({})
    run.collected.write_bytes(collected.read_bytes())
    assert run_defaults({}) == {"data": (run.collected,)}
    assert run_defaults({"data": (collected,)}) == {}
    with pytest.raises(UsageError, match="--data is missing; make trajectories"):
        run_defaults({"model": str(checkpoint)})


def test_a_run_is_named_after_the_run_its_trajectories_lie_in(collected: Path) -> None:
    run = Run.create("base-1")
    run.collected.write_bytes(collected.read_bytes())
    run.config.write_text("{}")
    assert CllmConfig(data=(run.collected,)).run_name.startswith("cllm-base-1-")
    assert CllmConfig(data=(collected,)).run_name.startswith("cllm-trajectories-")


def test_the_estimate_counts_what_the_training_will_do(collected: Path) -> None:
    config = CllmConfig(data=(collected,), epochs=3.0, batch_tokens=250, name="one")
    estimate = dry_run(config)
    planned = plan(list(read_collected(collected).rows()), config, 0, 250, lambda batches: batches)
    assert estimate["data_tokens"] == sum(planned.tokens)
    assert estimate["parameters"] == estimate["trained_parameters"] == 12_304
    assert estimate["run"] == "one"
    result = train_cllm(config)
    assert result.steps == estimate["steps"]


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_adapters_leave_the_model_in_its_own_type(collected: Path, checkpoint: Path, stored: torch.dtype) -> None:
    load_model(checkpoint, stored).save_pretrained(checkpoint)
    estimate = dry_run(CllmConfig(data=(collected,), lora_rank=2, precision="bfloat16"))
    adapters = estimate["trained_parameters"]
    own = 2 if stored is torch.bfloat16 else 6
    assert estimate["memory"]["weights"] == 6 * adapters + own * estimate["parameters"]


def test_the_estimate_of_prompts_reads_their_answers(checkpoint: Path, tmp_path: Path) -> None:
    data = tmp_path / "prompts.jsonl"
    data.write_text('{"prompt": "abc", "response": "defgh"}\n' * 10)
    estimate = dry_run(CllmConfig(data=(data,), model=str(checkpoint)))
    # <|user|> a b c <|end|> <|assistant|>, then five bytes and <|end|>, clean and noisy.
    assert estimate["data_tokens"] == 10 * (6 + 2 * 6)
    assert estimate["config"]["n"] == 16
    assert estimate["memory"]["total"] > 0
