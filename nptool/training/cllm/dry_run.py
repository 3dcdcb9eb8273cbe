"""What `nptool train cllm` would do: tokens, steps and memory. Loads no weights and writes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nptool.checkpoints import check_checkpoint, load_config
from nptool.collection.store import read_collected
from nptool.training.arguments import frozen_type, uses_bfloat16
from nptool.training.cllm.config import CllmConfig
from nptool.training.cllm.planning import draw
from nptool.training.estimate import estimate_memory, report, shape_of
from nptool.training.responses.config import BLOCK_SIZE
from nptool.training.responses.data import (
    Source,
    expected_lengths,
    find_source,
    load_trajectories,
    open_source,
    position_limit,
)

# Trajectories that are packed to estimate the length of all.
SAMPLE = 2000


def dry_run(config: CllmConfig) -> dict[str, Any]:
    """The `report` of a training; raises what the training itself would about data, model or configuration."""
    source = find_source(config)
    check_checkpoint(source.model)
    sizes = _guess(config, source) if source.collected is None else _measure(config, source)
    described = load_config(source.model)
    shape = shape_of(described)
    adapters = None if config.lora_rank is None else shape.adapter_parameters(config.lora_rank)
    memory = estimate_memory(
        shape,
        config.batch_tokens,
        trained_rows=round(config.batch_tokens * sizes.logits / sizes.lengths.sum()),
        trained_parameters=adapters,
        bfloat16=uses_bfloat16(config.precision),
        half_frozen=frozen_type(config.precision, described) == torch.bfloat16,
        checkpointing=config.gradient_checkpointing,
    )
    trained = shape.parameters if adapters is None else adapters
    return report(
        config,
        memory,
        sizes.lengths,
        share=sizes.share,
        resolved={"model": source.model, "n": sizes.block_size},
        parameters={"parameters": shape.parameters, "trained_parameters": trained},
    )


@dataclass(frozen=True)
class _Sizes:
    """Packed lengths of a share of the data, and how many of their rows need logits."""

    lengths: NDArray[np.int64]
    logits: int
    share: float
    block_size: int


def _measure(config: CllmConfig, source: Source) -> _Sizes:
    """Pack collected trajectories; evenly spaced ones if there are many."""
    assert source.collected is not None
    collected = read_collected(source.collected)
    limit = position_limit(open_source(source)[0], config)
    rows = load_trajectories(collected, limit, references=config.ar_target == "reference").rows
    sample = rows[:: -(-len(rows) // SAMPLE)]
    packed = [draw(sample, row, config, config.seed, 0) for row in range(len(sample))]
    return _Sizes(
        lengths=np.array([len(one) for one in packed]),
        logits=sum(len(one.ar_rows_A) + len(one.student_rows_M) for one in packed),
        share=len(sample) / len(rows),
        block_size=collected.metadata.n,
    )


def _guess(config: CllmConfig, source: Source) -> _Sizes:
    """Every response once clean and, for each draw, once noisy, after its prompt."""
    prompts, responses = expected_lengths(config, source)
    logits = (1 + config.draws) * int(responses.sum())
    return _Sizes(prompts + (1 + config.draws) * responses, logits, 1.0, config.n or BLOCK_SIZE)
