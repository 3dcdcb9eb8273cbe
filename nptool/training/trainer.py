"""The Hugging Face Trainer as every stage runs it: planned batches, one progress line, Ctrl-C that loses nothing.

A data set here is the list of all batches of the training in their order, so that going on after an interruption
is skipping the first k of them: the weights come out as if nothing had happened. Knows no loss.
"""

from __future__ import annotations

import logging
import math
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import Any

import torch
from safetensors import SafetensorError
from torch.utils.data import DataLoader, Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import TensorBoardCallback
from transformers.trainer_utils import TrainOutput

from nptool.errors import DiskFullError, UsageError
from nptool.files import disk_errors, write_json
from nptool.processes import is_main_process, process_count
from nptool.progress import Progress
from nptool.runs import Run
from nptool.silence import quiet

logger = logging.getLogger(__name__)

Batch = dict[str, torch.Tensor]
# Written last into a checkpoint: one without it was cut short.
COMPLETE = "complete.json"
# What torch.save says when the disk fills up, as it writes or as it closes the file; both are RuntimeErrors without an
# errno.
_NO_ROOM = ("No space left on device", "PytorchStreamWriter failed", "unexpected pos")


class PlannedTrainer(Trainer):
    """A Trainer whose data set holds whole batches, taken in their order."""

    first_step = 0
    """Step of the checkpoint it went on from."""

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Loader of the batches; with several processes each takes every n-th."""
        assert self.train_dataset is not None
        loader: DataLoader[Any] = DataLoader(self.train_dataset, batch_size=1, shuffle=False, collate_fn=_only)
        prepared: DataLoader[Any] = self.accelerator.prepare(loader)
        return prepared


def run_trainer(trainer: PlannedTrainer, run: Run, progress: Progress, step: str) -> TrainOutput:
    """Train to the end, from the last complete checkpoint of `run` if there is one.

    Args:
        step: name of this training in progress reports.

    Raises:
        KeyboardInterrupt: Ctrl-C; a checkpoint was saved, the message says how to go on.
        DiskFullError: no room for a checkpoint or the log; the checkpoint before is kept.
        UsageError: the loss became infinite or no number.
    """
    checkpoint = last_checkpoint(run)
    trainer.first_step = checkpoint_step(checkpoint) if checkpoint else 0
    stop = _Stop()
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_Report(progress, step))
    trainer.add_callback(stop)
    with _full_disk(run.path), _tensorboard(trainer, run), _sigint(stop), quiet():
        output = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if stop.requested:
        at = f"step {trainer.state.global_step} of {trainer.state.max_steps}"
        raise KeyboardInterrupt(
            f"interrupted at {at}, which is saved in {run.path}; the same command goes on from there"
        )
    config = getattr(trainer.accelerator.unwrap_model(trainer.model), "config", None)
    if config is not None:
        # The Trainer turned it off, and it would be saved so.
        config.use_cache = True
    return output


def last_checkpoint(run: Run) -> Path | None:
    """The newest complete checkpoint; those cut short are removed."""
    complete: dict[int, Path] = {}
    for path in run.checkpoints.glob("checkpoint-*"):
        if (path / COMPLETE).is_file():
            complete[checkpoint_step(path)] = path
        elif is_main_process():
            logger.warning("removed %s: it was cut short", path)
            shutil.rmtree(path, ignore_errors=True)
    return complete[max(complete)] if complete else None


def checkpoint_step(checkpoint: Path) -> int:
    """The step after which a checkpoint was saved."""
    return int(checkpoint.name.rpartition("-")[2])


def state_dict_of(trainer: Trainer) -> dict[str, torch.Tensor] | None:
    """All weights, gathered, where the processes share them (FSDP, DeepSpeed); None where the model has them.

    Every process has to call it.
    """
    if not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        return None
    weights: dict[str, torch.Tensor] = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    return weights


def remove_checkpoints(run: Run) -> None:
    """Remove what only served to continue a training that is now finished and saved."""
    if is_main_process():
        shutil.rmtree(run.checkpoints, ignore_errors=True)


class _Report(TrainerCallback):
    """Tells a `Progress` about every step, with loss and speed."""

    def __init__(self, progress: Progress, step: str) -> None:
        self._progress = progress
        self._step = step
        self._note = ""
        self._time = monotonic()
        self._tokens = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._time, self._tokens = monotonic(), state.num_input_tokens_seen
        self._tell(state)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._tell(state)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs is None or "loss" not in logs:
            return
        if not math.isfinite(logs["loss"]):
            raise UsageError(
                f"the loss is {logs['loss']} at step {state.global_step}; "
                f"train with a --lr lower than {args.learning_rate:g}, or with --precision float32"
            )
        now, tokens = monotonic(), state.num_input_tokens_seen
        speed = (tokens - self._tokens) / max(now - self._time, 1e-9)
        self._time, self._tokens = now, tokens
        self._note = f"loss {logs['loss']:.3f}, {speed:,.0f} tokens/s"

    def _tell(self, state: TrainerState) -> None:
        if state.is_world_process_zero:
            self._progress(self._step, state.global_step, state.max_steps, self._note)


class _Stop(TrainerCallback):
    """Saves and stops after the running step once asked to, and marks checkpoints as complete."""

    def __init__(self) -> None:
        self.requested = False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.requested:
            control.should_save = control.should_training_stop = True
        # What was counted since the last line of the log is not part of a checkpoint, but the log is.
        control.should_log = control.should_log or control.should_save

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # Otherwise the end of the epoch saves the same step a second time.
        control.should_save = False
        if process_count() > 1:
            torch.distributed.barrier()
        if state.is_world_process_zero:
            checkpoint = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
            write_json(checkpoint / COMPLETE, {"step": state.global_step})


@contextmanager
def _sigint(stop: _Stop) -> Iterator[None]:
    """The first Ctrl-C asks for a checkpoint and the end, a second one ends at once.

    With several processes a step may not be saved by some of them only: there Ctrl-C ends at once.
    """
    if process_count() > 1 or threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.requested:
            raise KeyboardInterrupt("interrupted; the same command goes on from the last checkpoint")
        stop.requested = True

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _full_disk(path: Path) -> Iterator[None]:
    """Say in one line that a checkpoint or the log found no room, whatever writer says it how."""
    try:
        with disk_errors(path):
            yield
    except (SafetensorError, RuntimeError) as error:
        if any(sign in str(error) for sign in _NO_ROOM):
            raise DiskFullError(
                f"no space left on the disk while writing {path}; free some, the same command then goes on"
            ) from error
        raise


@contextmanager
def _tensorboard(trainer: Trainer, run: Run) -> Iterator[None]:
    """Write TensorBoard's log to `run.log`, in the main process."""
    if not is_main_process():
        yield
        return
    from torch.utils.tensorboard import SummaryWriter

    hook = threading.excepthook

    def unless_told_later(arguments: threading.ExceptHookArgs) -> None:
        # The writer's thread prints its traceback, and keeps the error for who writes next; others keep nothing.
        of_writer = type(arguments.thread).__module__.startswith("tensorboard.")
        if not (of_writer and isinstance(arguments.exc_value, OSError)):
            hook(arguments)

    threading.excepthook = unless_told_later
    try:
        writer: Any = SummaryWriter(log_dir=str(run.log))
        trainer.add_callback(TensorBoardCallback(writer))  # type: ignore[no-untyped-call]  # untyped in transformers
        try:
            yield
        finally:
            writer.close()
    finally:
        threading.excepthook = hook


def _only(items: list[Batch]) -> Batch:
    return items[0]


class BatchList(Dataset[Batch]):
    """Planned batches as a data set; `build(i)` makes the i-th."""

    def __init__(self, count: int, build: Callable[[int], Batch]) -> None:
        self._count = count
        self._build = build

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Batch:
        return self._build(index)
