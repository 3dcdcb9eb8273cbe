"""Extra heads for a finished model, trained on its own responses, in a run directory.

In order: the responses (collected first if the data are prompts), a held-out share, the model, a plan of all batches,
training, figures of each head, checkpoint. With a frozen trunk, head 1 stays identical bit for bit. The joint stage
follows a training of the heads alone, whose run is inside its own. An interrupted call can be repeated at any point;
finished parts are not done again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from nptool.checkpoints import load_model
from nptool.collection.store import Collected
from nptool.heads import SEPARATE
from nptool.method_note import read_note, write_note
from nptool.processes import is_main_process, main_process_first
from nptool.progress import Progress, silent
from nptool.runs import Run
from nptool.training.arguments import frozen_type, training_arguments
from nptool.training.batches import plan_steps
from nptool.training.continuation import TrainingResult, finish_run, open_run, read_result
from nptool.training.heads.batching import heads_batch
from nptool.training.heads.checkpoint import save_heads
from nptool.training.heads.config import HeadsConfig
from nptool.training.heads.evaluation import HeadsEvaluation, evaluate_heads
from nptool.training.heads.model import MultiHead
from nptool.training.heads.preparation import check_count, find_responses, split_heldout, start_model
from nptool.training.heads.sample import take_sample
from nptool.training.heads.trainer import HeadsTrainer
from nptool.training.responses.data import (
    Source,
    data_digest,
    load_trajectories,
    open_source,
    position_limit,
    responses_of,
)
from nptool.training.trainer import Batch, BatchList, pad_id, run_trainer

ALONE = "heads-alone"
"""Run of the heads that a joint stage starts from, inside its own run."""
STEP, JOINT_STEP = "training the heads", "joint training"
"""Names in progress reports."""


@dataclass(frozen=True, kw_only=True)
class HeadsResult(TrainingResult):
    """Figures are held out, one per head, and None without held-out data. `parameters` is of the plain model."""

    heads_kind: str = SEPARATE
    heads: int
    joint: bool
    trained_parameters: int
    trajectories: int
    left_out: int
    heldout: int
    loss_before: float | None = None
    """Loss of head 1 before the training, nats per token."""
    loss: tuple[float, ...] | None = None
    """Nats per token."""
    top1: tuple[float, ...] | None = None
    top5: tuple[float, ...] | None = None
    """Share of tokens that are the head's first choice, or among its first five."""
    tokens_per_forward: float | None = None
    """Of the chain of all heads, greedily, on the held-out responses."""
    acceptance: tuple[float, ...] | None = None
    """Share of its steps whose first, second, ... draft is accepted."""


def train_heads(config: HeadsConfig, progress: Progress = silent, run: Run | None = None) -> HeadsResult:
    """Train or resume `run`, by default `runs/<config.run_name>`; a finished run's result is returned as it is.

    Raises:
        NptoolError: data, model or options cannot be used, or the run directory holds another configuration.
        KeyboardInterrupt: Ctrl-C; the message says how to resume.
    """
    set_seed(config.seed)
    source = find_responses(config)
    described, tokenizer = open_source(source)
    has_heads = check_count(config, source, described)
    # Read before the training, so that a damaged note is an error now.
    note = read_note(Path(source.model))
    run, finished = open_run(config, data_digest(config.data), run)
    if finished:
        return read_result(run, HeadsResult)
    collected = responses_of(config, source, run, progress)
    if config.joint and not has_heads:
        source = _heads_alone(config, source, collected, run, progress)
    rows = load_trajectories(collected, position_limit(described, config), references=False)
    train, heldout = split_heldout(rows.rows, config.heldout)
    dtype = torch.float32 if config.joint else frozen_type(config.precision, described)
    model = start_model(config, source, dtype)
    steps, plan = plan_steps(config, train.lengths)
    pad = pad_id(tokenizer)
    # It moves the model to its device, before the first evaluation.
    trainer = HeadsTrainer(
        model,
        original=load_model(source.model) if config.joint and config.guard else None,
        guard=config.guard,
        args=training_arguments(config, run, steps),
        train_dataset=BatchList(len(plan), lambda index: heads_batch(train, plan[index], pad, model.count)),
    )
    # Heads in float32 on a trunk in bfloat16 run under autocast only.
    mixed = partial(torch.autocast, model.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)
    measure = partial(evaluate_heads, model, batch_tokens=config.batch_tokens, progress=progress)
    with mixed():
        if not has_heads:
            _start(model, heads_batch(train, plan[0], pad, model.count))
        before = measure(heldout, step="loss of head 1 before", heads=1) if heldout is not None else None
    seconds = run_trainer(trainer, run, progress, JOINT_STEP if config.joint else STEP)
    trainer.log_rest()
    with mixed():
        after = measure(heldout, step="figures of the heads") if heldout is not None else None
        sample = take_sample(model, heldout, config.batch_tokens) if heldout is not None else None
    tokens = [int(train.lengths[batch].sum()) for batch in plan]
    result = HeadsResult(
        heads_kind=config.kind,
        heads=config.count,
        joint=config.joint,
        **_parameters(model),
        trajectories=len(train.lengths),
        left_out=rows.left_out,
        heldout=0 if heldout is None else len(heldout.lengths),
        **trainer.run_figures(run, tokens, seconds),
        **_figures(before, after),
    )
    # In a joint training, all processes then read the checkpoint of the heads alone.
    with main_process_first():
        if is_main_process():
            # A frozen trunk keeps its dtype.
            kept = described.dtype if not config.joint and isinstance(described.dtype, torch.dtype) else torch.float32
            save_heads(model, tokenizer, run.model, after.accuracy[1:] if after else (), kept, sample)
            if note is not None:
                # The joint stage changes the trunk, so the note's measured speed no longer holds.
                write_note(run.model, replace(note, measured=None) if config.joint else note)
        finish_run(run, config.KIND, result, publish=run.path.name != ALONE)
    return result


def _heads_alone(config: HeadsConfig, source: Source, collected: Collected, run: Run, progress: Progress) -> Source:
    """Train the heads on a frozen trunk first, in a run inside `run`; returns the model with them."""
    initial = {name: getattr(HeadsConfig, name) for name in ("joint", "joint_lr", "guard", "answer_anew")}
    alone = replace(config, data=(collected.path,), model=source.model, **initial)
    return replace(source, model=train_heads(alone, progress, Run(run.path / ALONE)).model)


def _parameters(model: MultiHead) -> dict[str, Any]:
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    with model.plain_model() as plain:
        return {"parameters": plain.num_parameters(), "trained_parameters": trained}


def _figures(before: HeadsEvaluation | None, after: HeadsEvaluation | None) -> dict[str, Any]:
    if before is None or after is None:
        return {}
    figures = {"loss_before": before.loss[0], "loss": after.loss, "top1": after.top(1), "top5": after.top(5)}
    return figures | {"tokens_per_forward": after.tokens_per_forward, "acceptance": after.acceptance}


@torch.no_grad()
def _start(model: MultiHead, batch: Batch) -> None:
    """Prepare new heads with the layer inputs of one batch."""
    z_BTD = model.run_trunk(batch["input_ids"].to(model.device)).z_BTD
    model.extra.start(z_BTD.flatten(0, 1)[batch["positions_N"].to(model.device)])
