"""`train_base`: equal to a plain loop, and nothing is lost or changed by an interruption."""

from __future__ import annotations

import json
import math
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast

from nptool.checkpoints import check_checkpoint, load_model, load_tokenizer
from nptool.data.records import read_records
from nptool.errors import CheckpointError, ContextError, DataError, DiskFullError, UsageError
from nptool.runs import Run
from nptool.training.base.config import BaseConfig
from nptool.training.base.corpus import load_corpus
from nptool.training.base.model import new_llama
from nptool.training.base.train import BaseResult, train_base
from nptool.training.batches import plan_steps
from nptool.training.sequences import make_sequences
from nptool.training.trainer import COMPLETE, last_checkpoint, pad_id

TINY = Callable[..., BaseConfig]
pytestmark = pytest.mark.usefixtures("records_file")


class Recorder:
    """A `Progress` that remembers, and may press Ctrl-C or fail when a step is done."""

    def __init__(self, *, interrupt_at: int | None = None, fail_at: int | None = None) -> None:
        self.calls: list[tuple[str, float, float, str]] = []
        self._interrupt_at = interrupt_at
        self._fail_at = fail_at

    def __call__(self, step: str, done: float, total: float, note: str = "") -> None:
        self.calls.append((step, done, total, note))
        if step == "training the base model" and done:
            if done == self._interrupt_at:
                os.kill(os.getpid(), signal.SIGINT)
            if done == self._fail_at:
                raise RuntimeError("the power went out")

    def steps(self) -> list[float]:
        return [done for step, done, _, _ in self.calls if step == "training the base model"]


def weights(run: Path | str) -> dict[str, torch.Tensor]:
    return load_file(Path(run) / "model" / "model.safetensors")


def assert_same_weights(one: Path | str, other: Path | str) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def naive_training(config: BaseConfig, tokenizer: PreTrainedTokenizerFast) -> dict[str, torch.Tensor]:
    """The same training as a plain loop: AdamW, warm-up and cosine to a floor, clipping, mean over a step's targets."""
    train = make_sequences(load_corpus(config).train, tokenizer, context=config.context, loss=config.loss)
    steps, plan = plan_steps(config, train.lengths)
    model = new_llama(config, tokenizer).train()
    matrices = [weight for weight in model.parameters() if weight.dim() > 1]
    norms = [weight for weight in model.parameters() if weight.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": config.weight_decay}, {"params": norms, "weight_decay": 0.0}],
        betas=(config.beta1, config.beta2),
    )
    warmup = round(config.warmup * steps)
    for step in range(steps):
        progress = (step - warmup) / max(1, steps - warmup)
        cosine = config.min_lr_ratio + (1 - config.min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * progress))
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * (step / warmup if step < warmup else cosine)
        batches = [train.batch(rows, pad_id(tokenizer)) for rows in plan[: config.accumulation]]
        plan = plan[config.accumulation :]
        targets = sum(len(batch["shift_labels"]) for batch in batches)
        for batch in batches:
            logits_NV = model(batch["input_ids"]).logits[batch["logits_to_keep"]]
            (cross_entropy(logits_NV, batch["shift_labels"], reduction="sum") / targets).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        optimizer.step()
        optimizer.zero_grad()
    return dict(model.state_dict())


@pytest.mark.parametrize("fields", [{}, {"accumulation": 2, "loss": "response", "warmup": 0.3, "tied": False}])
def test_the_trainer_equals_a_plain_loop(tiny: TINY, fields: dict[str, Any]) -> None:
    config = tiny(steps=6, lr=3e-3, clip=0.5, **fields)
    result = train_base(config)
    found = weights(result.run)
    expected = naive_training(config, load_tokenizer(result.model))  # type: ignore[arg-type]  # is a fast one
    for name, weight in found.items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-4, atol=2e-6, msg=name)


