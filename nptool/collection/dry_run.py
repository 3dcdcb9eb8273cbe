"""The resolved configuration of a collection and an estimate of its work and memory. Reads no weights."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM

from nptool.checkpoints import check_checkpoint, load_config, load_tokenizer
from nptool.collection.collect import context_of, device_of, precision_of
from nptool.collection.config import CollectConfig
from nptool.collection.prompts import load_prompts
from nptool.settings import to_json


def dry_run(config: CollectConfig) -> dict[str, Any]:
    """Read data and configuration as `collect` would, and estimate.

    Returns:
        `config`, `device`, `parameters`, `prompts`, `left_out` (by reason), `prompt_tokens`, `most_new_tokens`,
        and `memory`: bytes of `weights`, `cache`, `logits` and their `total`.
    """
    check_checkpoint(config.model)
    prompts = load_prompts(config, load_tokenizer(config.model), context_of(config.model))
    model_config = load_config(config.model)
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(model_config)  # type: ignore[no-untyped-call]  # untyped there
    parameters = sum(tensor.numel() for tensor in empty.parameters())
    text: Any = model_config.get_text_config()
    groups = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    batch = min(config.batch_size, len(prompts.prompts))
    longest = max(len(prompt.ids) + prompt.limit for prompt in prompts.prompts)
    size = precision_of(config).itemsize
    memory = {
        "weights": parameters * size,
        "cache": 2 * text.num_hidden_layers * groups * head * batch * longest * size,
        "logits": batch * config.n * text.vocab_size * torch.float32.itemsize,
    }
    return {
        "config": to_json(config),
        "device": str(device_of(config)),
        "parameters": parameters,
        "prompts": len(prompts.prompts),
        "left_out": dict(prompts.left_out),
        "prompt_tokens": sum(len(prompt.ids) for prompt in prompts.prompts),
        "most_new_tokens": sum(prompt.limit for prompt in prompts.prompts),
        "memory": {**memory, "total": sum(memory.values())},
    }
