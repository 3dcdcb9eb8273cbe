"""What `nptool train base` would do: sizes, steps and memory, with no model made and nothing written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from nptool.checkpoints import check_checkpoint, load_config, load_tokenizer
from nptool.processes import process_count
from nptool.settings import to_json
from nptool.training.arguments import count_steps, uses_bfloat16
from nptool.training.base.config import BaseConfig
from nptool.training.base.corpus import Unit, load_corpus, unit_texts
from nptool.training.base.multi_head import count_heads
from nptool.training.base.sequences import make_sequences
from nptool.training.base.train import check_context, new_tokenizer, tokenizer_source
from nptool.training.batches import batches_in_pass
from nptool.training.estimate import Shape, estimate_memory

# Characters that are tokenized to know how many tokens all of them are.
SAMPLE_CHARS = 1_000_000


def dry_run(config: BaseConfig) -> dict[str, Any]:
    """The resolved configuration and an estimate, as JSON values.

    Returns:
        `config` (learning rate and sizes resolved), `run`, `parameters`, `steps`, `tokens_per_step` (padding counted),
        `data_tokens` (in one pass), `memory` (bytes, see `nptool.training.estimate`). Tokens and steps are exact for
        data of up to `SAMPLE_CHARS` characters, else estimated from a sample.

    Raises:
        NptoolError: what the training itself would raise about data, model or configuration.
    """
    if config.model is not None:
        check_checkpoint(config.model)
        check_context(config, load_config(config.model))
    heads = count_heads(config)
    corpus = load_corpus(config)
    sample, share = _sample(corpus.train)
    if (source := tokenizer_source(config)) is not None:
        tokenizer = load_tokenizer(source)
    else:
        tokenizer = new_tokenizer(config, sample, chat=corpus.has_conversations)
    rows = make_sequences(sample, tokenizer, context=config.context, loss=config.loss, prompt_share=config.prompt_share)
    tokens = int(rows.lengths.sum())
    if config.model is not None:
        described = load_config(config.model)
        shape, parameters = shape_of(described), _count_parameters(described)
        if heads > 1:
            shape = replace(shape, layers=shape.layers + heads - 1)
            parameters = shape.parameters
    else:
        shape = new_shape(config, len(tokenizer))
        parameters = shape.parameters
    memory = estimate_memory(
        shape,
        config.batch_tokens,
        trained_rows=round(config.batch_tokens * rows.targets / max(1, tokens)),
        bfloat16=uses_bfloat16(config.precision),
        checkpointing=config.gradient_checkpointing,
    )
    return {
        "config": {**to_json(config), **_resolved(config, shape)},
        "run": config.run_name,
        "parameters": parameters,
        "steps": count_steps(config, batches_in_pass(rows.lengths, config.batch_tokens) / share),
        "tokens_per_step": config.batch_tokens * config.accumulation * process_count(),
        "data_tokens": round(tokens / share),
        "memory": {**asdict(memory), "total": memory.total},
    }


def new_shape(config: BaseConfig, vocab_size: int) -> Shape:
    """Sizes of the Llama that `config` makes."""
    return Shape(
        vocab_size=vocab_size,
        hidden_size=config.hidden_size,
        layers=config.layers,
        attention_heads=config.attention_heads,
        kv_heads=config.key_value_heads,
        head_size=config.head_size,
        intermediate_size=config.feed_forward_size,
        tied=config.tied,
    )


def shape_of(described: PretrainedConfig) -> Shape:
    """Sizes of a finished model of the Llama family, from its configuration."""
    text = described.get_text_config()
    heads = text.num_attention_heads
    return Shape(
        vocab_size=text.vocab_size,
        hidden_size=text.hidden_size,
        layers=text.num_hidden_layers,
        attention_heads=heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_size=getattr(text, "head_dim", None) or text.hidden_size // heads,
        intermediate_size=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        tied=bool(described.tie_word_embeddings),
    )


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


def _resolved(config: BaseConfig, shape: Shape) -> dict[str, Any]:
    return {
        "lr": config.learning_rate,
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "layers": shape.layers,
        "attention_heads": shape.attention_heads,
        "kv_heads": shape.kv_heads,
        "intermediate_size": shape.intermediate_size,
        "tied": shape.tied,
        "precision": "bfloat16" if uses_bfloat16(config.precision) else "float32",
        "name": config.run_name,
    }