def test_a_run_directory(tiny: TINY) -> None:
    recorder = Recorder()
    result = train_base(tiny(steps=40, lr=1e-2, name="mine"), recorder)
    run = Run(Path("runs/mine"))
    assert Path("runs/latest").read_text() == "mine\n"
    assert sorted(path.name for path in run.path.iterdir()) == [
        "config.json",
        "heldout.jsonl",
        "log",
        "model",
        "results.json",
    ]
    check_checkpoint(run.model)
    assert load_model(run.model).config.use_cache
    saved = json.loads(run.results.read_text())
    assert {name: saved[name] for name in BaseResult.__dataclass_fields__} == result.__dict__
    assert saved["kind"] == "base"
    assert "torch" in saved["provenance"]["packages"]
    config = json.loads(run.config.read_text())
    assert (config["kind"], config["config"]["hidden_size"], config["config"]["data"]) == (
        "base",
        32,
        ["records.jsonl"],
    )
    assert "command" in config["provenance"]
    assert len(list(read_records(run.heldout))) + len(load_corpus(tiny()).train) == 60
    assert list(run.log.glob("events.out.tfevents.*"))
    # Guessing among 320 tokens costs 5.77 nats.
    assert result.heldout_loss is not None
    assert result.heldout_loss < 4
    assert result.perplexity == pytest.approx(math.exp(result.heldout_loss))
    assert (result.parameters, result.steps) == (sum(w.numel() for w in weights(run.path).values()), 40)
    assert recorder.steps() == list(range(41))
    step, done, total, _ = recorder.calls[-1]
    assert (step, done) == ("held-out loss", total)


def test_progress_says_loss_and_speed(tiny: TINY) -> None:
    recorder = Recorder()
    train_base(tiny(steps=4), recorder)
    notes = [note for step, done, _, note in recorder.calls if (step, done) == ("training the base model", 4)]
    assert re.fullmatch(r"loss \d\.\d{3}, [\d,]+ tokens/s", notes[0])


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_going_on_after_an_interruption_gives_the_same_weights(tiny: TINY, optimizer: str) -> None:
    train_base(tiny(name="whole", optimizer=optimizer))
    handler = signal.getsignal(signal.SIGINT)  # not always Python's: a job in the background ignores the signal
    with pytest.raises(KeyboardInterrupt) as interrupt:
        train_base(tiny(name="cut", optimizer=optimizer), Recorder(interrupt_at=7))
    assert str(interrupt.value) == (
        "interrupted at step 7 of 12, which is saved in runs/cut; the same command goes on from there"
    )
    assert not Path("runs/cut/model").exists()
    assert Path("runs/latest").read_text() == "whole\n"  # a run without a model is nobody's default
    recorder = Recorder()
    train_base(tiny(name="cut", optimizer=optimizer), recorder)
    assert recorder.steps() == [7, 8, 9, 10, 11, 12]
    assert_same_weights("runs/whole", "runs/cut")
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_crash_goes_on_from_the_last_complete_checkpoint(tiny: TINY) -> None:
    train_base(tiny(name="whole"))
    with pytest.raises(RuntimeError, match="power"):
        train_base(tiny(name="cut"), Recorder(fail_at=11))
    checkpoints = Path("runs/cut/checkpoints")
    (checkpoints / "checkpoint-10" / COMPLETE).unlink()
    (checkpoints / "checkpoint-10" / "model.safetensors").write_bytes(b"half")
    recorder = Recorder()
    train_base(tiny(name="cut"), recorder)
    assert recorder.steps()[0] == 5
    assert_same_weights("runs/whole", "runs/cut")


def test_a_crash_before_the_first_checkpoint_starts_again(tiny: TINY) -> None:
    train_base(tiny(name="whole"))
    with pytest.raises(RuntimeError, match="power"):
        train_base(tiny(name="cut"), Recorder(fail_at=3))
    train_base(tiny(name="cut"))
    assert_same_weights("runs/whole", "runs/cut")


