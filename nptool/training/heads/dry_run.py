"""What `nptool train heads` would do: tokens, steps and memory. Loads no weights and writes nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nptool.checkpoints import check_checkpoint, load_config
from nptool.collection.store import read_collected
from nptool.training.arguments import frozen_type, uses_bfloat16
from nptool.training.estimate import BFLOAT16, FLOAT32, Memory, Shape, estimate_memory, report, shape_of
from nptool.training.heads.config import HeadsConfig
from nptool.training.heads.head import extra_parameters
from nptool.training.heads.losses import CHUNK_ELEMENTS
from nptool.training.heads.preparation import check_count, find_responses, split_heldout
from nptool.training.responses.data import Source, expected_lengths, load_trajectories, open_source, position_limit


def dry_run(config: HeadsConfig) -> dict[str, Any]:
    """The `report` of a training; raises what the training itself would about data, model or configuration.

    With `joint`, memory is that of the joint stage.
    """
    source = find_responses(config)
    check_checkpoint(source.model)
    described, _ = open_source(source)
    check_count(config, source, described)
    shape = shape_of(described)
    extra = extra_parameters(shape, config.kind, config.count, config.rank)
    return report(
        config,
        _memory(config, shape, extra, half=frozen_type(config.precision, described) == torch.bfloat16),
        _lengths(config, source),
        resolved={"model": source.model},
        parameters={
            "parameters": shape.parameters + extra,
            "trained_parameters": extra + (shape.parameters if config.joint else 0),
        },
    )


def _memory(config: HeadsConfig, shape: Shape, extra: int, *, half: bool) -> Memory:
    """A frozen trunk keeps nothing for the backward pass, so activations are those of one head at a time."""
    part = shape if config.joint else replace(shape, layers=1)
    one = estimate_memory(
        part,
        config.batch_tokens,
        trained_rows=min(config.batch_tokens, max(1, CHUNK_ELEMENTS // shape.vocab_size)),
        bfloat16=uses_bfloat16(config.precision),
        checkpointing=config.gradient_checkpointing,
    )
    trained = extra + (shape.parameters if config.joint else 0)
    original = shape.parameters if config.joint and config.guard else 0
    width = one.weights // part.parameters
    trunk = BFLOAT16 if half and not config.joint else width
    return Memory(
        weights=trunk * shape.parameters + width * (extra + original),
        gradients=FLOAT32 * trained,
        optimizer=2 * FLOAT32 * trained,
        activations=one.activations,
        logits=one.logits,
    )


def _lengths(config: HeadsConfig, source: Source) -> NDArray[np.int64]:
    """Input tokens of every trained sequence."""
    if source.collected is None:
        prompts, responses = expected_lengths(config, source)
        return prompts + responses - 1
    limit = position_limit(load_config(source.model), config)
    rows = load_trajectories(read_collected(source.collected), limit, references=False).rows
    return split_heldout(rows, config.heldout)[0].lengths
