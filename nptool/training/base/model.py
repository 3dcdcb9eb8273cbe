"""A new Llama with random weights that copies tokens from the prompt sooner than one with plain normal weights.

- Keys start equal to queries and outputs as the transpose of values, so a head attends to tokens similar to its own and
  copies them: mimetic initialization (Trockman and Kolter, arXiv 2305.09828).
- Tokens that differ only in a space before them or in case (`level`, ` level`, ` Level`) start with similar embeddings.
- Weights that write into the residual stream are divided by sqrt(2 layers) (GPT-2), so its size does not grow with
  depth.

Legend: H query heads, G key/value heads, E size of a head, D hidden, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from nptool.training.base.config import BaseConfig

INITIAL_STD = 0.02
EMBEDDING_SHARE = 0.8
"""Share of an embedding's variance that tokens of the same word have in common."""
QUERY_GAIN = 0.7
"""Standard deviation of the queries' and keys' weights, times sqrt(D)."""
VALUE_GAIN = 0.5
"""Singular values of the values' weights, and of the outputs' before the division by sqrt(2 layers)."""


def new_llama(config: BaseConfig, tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    """A Llama for `tokenizer` with weights drawn from `config.seed`, in float32."""
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model = LlamaForCausalLM(llama_config(config, tokenizer))
        _draw_weights(model)
        _draw_embeddings(model, tokenizer)
    return model


def llama_config(config: BaseConfig, tokenizer: PreTrainedTokenizerBase) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        intermediate_size=config.feed_forward_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.attention_heads,
        num_key_value_heads=config.key_value_heads,
        max_position_embeddings=config.context,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        tie_word_embeddings=config.tied,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


@torch.no_grad()
def _draw_weights(model: LlamaForCausalLM) -> None:
    shrink = (2 * model.config.num_hidden_layers) ** -0.5
    for name, weight in model.named_parameters():
        if weight.dim() < 2:
            weight.fill_(1.0)
        else:
            weight.normal_(std=INITIAL_STD * (shrink if name.endswith("down_proj.weight") else 1.0))
    for layer in model.model.layers:
        _draw_attention(layer.self_attn, model.config, shrink)


def _draw_attention(attention: Any, config: Any, shrink: float) -> None:
    """Keys like queries, outputs like values transposed; query heads of one group share their keys and values."""
    groups, hidden = config.num_key_value_heads, config.hidden_size
    size = hidden // config.num_attention_heads
    weight: dict[str, Tensor] = {name: getattr(attention, f"{name}_proj").weight for name in "qkvo"}
    weight["q"].normal_(std=QUERY_GAIN * hidden**-0.5)
    queries_GHED = weight["q"].view(groups, -1, size, hidden)
    weight["k"].copy_(queries_GHED[:, 0].reshape(-1, hidden))
    directions, _ = torch.linalg.qr(torch.randn(hidden, groups * size))
    weight["v"].copy_(VALUE_GAIN * directions.T)
    values_GED = weight["v"].view(groups, 1, size, hidden)
    each_HED = values_GED.expand(-1, config.num_attention_heads // groups, -1, -1).reshape(-1, hidden)
    weight["o"].copy_(shrink * each_HED.T)


@torch.no_grad()
def _draw_embeddings(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
    """Tokens that are the same word up to spaces and case share `EMBEDDING_SHARE` of their variance."""
    words: dict[str, int] = {}
    word_of_V = []
    for token in range(len(tokenizer)):
        text = str(tokenizer.decode([token])).strip().lower()
        # Tokens of white space or partial characters are words of their own.
        word = text if text and "\ufffd" not in text else f"\ufffd{token}"
        word_of_V.append(words.setdefault(word, len(words)))
    embedding: Any = model.get_input_embeddings()
    table_VD: Tensor = embedding.weight
    common_VD = torch.randn(len(words), table_VD.shape[1])[torch.tensor(word_of_V)]
    own_VD = torch.randn_like(table_VD)
    table_VD.copy_(INITIAL_STD * (EMBEDDING_SHARE**0.5 * common_VD + (1 - EMBEDDING_SHARE) ** 0.5 * own_VD))
