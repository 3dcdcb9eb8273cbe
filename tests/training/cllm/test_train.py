"""Training runs: from trajectories or prompts to a checkpoint."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from nptool.checkpoints import load_model
from nptool.errors import DataError, UsageError
from nptool.progress import silent
from nptool.runs import Run
from nptool.training.cllm.config import CllmConfig
from nptool.training.cllm.train import CllmResult, merged_model, train_cllm
from nptool.training.lora import add_adapters
from nptool.training.responses.data import Source

# peft asks transformers for a property by its old name.
adapters = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(autouse=True)
def _empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def config(collected: Path) -> CllmConfig:
    return CllmConfig(data=(collected,), lr=1e-2, steps=6, batch_tokens=250, log_every=2, save_every=2, name="one")


def weights(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return dict(model.named_parameters())


def assert_equal(one: PreTrainedModel, other: PreTrainedModel, **tolerance: float) -> None:
    for name, weight in weights(one).items():
        torch.testing.assert_close(weight, weights(other)[name], **(tolerance or {"rtol": 0, "atol": 0}), msg=name)


def test_a_training_lowers_both_terms_and_leaves_a_run(config: CllmConfig, checkpoint: Path) -> None:
    result = train_cllm(replace(config, steps=80))
    assert result.consistency_last < result.consistency_first
    assert result.ar_last < 0.5 * result.ar_first
    assert (result.parameters, result.trained_parameters) == (12_304, 12_304)
    assert (result.block_size, result.trajectories, result.left_out, result.steps) == (4, 30, 0, 80)
    run = Run(Path("runs/one"))
    assert (run.path.parent / "latest").read_text() == "one\n"
    assert json.loads((run.model / "nptool.json").read_text()) == {"method": "cllm", "block_size": 4}
    saved = json.loads(run.results.read_text())
    assert saved["kind"] == "cllm"
    assert {name: saved[name] for name in asdict(result)} == asdict(result)
    assert "packages" in saved["provenance"]
    assert json.loads(run.config.read_text())["config"]["context"] == "noisy"
    assert list(run.log.glob("events*"))
    assert not run.checkpoints.exists()
    assert load_model(run.model).config.use_cache


def test_a_finished_run_is_not_trained_again(config: CllmConfig) -> None:
    first = train_cllm(config)
    reports: list[str] = []
    again = train_cllm(config, lambda step, *_, **__: reports.append(step))
    assert again == first
    assert not reports


def test_an_interrupted_training_ends_as_if_nothing_had_happened(config: CllmConfig) -> None:
    def interrupt(step: str, done: float, total: float, note: str = "") -> None:
        if step == "consistency training" and done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_cllm(config, interrupt)
    assert not Path("runs/one/results.json").exists()
    resumed = train_cllm(config)
    whole = train_cllm(replace(config, name="two"))
    assert_equal(load_model(resumed.model), load_model(whole.model))
    assert (resumed.consistency_first, resumed.tokens) == (whole.consistency_first, whole.tokens)


def test_a_training_stopped_after_its_last_step_is_finished_by_the_next_call(
    config: CllmConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C comes so late that nothing is left to train, and before a regular line of the log."""
    config = replace(config, log_every=100)

    def interrupt(step: str, done: float, total: float, note: str = "") -> None:
        if step == "consistency training" and done == total:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match=f"at step {config.steps} of {config.steps}, which is saved"):
        train_cllm(config, interrupt)
    resumed = train_cllm(config)
    whole = train_cllm(replace(config, name="two"))
    assert_equal(load_model(resumed.model), load_model(whole.model))
    assert (resumed.consistency_last, resumed.ar_last) == (whole.consistency_last, whole.ar_last)
    assert resumed.tokens_per_second is None


def test_another_configuration_does_not_go_on_in_the_same_run(config: CllmConfig) -> None:
    train_cllm(config)
    with pytest.raises(UsageError) as caught:
        train_cllm(replace(config, context="clean"))
    assert str(caught.value) == (
        "runs/one holds a run with --context noisy, now it is clean; "
        "give the same to go on, or choose another --name, or remove that directory"
    )


def test_a_run_that_failed_before_its_first_step_starts_again(config: CllmConfig) -> None:
    """Its data could not be used, so other data or options may take the name."""
    with pytest.raises(DataError):
        train_cllm(replace(config, max_length=2, steps=3))
    saved = Path("runs/one/config.json")
    assert json.loads(saved.read_text())["config"]["steps"] == 3
    assert train_cllm(config).steps == config.steps == json.loads(saved.read_text())["config"]["steps"]


def test_two_batches_in_a_step_are_one_batch_of_twice_the_size(collected: Path) -> None:
    """Every row weighs the same, however the step is cut: the trajectories are one pass either way."""
    one = CllmConfig(data=(collected,), lr=1e-2, steps=1, batch_tokens=10_000, warmup=0.0, clip=0.0, name="one")
    several = replace(one, batch_tokens=400, accumulation=2, name="several")
    first, second = train_cllm(one), train_cllm(several)
    assert first.tokens == second.tokens
    assert first.consistency_first == pytest.approx(second.consistency_first, rel=1e-5)
    # Adam's first step is the sign of the gradient: only where it is tiny may rounding show.
    assert_equal(load_model(first.model), load_model(second.model), rtol=1e-3, atol=1e-3)


