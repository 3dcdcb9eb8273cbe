"""Consistency training: from a finished model and its trajectories to a CLLM in a run directory.

In order: held-out prompts, collection (if the data are prompts), trajectories, a plan of all batches, model, training,
checkpoint. An interrupted call can be repeated at any point; finished parts are not done again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from nptool.checkpoints import load_model, save_model
from nptool.collection.store import Collected, CollectionMetadata
from nptool.errors import CheckpointError, UsageError
from nptool.method_note import MethodNote, write_note
from nptool.processes import is_main_process
from nptool.progress import Progress, silent
from nptool.runs import Run
from nptool.training.arguments import training_arguments
from nptool.training.batches import batches_per_step, count_steps
from nptool.training.cllm.config import CllmConfig
from nptool.training.cllm.measuring import CurveMeter, heldout_file, heldout_prompts
from nptool.training.cllm.planning import Plan, plan
from nptool.training.cllm.trainer import AUTOREGRESSIVE, CONSISTENCY, RIGHT, CllmTrainer
from nptool.training.continuation import TrainingResult, finish_run, open_run, read_result
from nptool.training.lora import add_adapters, merge_adapters
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

ATTENTION = ("sdpa", "eager")


@dataclass(frozen=True, kw_only=True)
class CllmResult(TrainingResult):
    """First and last figures are means over the first and last interval of the log."""

    trained_parameters: int
    block_size: int
    """n, in tokens."""
    trajectories: int
    left_out: int
    """Trajectories longer than the limit."""
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
    """Train or resume the run that `config` describes; a finished run's result is returned as it is.

    Args:
        run: where to work instead of `runs/<config.run_name>`.
        publish: let `runs/latest` name the run once it is finished.

    Raises:
        DataError: the data cannot be used.
        CheckpointError: the model cannot be used, or is not the one of the trajectories.
        UsageError: options contradict each other or the data, or the run directory holds another configuration.
        KeyboardInterrupt: Ctrl-C; the message says how to resume.
    """
    set_seed(config.seed)
    source = find_source(config)
    described, tokenizer = open_source(source)
    run, finished = open_run(config, data_digest(config.data), run)
    if finished:
        return read_result(run, CllmResult)
    collected = responses_of(config, source, run, progress)
    check_augmented(config, collected)
    meter = _meter(config, collected.metadata, described, tokenizer, run, progress)
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
    trainer = _trainer(config, model, batches, tokenizer, run, meter)
    # Measuring the curve is not part of the training time.
    seconds = run_trainer(trainer, run, progress, "consistency training") - (meter.spent if meter is not None else 0.0)
    trainer.log_rest()
    _save(trainer, config, source, tokenizer, collected.metadata.n, run)
    result = CllmResult(
        run=str(run.path),
        model=str(run.model),
        parameters=parameters,
        trained_parameters=trained,
        block_size=collected.metadata.n,
        trajectories=len(trajectories.rows),
        left_out=trajectories.left_out,
        steps=trainer.state.max_steps,
        tokens=sum(batches.tokens),
        tokens_per_second=trainer.tokens_per_second(batches.tokens, seconds),
        seconds=seconds,
        **_figures(trainer),
    )
    finish_run(run, config.KIND, result, publish=publish)
    return result


def check_attention(model: PreTrainedModel, ref: str) -> None:
    """Check that the model's attention takes a custom mask.

    Raises:
        CheckpointError: it does not.
    """
    if model.config._attn_implementation not in ATTENTION:
        raise CheckpointError(
            f"{ref} runs with {model.config._attn_implementation} attention; packed training needs one of "
            f"{', '.join(ATTENTION)}"
        )


def check_augmented(config: CllmConfig, collected: Collected) -> None:
    """Check that states are not augmented twice.

    Raises:
        UsageError: they would be.
    """
    if config.augment and collected.metadata.augmented:
        raise UsageError(f"{collected.path} was collected with --augment already; leave it out here")


def _meter(
    config: CllmConfig,
    metadata: CollectionMetadata,
    described: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    run: Run,
    progress: Progress,
) -> CurveMeter | None:
    if config.curve is None:
        return None
    prompts = heldout_prompts(heldout_file(config, run), config, metadata, described, tokenizer)
    return CurveMeter(prompts, metadata, config.curve, run.curve, progress)


def _model(config: CllmConfig, source: Source) -> tuple[Any, int, int]:
    """The model to train, its number of parameters without adapters, and how many are trained."""
    model: Any = load_model(source.model)
    check_attention(model, source.model)
    parameters = model.num_parameters()
    if config.lora_rank is not None:
        model = add_adapters(model, config.lora_rank)
    return model, parameters, sum(weight.numel() for weight in model.parameters() if weight.requires_grad)


def _trainer(
    config: CllmConfig,
    model: Any,
    batches: Plan,
    tokenizer: PreTrainedTokenizerBase,
    run: Run,
    meter: CurveMeter | None,
) -> CllmTrainer:
    pad, count = pad_id(tokenizer), len(batches.batches)
    return CllmTrainer(
        config,
        model=model,
        args=training_arguments(config, run, count // batches_per_step(config)),
        train_dataset=BatchList(count, lambda index: cast("dict[str, Tensor]", batches.batch(index, pad))),
        callbacks=[] if meter is None else [meter],
    )


def _save(
    trainer: CllmTrainer,
    config: CllmConfig,
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    block_size: int,
    run: Run,
) -> None:
    """Write the plain model with merged adapters, and the note that `nptool convert` reads."""
    weights = state_dict_of(trainer)
    if not is_main_process():
        return
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    if config.lora_rank is not None:
        model, weights = merged_model(model, config.lora_rank, source, weights), None
    save_model(model, tokenizer, run.model, weights)
    write_note(run.model, MethodNote(config.KIND, block_size))


def merged_model(model: Any, rank: int, source: Source, weights: dict[str, Any] | None) -> PreTrainedModel:
    """The plain model with the adapters added.

    Args:
        weights: of the adapted model, where `model` itself holds only a share of them (FSDP, DeepSpeed).
    """
    if weights is not None:
        model = add_adapters(load_model(source.model), rank)
        model.load_state_dict(weights)
    return merge_adapters(model)


def _figures(trainer: CllmTrainer) -> dict[str, float]:
    """First and last line of the log."""
    lines = [line for line in trainer.state.log_history if CONSISTENCY in line]
    names = (("consistency", CONSISTENCY), ("ar", AUTOREGRESSIVE), ("right", RIGHT))
    return {
        **{f"{name}_first": float(lines[0][key]) for name, key in names},
        **{f"{name}_last": float(lines[-1][key]) for name, key in names},
    }
