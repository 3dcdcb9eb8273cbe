"""Consistency training: from a finished model and its trajectories to a CLLM in a run directory.

In order: held-out prompts, collection (if the data are prompts), trajectories, a plan of all batches, model, training,
checkpoint. An interrupted call can be repeated at any point; finished parts are not done again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from nptool.checkpoints import load_config, load_model, save_model
from nptool.errors import CheckpointError, UsageError
from nptool.method_note import MethodNote, write_note
from nptool.processes import is_main_process
from nptool.progress import Progress, silent
from nptool.runs import Run
from nptool.training.arguments import frozen_type, training_arguments
from nptool.training.batches import batches_per_step, count_steps
from nptool.training.cllm.config import CllmConfig
from nptool.training.cllm.measuring import CurveMeter, heldout_file, heldout_prompts
from nptool.training.cllm.planning import plan
from nptool.training.cllm.trainer import AUTOREGRESSIVE, CONSISTENCY, RIGHT, CllmTrainer
from nptool.training.continuation import TrainingResult, finish_run, open_run, read_result
from nptool.training.lora import add_adapters, merge_adapters
from nptool.training.muon import optimizers
from nptool.training.responses.data import (
    Source,
    data_digest,
    find_source,
    load_trajectories,
    open_source,
    position_limit,
    responses_of,
)
from nptool.training.trainer import BatchList, pad_id, run_trainer, state_dict_of

# Implementations that take a custom mask.
ATTENTION = ("sdpa", "eager")


@dataclass(frozen=True, kw_only=True)
class CllmResult(TrainingResult):
    """First and last figures are means over the first and last interval of the log."""

    trained_parameters: int
    block_size: int
    """n, in tokens."""
    trajectories: int
    left_out: int
    consistency_first: float
    consistency_last: float
    """Nats per taught row."""
    ar_first: float
    ar_last: float
    """Nats per label."""
    right_first: float
    right_last: float
    """Share of taught rows whose greedy pick is the fixed point's token."""


def train_cllm(
    config: CllmConfig, progress: Progress = silent, run: Run | None = None, *, publish: bool = True
) -> CllmResult:
    """Train or resume `run`, by default `runs/<config.run_name>`; a finished run's result is returned as it is.

    Args:
        publish: let `runs/latest` name the run once it is finished.

    Raises:
        NptoolError: data, model or options cannot be used, or the run directory holds another configuration.
        KeyboardInterrupt: Ctrl-C; the message says how to resume.
    """
    set_seed(config.seed)
    source = find_source(config)
    described, tokenizer = open_source(source)
    run, finished = open_run(config, data_digest(config.data), run)
    if finished:
        return read_result(run, CllmResult)
    collected = responses_of(config, source, run, progress)
    if config.augment and collected.metadata.augmented:
        raise UsageError(f"{collected.path} was collected with --augment already; leave it out here")
    metadata, meter = collected.metadata, None
    if config.curve is not None:
        prompts = heldout_prompts(heldout_file(config, run), config, metadata, described, tokenizer)
        meter = CurveMeter(prompts, metadata, config.curve, run.curve, progress)
    trajectories = load_trajectories(
        collected, position_limit(described, config), references=config.ar_target == "reference"
    )
    batches = plan(
        trajectories.rows,
        config,
        config.seed,
        config.batch_tokens,
        lambda batches_in_pass: count_steps(config, batches_in_pass) * batches_per_step(config),
        progress,
    )
    model, parameters, trained = _model(config, source)
    pad, count = pad_id(tokenizer), len(batches.batches)
    trainer = CllmTrainer(
        config,
        model=model,
        args=training_arguments(config, run, count // batches_per_step(config)),
        train_dataset=BatchList(count, lambda index: cast("dict[str, Tensor]", batches.batch(index, pad))),
        optimizers=optimizers(config, model),
        callbacks=[] if meter is None else [meter],
    )
    # Measuring the curve is not part of the training time.
    seconds = run_trainer(trainer, run, progress, "consistency training") - (meter.spent if meter is not None else 0.0)
    trainer.log_rest()
    _save(trainer, config, source, tokenizer, metadata.n, run)
    result = CllmResult(
        parameters=parameters,
        trained_parameters=trained,
        block_size=metadata.n,
        trajectories=len(trajectories.rows),
        left_out=trajectories.left_out,
        **trainer.run_figures(run, batches.tokens, seconds),
        **_figures(trainer),
    )
    finish_run(run, config.KIND, result, publish=publish)
    return result


def _model(config: CllmConfig, source: Source) -> tuple[Any, int, int]:
    """The model to train, its number of parameters without adapters, and how many are trained."""
    model: Any = load_model(source.model, _type(config, source))
    attention = model.config._attn_implementation
    if attention not in ATTENTION:
        raise CheckpointError(
            f"{source.model} runs with {attention} attention; packed training needs one of {', '.join(ATTENTION)}"
        )
    parameters = model.num_parameters()
    if config.lora_rank is not None:
        model = add_adapters(model, config.lora_rank)
    return model, parameters, sum(weight.numel() for weight in model.parameters() if weight.requires_grad)


def _type(config: CllmConfig, source: Source) -> torch.dtype:
    """Of the model's own weights, which adapters leave as they are."""
    if config.lora_rank is None:
        return torch.float32
    return frozen_type(config.precision, load_config(source.model))


def _save(
    trainer: CllmTrainer, config: CllmConfig, source: Source, tokenizer: PreTrainedTokenizerBase, n: int, run: Run
) -> None:
    """Write the plain model with merged adapters, and the note that `nptool convert` reads."""
    weights = state_dict_of(trainer)
    if not is_main_process():
        return
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    if config.lora_rank is not None:
        model, weights = merged_model(model, config, source, weights), None
    save_model(model, tokenizer, run.model, weights)
    write_note(run.model, MethodNote(config.KIND, n))


def merged_model(model: Any, config: CllmConfig, source: Source, weights: dict[str, Any] | None) -> PreTrainedModel:
    """The plain model with the adapters added, in the type that it was trained in.

    Args:
        weights: of the adapted model, where `model` itself holds only a share of them (FSDP, DeepSpeed).
    """
    if weights is not None:
        assert config.lora_rank is not None
        model = add_adapters(load_model(source.model, _type(config, source)), config.lora_rank)
        model.load_state_dict(weights)
    return merge_adapters(model)


def _figures(trainer: CllmTrainer) -> dict[str, Any]:
    lines = [line for line in trainer.state.log_history if CONSISTENCY in line]
    names = (("consistency", CONSISTENCY), ("ar", AUTOREGRESSIVE), ("right", RIGHT))
    return {
        **{f"{name}_first": float(lines[0][key]) for name, key in names},
        **{f"{name}_last": float(lines[-1][key]) for name, key in names},
    }