@adapters
def test_adapters_are_trained_alone_and_merged(config: CllmConfig, checkpoint: Path) -> None:
    result = train_cllm(replace(config, lora_rank=2, steps=20))
    # Per layer: q and o 16x16, k and v 8x16, gate and up 24x16, down 16x24; 2 layers.
    assert result.trained_parameters == 2 * 2 * (2 * 32 + 2 * 24 + 3 * 40)
    assert result.parameters == 12_304
    assert result.consistency_last < result.consistency_first
    before, after = weights(load_model(checkpoint)), weights(load_model(result.model))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "proj" in name}


@adapters
def test_adapters_on_a_model_in_half_precision_leave_it_so(config: CllmConfig, checkpoint: Path) -> None:
    load_model(checkpoint, torch.bfloat16).save_pretrained(checkpoint)
    result = train_cllm(replace(config, lora_rank=2, steps=20, precision="bfloat16"))
    assert result.consistency_last < result.consistency_first
    after = load_file(Path(result.model) / "model.safetensors")
    assert {weight.dtype for weight in after.values()} == {torch.bfloat16}
    whole = train_cllm(replace(config, lora_rank=2, steps=20, name="whole"))
    assert result.consistency_last == pytest.approx(whole.consistency_last, rel=0.05)


@adapters
def test_adapters_that_several_processes_share_are_put_together(checkpoint: Path) -> None:
    adapted = add_adapters(load_model(checkpoint), 2)
    for name, weight in adapted.named_parameters():
        if "lora" in name:
            torch.nn.init.normal_(weight)
    gathered = {name: weight.clone() for name, weight in adapted.state_dict().items()}
    config, source = CllmConfig(data=(checkpoint,), lora_rank=2), Source(str(checkpoint), None)
    rebuilt = merged_model(None, config, source, gathered)
    assert_equal(rebuilt, merged_model(adapted, config, source, None))


def test_prompts_are_answered_first(checkpoint: Path, tmp_path: Path) -> None:
    """Plain texts, since a random model ends no answer."""
    data = tmp_path / "texts.jsonl"
    texts = [f"{i} select all the rows of table {i} where the value is {7 * i}. " * 4 for i in range(30)]
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    config = CllmConfig(
        data=(data,), model=str(checkpoint), n=4, max_new_tokens=16, steps=2, heldout=0.2, batch_tokens=1000, name="one"
    )
    steps: list[str] = []

    def record(step: str, done: float, total: float, note: str = "") -> None:
        steps.append(step)
        silent(step, done, total, note)

    result = train_cllm(config, record)
    assert result.block_size == 4
    assert 0 < result.trajectories <= 30
    assert list(dict.fromkeys(steps)) == ["collecting trajectories", "planning batches", "consistency training"]
    run = Run(Path("runs/one"))
    assert run.collected.is_file()
    assert run.heldout.is_file()


@adapters
@pytest.mark.parametrize(
    "options",
    [
        {"context": "clean", "schedule": "uniform", "divergence": "fixed-point"},
        {"consistency": "local", "ar_target": "reference", "divergence": "jensen-shannon"},
        {"gradient_checkpointing": True, "label_smoothing": 0.1},
        {"augment": True, "schedule": "uniform", "draws": 2},
        {"precision": "bfloat16"},
        {"lora_rank": 2, "gradient_checkpointing": True},
    ],
)
def test_every_kind_of_training_runs(config: CllmConfig, options: dict[str, object]) -> None:
    result: CllmResult = train_cllm(replace(config, **options))
    assert result.ar_last < result.ar_first


def test_checkpointing_changes_nothing_but_memory(config: CllmConfig) -> None:
    plain = train_cllm(replace(config, steps=2))
    checkpointed = train_cllm(replace(config, steps=2, gradient_checkpointing=True, name="two"))
    assert_equal(load_model(plain.model), load_model(checkpointed.model), rtol=1e-5, atol=1e-6)


TWO_PROCESSES = """
import sys
from pathlib import Path

from nptool.training.cllm.config import CllmConfig
from nptool.training.cllm.train import train_cllm

train_cllm(CllmConfig(data=(Path(sys.argv[1]),), lr=1e-2, steps=3, batch_tokens=250, warmup=0.0, name="two"))
"""


def test_two_processes_train_what_one_trains_with_twice_the_batches(collected: Path, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(TWO_PROCESSES)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*launch, str(script), str(collected)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    one = CllmConfig(data=(collected,), lr=1e-2, steps=3, batch_tokens=250, warmup=0.0, accumulation=2, name="one")
    result = train_cllm(one)
    two = Run(Path("runs/two"))
    saved = json.loads(two.results.read_text())
    for name in ("tokens", "consistency_last", "ar_last", "right_last"):
        assert saved[name] == pytest.approx(getattr(result, name), rel=1e-4)
    assert_equal(load_model(result.model), load_model(two.model), rtol=1e-3, atol=1e-3)
