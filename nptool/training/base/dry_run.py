"""What `nptool train base` would do: sizes, steps and memory. Makes no model and writes nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from nptool.checkpoints import check_checkpoint, load_config, load_tokenizer
from nptool.heads import SEPARATE, read_heads_info
from nptool.training.arguments import uses_bfloat16
from nptool.training.base.config import BaseConfig
from nptool.training.base.corpus import load_corpus
from nptool.training.base.model import llama_config
from nptool.training.base.train import check_context, count_heads, new_tokenizer, tokenizer_source
from nptool.training.estimate import Shape, estimate_memory, report, shape_of
from nptool.training.sequences import make_sequences
from nptool.training.units import Unit, unit_texts

# Characters that are tokenized to estimate the number of tokens.
SAMPLE_CHARS = 1_000_000


def dry_run(config: BaseConfig) -> dict[str, Any]:
    """The `report` of a training; raises what the training itself would about data, model or configuration.

    Tokens and steps are exact for data of up to `SAMPLE_CHARS` characters, else estimated from a sample.
    """
    described = None
    if config.model is not None:
        check_checkpoint(config.model)
        described = load_config(config.model)
        check_context(config, described)
    heads = count_heads(config)
    corpus = load_corpus(config)
    sample, share = _sample(corpus.train)
    if (source := tokenizer_source(config)) is not None:
        tokenizer = load_tokenizer(source)
    else:
        tokenizer = new_tokenizer(config, sample, chat=corpus.has_conversations)
    rows = make_sequences(sample, tokenizer, context=config.context, loss=config.loss, prompt_share=config.prompt_share)
    shape = (
        shape_of(llama_config(config, tokenizer))
        if described is None
        else _with_heads(config, shape_of(described), heads)
    )
    memory = estimate_memory(
        shape,
        config.batch_tokens,
        trained_rows=round(config.batch_tokens * rows.targets / max(1, int(rows.lengths.sum()))),
        bfloat16=uses_bfloat16(config.precision),
        checkpointing=config.gradient_checkpointing,
    )
    parameters = shape.parameters if described is None or heads > 1 else _count_parameters(described)
    sizes = {name: size for name, size in asdict(shape).items() if name != "head_size"}
    return report(config, memory, rows.lengths, share=share, resolved=sizes, parameters={"parameters": parameters})


def _with_heads(config: BaseConfig, shape: Shape, heads: int) -> Shape:
    """Sizes of the model to start from with its heads, as if they were layers of its own."""
    info = read_heads_info(Path(config.model)) if config.model is not None and heads > 1 else None
    shared = info is not None and info.kind != SEPARATE
    return replace(shape, layers=shape.layers + (1 if shared else heads - 1))


def _sample(units: Sequence[Unit]) -> tuple[Sequence[Unit], float]:
    """Evenly spaced units of about `SAMPLE_CHARS` characters, and their share of all characters."""
    sizes = [sum(map(len, unit_texts(unit))) for unit in units]
    step = math.ceil(sum(sizes) / SAMPLE_CHARS)
    if step <= 1:
        return units, 1.0
    return units[::step], sum(sizes[::step]) / sum(sizes)


def _count_parameters(described: PretrainedConfig) -> int:
    """Parameters of a model of any architecture, counted on the meta device, where it takes no memory."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(described)  # type: ignore[no-untyped-call]  # untyped there
    return sum(weight.numel() for weight in model.parameters())
