"""Base training of a model with several heads, from scratch or from a multi-head checkpoint.

From scratch, n - 1 layers move from the trunk to the heads, so the number of parameters stays the same (2404.19737,
section 2). A multi-head checkpoint is trained further with its heads or without: the paper's best recipe is to
pre-train with four heads and to fine-tune with one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from nptool.errors import UsageError
from nptool.heads import read_heads_info
from nptool.training.base.config import BaseConfig
from nptool.training.base.model import new_llama
from nptool.training.heads.checkpoint import load_heads
from nptool.training.heads.model import MultiHead


def count_heads(config: BaseConfig) -> int:
    """Heads that are trained, including head 1.

    Raises:
        UsageError: the model to start from has another number of heads.
        CheckpointError: its heads do not fit it.
    """
    info = read_heads_info(Path(config.model)) if config.model is not None else None
    if config.model is None or config.heads == 1:
        return config.heads or 1
    if info is None:
        if config.heads is None:
            return 1
        raise UsageError(
            f"{config.model} has no extra heads; put some on it with `nptool train heads -m {config.model}`, or leave "
            "--heads out"
        )
    if config.heads not in (None, info.count):
        raise UsageError(
            f"{config.model} has {info.count} heads, --heads is {config.heads}; give --heads {info.count}, or 1 to go "
            "on without them"
        )
    return info.count


def start_multi_head(config: BaseConfig, heads: int, tokenizer: PreTrainedTokenizerBase) -> MultiHead:
    """The model to train: the checkpoint's, or a new one whose last `heads` - 1 layers are heads."""
    if config.model is not None:
        return load_heads(Path(config.model))
    return move_layers(new_llama(config, tokenizer), heads)


def move_layers(base: Any, heads: int) -> MultiHead:
    """An untrained model whose last `heads` layers become heads 1..n; the layers before them are the trunk."""
    layers = base.model.layers
    kept = len(layers) - (heads - 1)
    extra = list(layers[kept:])
    del layers[kept:]
    base.config.num_hidden_layers = kept
    return MultiHead(base, extra)
