"""Extra heads for a finished model, trained on its own responses, in a run directory.

The order of work: the responses (collected first where the data are prompts), a held-out share of them, the model, a
plan of all batches, training, figures of each head, checkpoint. With a frozen trunk head 1 stays what it was, bit for
bit. A joint stage, where wanted, comes after heads trained alone, in a run of their own inside this one. Interrupted
anywhere, the same call goes on; what is finished is not done again.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, set_seed

from nptool.checkpoints import load_model
from nptool.collection.store import Collected
from nptool.files import read_json, write_json
from nptool.method_note import MethodNote, read_note, write_note
from nptool.processes import is_main_process, main_process_first, process_count
from nptool.progress import Progress, silent
from nptool.provenance import provenance
from nptool.runs import Run
from nptool.training.arguments import count_steps, training_arguments
from nptool.training.base.sequences import Sequences
from nptool.training.batches import Rows, batches_in_pass, plan_batches
from nptool.training.continuation import open_run
from nptool.training.heads.batching import heads_batch
from nptool.training.heads.checkpoint import save_heads
from nptool.training.heads.config import GUARD, JOINT_LR, KIND, HeadsConfig
from nptool.training.heads.evaluation import HeadsEvaluation, evaluate_heads
from nptool.training.heads.model import MultiHead
from nptool.training.heads.preparation import check_count, find_responses, split_heldout, start_model
from nptool.training.heads.trainer import HeadsTrainer
from nptool.training.responses.data import (
    Source,
    data_digest,
    load_trajectories,
    open_source,
    position_limit,
    responses_of,
)
from nptool.training.trainer import BatchList, remove_checkpoints, run_trainer

logger = logging.getLogger(__name__)

ALONE = "heads-alone"
"""Inside the run of a joint stage: the run of the heads it starts from."""
STEP, JOINT_STEP = "training the heads", "joint training"
"""Names in progress reports."""


@dataclass(frozen=True)
class HeadsResult:
    """What a training gave; saved as the run's results. Figures are held out, one for each head, head 1 first."""

    run: str
    model: str
    heads: int
    joint: bool
    parameters: int
    """Of the plain model."""
    trained_parameters: int
    trajectories: int
    left_out: int
    """Trajectories longer than the limit."""
    heldout: int
    """Trajectories that figures are measured on."""
    steps: int
    tokens: int
    """Input tokens seen in all steps, padding not counted."""
    loss_before: float | None
    """Of head 1 before the training: the starting model's, nats per token."""
    loss: tuple[float, ...] | None
    """Nats per token."""
    top1: tuple[float, ...] | None
    top5: tuple[float, ...] | None
    """Share of tokens among the head's first choice, and its first five."""
    tokens_per_second: float | None
    """Of the training itself, in the process that finished it."""
    seconds: float
    """Of the training itself, in the process that finished it."""


