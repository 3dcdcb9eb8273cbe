"""The sizes that every decoder's `config.json` states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nptool.errors import CheckpointError


@dataclass(frozen=True)
class Config:
    """A parsed `config.json`."""

    values: Mapping[str, Any]
    source: str
    """Name of the checkpoint in messages."""

    def get(self, key: str, default: Any = None) -> Any:
        return self.values.get(key, default)

    def size(self, key: str) -> int:
        """
        Raises:
            CheckpointError: the value is missing or not a positive whole number.
        """
        value = self.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.error(f"config.json has {key} = {value!r}; expected a number above 0")
        return value

    def error(self, reason: str) -> CheckpointError:
        return CheckpointError(f"{self.source}: {reason}")


@dataclass(frozen=True)
class Hyperparameters:
    """Sizes of one model."""

    vocabulary: int
    """Rows of the embedding; the tokenizer may have fewer tokens."""
    context: int
    """In tokens."""
    hidden: int
    feed_forward: int
    layers: int
    heads: int
    key_value_heads: int
    head_dim: int
    norm_epsilon: float
    tied: bool
    """The unembedding is the embedding."""


def read_hyperparameters(config: Config, *, context: int, head_dim: int | None = None) -> Hyperparameters:
    """Read the sizes.

    Args:
        context: the family's default of `max_position_embeddings`.
        head_dim: the family's default; None is hidden size / heads.

    Raises:
        CheckpointError: a size is missing.
    """
    heads, hidden = config.size("num_attention_heads"), config.size("hidden_size")
    return Hyperparameters(
        vocabulary=config.size("vocab_size"),
        context=int(config.get("max_position_embeddings") or context),
        hidden=hidden,
        feed_forward=config.size("intermediate_size"),
        layers=config.size("num_hidden_layers"),
        heads=heads,
        key_value_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=int(config.get("head_dim") or head_dim or hidden // heads),
        norm_epsilon=float(config.get("rms_norm_eps", 1e-6)),
        tied=bool(config.get("tie_word_embeddings", False)),
    )
