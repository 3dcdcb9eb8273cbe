"""The Hugging Face Trainer as every training runs it: planned batches, one progress line, Ctrl-C that loses nothing.

The data set is the list of all batches in training order. A resumed run skips the first k of them, so its weights equal
those of an uninterrupted run.
"""

from __future__ import annotations

import logging
import math
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from operator import itemgetter
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import Any

import torch
from safetensors import SafetensorError
from torch.utils.data import DataLoader, Dataset
from transformers import (
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
)
from transformers.integrations.integration_utils import TensorBoardCallback

from nptool.errors import DiskFullError, UsageError
from nptool.files import disk_errors, write_json
from nptool.processes import is_main_process, process_count
from nptool.progress import Progress
from nptool.runs import Run
from nptool.silence import quiet

logger = logging.getLogger(__name__)

Batch = dict[str, torch.Tensor]
# Written last into a checkpoint: one without it is incomplete.
COMPLETE = "complete.json"
# Messages of torch.save when the disk fills up: RuntimeErrors without an errno.
_NO_ROOM = ("No space left on device", "PytorchStreamWriter failed", "unexpected pos")


class PlannedTrainer(Trainer):
    """A Trainer whose data set holds whole batches, taken in their order."""

    first_step = 0
    """Step of the checkpoint that the training resumed from."""

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Loader of the batches; each of n processes takes every n-th batch."""
        assert self.train_dataset is not None
        loader: DataLoader[Any] = DataLoader(self.train_dataset, batch_size=1, shuffle=False, collate_fn=itemgetter(0))
        prepared: DataLoader[Any] = self.accelerator.prepare(loader)
        return prepared

    def run_figures(self, run: Run, tokens: list[int], seconds: float) -> dict[str, Any]:
        """The fields of `TrainingResult` that do not depend on the kind of training, `parameters` left out.

        Args:
            tokens: of each planned batch.
        """
        steps = self.state.max_steps
        seen = sum(tokens[self.first_step * len(tokens) // steps :])
        speed = seen / seconds if seen else None
        figures = {"steps": steps, "tokens": sum(tokens), "tokens_per_second": speed, "seconds": seconds}
        return figures | {"run": str(run.path), "model": str(run.model)}


def run_trainer(trainer: PlannedTrainer, run: Run, progress: Progress, step: str) -> float:
    """Train to the end, resuming from the last complete checkpoint of `run` if there is one.

    Args:
        step: name of this training in progress reports.

    Returns:
        Seconds that this call trained.

    Raises:
        KeyboardInterrupt: Ctrl-C; a checkpoint was saved, and the message says how to resume.
        DiskFullError: no room for a checkpoint or the log; the previous checkpoint is kept.
        UsageError: the loss became infinite or NaN.
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
        # The Trainer turned it off, and the checkpoint would be saved with it off.
        config.use_cache = True
    return float(output.metrics["train_runtime"])


def last_checkpoint(run: Run) -> Path | None:
    """The newest complete checkpoint; incomplete ones are removed."""
    complete: dict[int, Path] = {}
    for path in run.checkpoints.glob("checkpoint-*"):
        if (path / COMPLETE).is_file():
            complete[checkpoint_step(path)] = path
        elif is_main_process():
            logger.warning("removed %s: it was incomplete", path)
            shutil.rmtree(path, ignore_errors=True)
    return complete[max(complete)] if complete else None


def checkpoint_step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def state_dict_of(trainer: Trainer) -> dict[str, torch.Tensor] | None:
    """All weights, gathered from the processes (FSDP, DeepSpeed); None if the model holds them.

    Every process must call it.
    """
    if not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        return None
    weights: dict[str, torch.Tensor] = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    return weights


class _Report(TrainerCallback):
    """Reports every step to a `Progress`, with loss and speed."""

    def __init__(self, progress: Progress, step: str) -> None:
        self._progress = progress
        self._step = step
        self._note = ""
        self._time = monotonic()
        self._tokens = 0

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self._time, self._tokens = monotonic(), state.num_input_tokens_seen
        self._report(state)

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self._report(state)

    def on_log(
        self, args: Any, state: TrainerState, control: Any, logs: dict[str, float] | None = None, **kwargs: Any
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

    def _report(self, state: TrainerState) -> None:
        if state.is_world_process_zero:
            self._progress(self._step, state.global_step, state.max_steps, self._note)


class _Stop(TrainerCallback):
    """Saves and stops after the current step once requested, and marks checkpoints as complete."""

    def __init__(self) -> None:
        self.requested = False

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.requested:
            control.should_save = control.should_training_stop = True
        # The log is part of a checkpoint; sums since its last line are not.
        control.should_log = control.should_log or control.should_save

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # Otherwise the end of the epoch saves the same step a second time.
        control.should_save = False
        if process_count() > 1:
            torch.distributed.barrier()
        if state.is_world_process_zero:
            checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            write_json(checkpoint / COMPLETE, {"step": state.global_step})


@contextmanager
def _sigint(stop: _Stop) -> Iterator[None]:
    """The first Ctrl-C requests a checkpoint and the end, a second one ends at once.

    With several processes Ctrl-C ends at once: they would not all save the same step.
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
    """Raise `DiskFullError` whichever writer of a checkpoint or the log reports the full disk."""
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

    def ignore_writer_errors(arguments: threading.ExceptHookArgs) -> None:
        # TensorBoard's thread raises its error again at the next write.
        of_writer = type(arguments.thread).__module__.startswith("tensorboard.")
        if not (of_writer and isinstance(arguments.exc_value, OSError)):
            hook(arguments)

    threading.excepthook = ignore_writer_errors
    try:
        writer: Any = SummaryWriter(log_dir=str(run.log))
        with closing(writer):
            trainer.add_callback(TensorBoardCallback(writer))  # type: ignore[no-untyped-call]  # untyped in transformers
            yield
    finally:
        threading.excepthook = hook


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Id to pad batches with. Any id would do: pads are neither attended to nor trained."""
    return int(tokenizer.pad_token_id or 0)


class BatchList(Dataset[Batch]):
    """Planned batches as a data set; `build(i)` makes the i-th."""

    def __init__(self, count: int, build: Callable[[int], Batch]) -> None:
        self._count = count
        self._build = build

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Batch:
        return self._build(index)