def train_heads(config: HeadsConfig, progress: Progress = silent, run: Run | None = None) -> HeadsResult:
    """Train, or go on with, the run that `config` describes; a finished run's result is returned as it is.

    Args:
        run: where to work instead of `runs/<config.run_name>`.

    Raises:
        DataError: the data cannot be used.
        CheckpointError: the model cannot be used, or is not the one of the trajectories.
        UsageError: options contradict each other or the data, or the run directory holds another configuration.
        KeyboardInterrupt: Ctrl-C; the message says how to go on.
    """
    set_seed(config.seed)
    source = find_responses(config)
    described, tokenizer = open_source(source)
    has_heads = check_count(config, source, described)
    # A damaged one is an error before the training, not behind it.
    note = read_note(Path(source.model))
    run, finished = open_run(config, KIND, data_digest=data_digest(config.data), free=config.FREE_FIELDS, run=run)
    if finished:
        logger.info("%s is finished already", run.path)
        return _read_result(run)
    collected = responses_of(config, source, run, progress)
    if config.joint and not has_heads:
        source = _heads_alone(config, source, collected, run, progress)
    rows = load_trajectories(collected, position_limit(described, config), references=False)
    train, heldout = split_heldout(rows.rows, config.heldout)
    model = start_model(config, source)
    steps, plan = plan_steps(config, train)
    trainer = _trainer(config, model, train, plan, tokenizer, run, source)
    before = _evaluate(model, heldout, config, progress, "loss of head 1 before", heads=1)
    seconds = run_trainer(trainer, run, progress, JOINT_STEP if config.joint else STEP).metrics["train_runtime"]
    trainer.log_rest()
    after = _evaluate(model, heldout, config, progress, "figures of the heads")
    done = plan[trainer.first_step * len(plan) // steps :]
    result = HeadsResult(
        run=str(run.path),
        model=str(run.model),
        heads=config.heads,
        joint=config.joint,
        parameters=model.plain_parameters,
        trained_parameters=sum(weight.numel() for weight in model.parameters() if weight.requires_grad),
        trajectories=len(train.lengths),
        left_out=rows.left_out,
        heldout=0 if heldout is None else len(heldout.lengths),
        steps=steps,
        tokens=_tokens(train, plan),
        tokens_per_second=_tokens(train, done) / seconds if done else None,
        seconds=seconds,
        **_figures(before, after),
    )
    # A joint stage reads what its heads alone left.
    with main_process_first():
        if is_main_process():
            _save(model, config, note, tokenizer, run, described.dtype, after)
            write_json(run.results, {"kind": KIND, **asdict(result), "provenance": provenance()})
            if run.path.name != ALONE:
                run.publish()
    remove_checkpoints(run)
    return result


def _heads_alone(config: HeadsConfig, source: Source, collected: Collected, run: Run, progress: Progress) -> Source:
    """Train the heads on a frozen trunk first, in a run inside `run`; returns the model with them."""
    alone = replace(
        config,
        data=(collected.path,),
        model=source.model,
        joint=False,
        joint_lr=JOINT_LR,
        guard=GUARD,
        answer_anew=False,
    )
    return replace(source, model=train_heads(alone, progress, Run(run.path / ALONE)).model)


def plan_steps(config: HeadsConfig, train: Sequences) -> tuple[int, list[Rows]]:
    """Number of optimizer steps, and the batches of all of them and all processes."""
    steps = count_steps(config, batches_in_pass(train.lengths, config.batch_tokens))
    count = steps * config.accumulation * process_count()
    return steps, plan_batches(train.lengths, config.batch_tokens, count, config.seed)


def _trainer(
    config: HeadsConfig,
    model: MultiHead,
    train: Sequences,
    plan: list[Rows],
    tokenizer: PreTrainedTokenizerBase,
    run: Run,
    source: Source,
) -> HeadsTrainer:
    """The trainer, which puts the model on its device: figures of before the training are fast there too."""
    pad = int(tokenizer.pad_token_id or 0)
    return HeadsTrainer(
        model,
        original=load_model(source.model) if config.joint and config.guard else None,
        guard=config.guard,
        args=training_arguments(config, run, len(plan) // (config.accumulation * process_count())),
        train_dataset=BatchList(len(plan), lambda index: heads_batch(train, plan[index], pad, model.count)),
    )


def _evaluate(
    model: MultiHead,
    heldout: Sequences | None,
    config: HeadsConfig,
    progress: Progress,
    step: str,
    heads: int | None = None,
) -> HeadsEvaluation | None:
    if heldout is None:
        return None
    return evaluate_heads(model, heldout, batch_tokens=config.batch_tokens, heads=heads, progress=progress, step=step)


def _figures(before: HeadsEvaluation | None, after: HeadsEvaluation | None) -> dict[str, Any]:
    if before is None or after is None:
        return {"loss_before": None, "loss": None, "top1": None, "top5": None}
    return {"loss_before": before.loss[0], "loss": after.loss, "top1": after.top(1), "top5": after.top(5)}


def _save(
    model: MultiHead,
    config: HeadsConfig,
    note: MethodNote | None,
    tokenizer: PreTrainedTokenizerBase,
    run: Run,
    dtype: Any,
    evaluation: HeadsEvaluation | None,
) -> None:
    """Write the checkpoint; a frozen trunk keeps the type of its weights.

    What was a CLLM stays one: measured, a window of 16 gave 5.21 tokens per forward after a joint stage that moved the
    embedded default's trunk far (at 5e-4), and 5.84 before. The figure of its own training goes.
    """
    kept = not config.joint and isinstance(dtype, torch.dtype)
    accuracy = evaluation.accuracy[1:] if evaluation else ()
    save_heads(model, tokenizer, run.model, accuracy, dtype if kept else torch.float32)
    if note is not None:
        write_note(run.model, replace(note, measured=None) if config.joint else note)


def _tokens(train: Sequences, plan: list[Rows]) -> int:
    lengths = train.lengths
    return sum(int(lengths[rows].sum()) for rows in plan)


def _read_result(run: Run) -> HeadsResult:
    saved = read_json(run.results)
    values = {name: saved[name] for name in HeadsResult.__dataclass_fields__}
    figures = {name: tuple(values[name]) for name in ("loss", "top1", "top5") if values[name] is not None}
    return HeadsResult(**values | figures)
