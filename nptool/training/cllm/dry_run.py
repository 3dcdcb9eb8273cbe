"""What `nptool train cllm` would do: tokens, steps and memory, with no model loaded and nothing written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nptool.checkpoints import check_checkpoint, load_config, load_tokenizer
from nptool.collection.prompts import load_prompts
from nptool.collection.store import Trajectory, read_collected
from nptool.processes import process_count
from nptool.runs import ROOT, Run
from nptool.settings import to_json
from nptool.training.arguments import count_steps, uses_bfloat16
from nptool.training.base.dry_run import shape_of
from nptool.training.batches import batches_in_pass
from nptool.training.cllm.config import CllmConfig
from nptool.training.cllm.planning import draw
from nptool.training.estimate import estimate_memory
from nptool.training.responses.config import BLOCK_SIZE
from nptool.training.responses.data import (
    Source,
    check_match,
    collect_config,
    find_source,
    load_trajectories,
    position_limit,
)

# Trajectories that are packed to know how many tokens all of them are.
SAMPLE = 2000


def dry_run(config: CllmConfig) -> dict[str, Any]:
    """The resolved configuration and an estimate, as JSON values.

    Returns:
        `config` (resolved), `run`, `parameters`, `trained_parameters`, `steps`, `tokens_per_step` (padding counted),
        `data_tokens` (packed, in one pass), and `memory` (bytes, see `nptool.training.estimate`). Where the data are
        prompts, responses count as long as the data set's own, or where it has none as long as they may become.

    Raises:
        NptoolError: what the training itself would raise about data, model or configuration.
    """
    source = find_source(config)
    check_checkpoint(source.model)
    described = load_config(source.model)
    sizes = _guess(config, source) if source.collected is None else _measure(config, source)
    shape = shape_of(described)
    adapters = None if config.lora_rank is None else shape.adapter_parameters(config.lora_rank)
    memory = estimate_memory(
        shape,
        config.batch_tokens,
        trained_rows=round(config.batch_tokens * sizes.logits / sizes.lengths.sum()),
        trained_parameters=adapters,
        bfloat16=uses_bfloat16(config.precision),
        checkpointing=config.gradient_checkpointing,
    )
    resolved = {
        "model": source.model,
        "n": sizes.block_size,
        "lr": config.learning_rate,
        "precision": "bfloat16" if uses_bfloat16(config.precision) else "float32",
        "name": config.run_name,
    }
    return {
        "config": to_json(config) | resolved,
        "run": config.run_name,
        "parameters": shape.parameters,
        "trained_parameters": shape.parameters if adapters is None else adapters,
        "steps": count_steps(config, batches_in_pass(sizes.lengths, config.batch_tokens) / sizes.share),
        "tokens_per_step": config.batch_tokens * config.accumulation * process_count(),
        "data_tokens": round(sizes.lengths.sum() / sizes.share),
        "memory": {**asdict(memory), "total": memory.total},
    }


@dataclass(frozen=True)
class _Sizes:
    """Packed lengths of a share of the data, and how many of their rows need logits."""

    lengths: NDArray[np.int64]
    logits: int
    share: float
    block_size: int


def _measure(config: CllmConfig, source: Source) -> _Sizes:
    """Pack collected trajectories, evenly spaced ones if there are many."""
    assert source.collected is not None
    collected = read_collected(source.collected)
    described, tokenizer = load_config(source.model), load_tokenizer(source.model)
    check_match(collected.metadata, source.collected, described, tokenizer, source.model)
    limit = position_limit(described, config)
    rows: Sequence[Trajectory] = load_trajectories(collected, limit, references=config.ar_target == "reference").rows
    sample = rows[:: -(-len(rows) // SAMPLE)]
    packed = [draw(sample, row, config, config.seed, 0) for row in range(len(sample))]
    return _Sizes(
        lengths=np.array([len(one) for one in packed]),
        logits=sum(len(one.ar_rows_A) + len(one.student_rows_M) for one in packed),
        share=len(sample) / len(rows),
        block_size=collected.metadata.n,
    )


def _guess(config: CllmConfig, source: Source) -> _Sizes:
    """Every response once clean and, for each draw, once noisy, behind its prompt."""
    tokenizer = load_tokenizer(source.model)
    limit = position_limit(load_config(source.model), config)
    prompts = load_prompts(collect_config(config, source, Run(ROOT / config.run_name)), tokenizer, limit).prompts
    responses = np.array([len(one.reference_ids) if one.reference_ids is not None else one.limit for one in prompts])
    lengths = np.array([len(one.ids) for one in prompts]) + (1 + config.draws) * responses
    return _Sizes(
        lengths, logits=(1 + config.draws) * int(responses.sum()), share=1.0, block_size=config.n or BLOCK_SIZE
    )