def test_checkpoints_cut_short_are_removed(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    assert last_checkpoint(run) is None
    for step in (5, 10, 100):
        (run.checkpoints / f"checkpoint-{step}").mkdir(parents=True)
    assert last_checkpoint(run) is None
    for step in (9, 10, 100):
        (run.checkpoints / f"checkpoint-{step}").mkdir(parents=True)
        (run.checkpoints / f"checkpoint-{step}" / COMPLETE).touch()
    (run.checkpoints / "checkpoint-200").mkdir()
    assert last_checkpoint(run) == run.checkpoints / "checkpoint-100"
    assert not (run.checkpoints / "checkpoint-200").exists()


def test_a_finished_run_is_not_done_again(tiny: TINY) -> None:
    first = train_base(tiny(name="mine"))
    recorder = Recorder()
    assert train_base(tiny(name="mine"), recorder) == first
    assert recorder.calls == []


def test_another_configuration_or_other_data_is_refused(tiny: TINY, records_file: Path) -> None:
    train_base(tiny(name="mine", steps=2))
    with pytest.raises(UsageError) as error:
        train_base(tiny(name="mine", steps=2, seed=5))
    remedy = "choose another --name, or remove that directory"
    assert str(error.value) == (
        f"runs/mine holds a run with --seed 0, now it is 5; give the same to go on, or {remedy}"
    )
    records_file.write_text(records_file.read_text().replace("cat", "dog"))
    with pytest.raises(UsageError) as error:
        train_base(tiny(name="mine", steps=2))
    assert str(error.value) == f"runs/mine holds a run on other data than --data now has; {remedy}"
    Path("runs/mine/config.json").write_text('{"kind": "cllm"}')
    with pytest.raises(UsageError) as error:
        train_base(tiny(name="mine", steps=2))
    assert str(error.value) == f"runs/mine holds a run of kind 'cllm', not 'base'; {remedy}"


def test_a_run_directory_of_the_caller(tiny: TINY, tmp_path: Path) -> None:
    result = train_base(tiny(steps=2), run=Run(tmp_path / "deep" / "base"))
    assert result.model == str(tmp_path / "deep" / "base" / "model")
    assert not Path("runs").exists()


def test_training_a_finished_model_further(tiny: TINY, checkpoint: Path) -> None:
    before = load_model(checkpoint).state_dict()
    config = BaseConfig(
        data=(Path("records.jsonl"),), model=str(checkpoint), steps=3, context=128, batch_tokens=256, name="more"
    )
    result = train_base(config)
    after = load_model(result.model).state_dict()
    assert before.keys() == after.keys()
    moved = max(float((after[name] - before[name]).abs().max()) for name in before)
    # AdamW moves a weight by at most about the learning rate in a step.
    assert 0 < moved < 3 * 2 * config.learning_rate
    assert load_tokenizer(result.model).get_vocab() == load_tokenizer(checkpoint).get_vocab()


def test_a_tokenizer_of_another_model(tiny: TINY, checkpoint: Path) -> None:
    result = train_base(tiny(steps=2, tokenizer=str(checkpoint), name="mine"))
    assert load_tokenizer(result.model).get_vocab() == load_tokenizer(checkpoint).get_vocab()


def test_plain_text_has_no_chat_template(tiny: TINY) -> None:
    Path("a.txt").write_text("the cat sat on a mat\n" * 1000)
    result = train_base(tiny(data=(Path("a.txt"),), steps=2))
    assert load_tokenizer(result.model).chat_template is None
    assert Path(result.run, "heldout.jsonl").is_file()
    assert load_tokenizer(train_base(tiny(steps=2)).model).chat_template is not None


def test_no_held_out_data(tiny: TINY) -> None:
    result = train_base(tiny(steps=2, heldout=0.0))
    assert (result.heldout_loss, result.perplexity, result.bits_per_byte) == (None, None, None)
    assert not Path(result.run, "heldout.jsonl").exists()


def test_epochs(tiny: TINY) -> None:
    one = train_base(tiny(steps=None, epochs=None, heldout=0.0))
    two = train_base(tiny(steps=None, epochs=2, heldout=0.0))
    assert two.steps == 2 * one.steps
    assert two.tokens == 2 * one.tokens


def test_bfloat16_on_a_cpu_keeps_float32_weights(tiny: TINY) -> None:
    full = train_base(tiny(steps=8, lr=1e-2, name="full"))
    half = train_base(tiny(steps=8, lr=1e-2, name="half", precision="bfloat16"))
    assert all(weight.dtype == torch.float32 for weight in weights(half.run).values())
    assert half.heldout_loss == pytest.approx(full.heldout_loss, rel=0.02)
    assert half.heldout_loss != full.heldout_loss


def test_gradient_checkpointing_changes_nothing(tiny: TINY) -> None:
    train_base(tiny(steps=3, name="plain"))
    train_base(tiny(steps=3, name="less", gradient_checkpointing=True))
    for name, weight in weights("runs/plain").items():
        torch.testing.assert_close(weights("runs/less")[name], weight, rtol=1e-4, atol=1e-6)


def test_a_loss_that_is_no_number(tiny: TINY, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any) -> Any:
        model = new_llama(*arguments)
        model.model.norm.weight.data.fill_(math.nan)
        return model

    monkeypatch.setattr("nptool.training.base.train.new_llama", broken)
    with pytest.raises(UsageError) as error:
        train_base(tiny())
    assert str(error.value) == (
        "the loss is nan at step 2; train with a --lr lower than 0.001, or with --precision float32"
    )


def test_a_full_disk_while_the_log_is_written(tiny: TINY, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    """TensorBoard writes in a thread, which would print a traceback of its own."""

    def full(self: Any, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("tensorboard.summary.writer.record_writer.RecordWriter.write", full)
        with pytest.raises(DiskFullError) as caught:
            train_base(tiny(name="cut"))
    assert str(caught.value) == "no space left on the disk while writing runs/cut; free some and run again"
    assert "Traceback" not in capfd.readouterr().err
    train_base(tiny(name="cut"))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("PytorchStreamWriter failed writing file data/0"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 1055616 vs 1055508"),
        OSError(28, "No space left on device"),
    ],
)
def test_a_full_disk_while_a_checkpoint_is_written(
    tiny: TINY, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    train_base(tiny(name="whole"))
    save = torch.save
    saves: list[str] = []

    def fail(value: Any, path: Any, *arguments: Any, **options: Any) -> None:
        if "checkpoint-10" in str(path):
            raise error
        saves.append(str(path))
        save(value, path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", fail)
        with pytest.raises(DiskFullError, match="no space left on the disk while writing runs/cut;"):
            train_base(tiny(name="cut"))
    assert any("checkpoint-5" in path for path in saves)
    recorder = Recorder()
    train_base(tiny(name="cut"), recorder)
    assert recorder.steps()[0] == 5
    assert_same_weights("runs/whole", "runs/cut")


def test_mistakes_are_found_before_a_run_directory_is_made(tiny: TINY, checkpoint: Path) -> None:
    data = (Path("records.jsonl"),)
    with pytest.raises(ContextError) as error:
        train_base(BaseConfig(data=data, model=str(checkpoint), context=500))
    assert str(error.value) == f"--context is 500; {checkpoint} has positions for 128 tokens"
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(CheckpointError):
        train_base(BaseConfig(data=data, model=str(checkpoint), context=128))
    with pytest.raises(DataError, match="does not exist"):
        train_base(tiny(data=(Path("gone.txt"),)))
    assert not Path("runs").exists()


def test_nothing_fits_the_context(tiny: TINY) -> None:
    with pytest.raises(DataError) as error:
        train_base(tiny(context=4))
    assert str(error.value).endswith("records are empty or longer than 4 tokens; raise --context")
