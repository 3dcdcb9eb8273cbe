"""What `nptool train heads` would do: tokens, steps and memory, with no model loaded and nothing written."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nptool.checkpoints import check_checkpoint, load_config, load_tokenizer
from nptool.collection.prompts import load_prompts
from nptool.collection.store import read_collected
from nptool.processes import process_count
from nptool.runs import ROOT, Run
from nptool.settings import to_json
from nptool.training.arguments import count_steps, uses_bfloat16
from nptool.training.base.dry_run import shape_of
from nptool.training.batches import batches_in_pass
from nptool.training.estimate import FLOAT32, Memory, Shape, estimate_memory
from nptool.training.heads.config import HeadsConfig
from nptool.training.heads.losses import CHUNK_ELEMENTS
from nptool.training.heads.preparation import check_count, find_responses, split_heldout
from nptool.training.responses.data import (
    Source,
    collect_config,
    load_trajectories,
    open_source,
    position_limit,
)


def dry_run(config: HeadsConfig) -> dict[str, Any]:
    """The resolved configuration and an estimate, as JSON values.

    Returns:
        `config` (resolved), `run`, `parameters`, `trained_parameters`, `steps`, `tokens_per_step` (padding counted),
        `data_tokens` (in one pass), and `memory` (bytes, see `estimate`; of the joint stage where there is one). Where
        the data are prompts, responses count as long as the data set's own, or as long as they may become.

    Raises:
        NptoolError: what the training itself would raise about data, model or configuration.
    """
    source = find_responses(config)
    check_checkpoint(source.model)
    described, _ = open_source(source)
    check_count(config, source, described)
    shape = shape_of(described)
    layer = shape.parameters - replace(shape, layers=shape.layers - 1).parameters
    extra = (config.heads - 1) * layer
    lengths = _lengths(config, source)
    memory = _memory(config, shape, extra)
    resolved = {
        "model": source.model,
        "lr": config.learning_rate,
        "precision": "bfloat16" if uses_bfloat16(config.precision) else "float32",
        "name": config.run_name,
    }
    return {
        "config": to_json(config) | resolved,
        "run": config.run_name,
        "parameters": shape.parameters + extra,
        "trained_parameters": extra + (shape.parameters if config.joint else 0),
        "steps": count_steps(config, batches_in_pass(lengths, config.batch_tokens)),
        "tokens_per_step": config.batch_tokens * config.accumulation * process_count(),
        "data_tokens": int(lengths.sum()),
        "memory": {**asdict(memory), "total": memory.total},
    }


def _memory(config: HeadsConfig, shape: Shape, extra: int) -> Memory:
    """A frozen trunk keeps nothing for the backward pass, so one head's activations are all there are at a time."""
    bfloat16 = uses_bfloat16(config.precision)
    one = estimate_memory(
        shape if config.joint else replace(shape, layers=1),
        config.batch_tokens,
        trained_rows=min(config.batch_tokens, max(1, CHUNK_ELEMENTS // shape.vocab_size)),
        bfloat16=bfloat16,
        checkpointing=config.gradient_checkpointing,
    )
    trained = extra + (shape.parameters if config.joint else 0)
    original = shape.parameters if config.joint and config.guard else 0
    width = one.weights // (shape.parameters if config.joint else replace(shape, layers=1).parameters)
    return Memory(
        weights=width * (shape.parameters + extra + original),
        gradients=FLOAT32 * trained,
        optimizer=2 * FLOAT32 * trained,
        activations=one.activations,
        logits=one.logits,
    )


def _lengths(config: HeadsConfig, source: Source) -> NDArray[np.int64]:
    """Input tokens of every sequence that is trained."""
    limit = position_limit(load_config(source.model), config)
    if source.collected is not None:
        rows = load_trajectories(read_collected(source.collected), limit, references=False).rows
        return split_heldout(rows, config.heldout)[0].lengths
    tokenizer = load_tokenizer(source.model)
    prompts = load_prompts(collect_config(config, source, Run(ROOT / config.run_name)), tokenizer, limit).prompts
    responses = [len(one.reference_ids) if one.reference_ids is not None else one.limit for one in prompts]
    return np.array([len(one.ids) + length - 1 for one, length in zip(prompts, responses, strict=True)])
