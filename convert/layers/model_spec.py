"""What a family reads from a `config.json`, and all that the rest of the conversion knows about a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nptool.convert.layers.weights import StoredTensor
from nptool.errors import CheckpointError

Metadata = Mapping[str, str | int | float | Sequence[float] | Sequence[bool]]
"""GGUF entries by key: string, uint32, float32, or an array of float32 or of booleans."""
Reader = Callable[[StoredTensor], Iterator[NDArray[np.float32]]]
"""Gives a stored tensor's rows as the GGUF has them, a few at a time."""


@dataclass(frozen=True)
class Config:
    """A parsed `config.json`."""

    values: Mapping[str, Any]
    source: str
    """Name of the checkpoint in messages."""

    def get(self, key: str, default: Any = None) -> Any:
        return self.values.get(key, default)

    def size(self, key: str) -> int:
        """A positive whole number, or CheckpointError."""
        value = self.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.error(f"config.json has {key} = {value!r}; expected a number above 0")
        return value

    def error(self, reason: str) -> CheckpointError:
        return CheckpointError(f"{self.source}: {reason}")


@dataclass(frozen=True)
class Sizes:
    """Those of every decoder."""

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
    tied: bool
    """The unembedding is the embedding."""


@dataclass(frozen=True)
class TensorSpec:
    """A tensor that the checkpoint must have."""

    source: str
    """Its name in transformers."""
    name: str
    """Its name in the GGUF."""
    shape: tuple[int, ...]
    read: Reader = StoredTensor.chunks


@dataclass(frozen=True)
class Seam:
    """A value inside a layer that transformers and llama.cpp both compute; the first that differs locates an error."""

    name: str
    """In llama.cpp's graph, without the layer's number."""
    module: str
    """Path of the transformers module below the layer; empty for the layer itself."""
    part: str
    """What computes it, with the GGUF's tensors; {0} is the layer's number."""
    of_input: bool = False
    """It is the module's input, not its output."""
    later_part: str | None = None
    """What is wrong if only tokens after the first differ: the first attends only to itself."""


@dataclass(frozen=True)
class ModelSpec:
    """One model."""

    architecture: str
    """transformers' class."""
    graph: str
    """`general.architecture`: the graph that llama.cpp builds."""
    sizes: Sizes
    layer: tuple[TensorSpec, ...]
    """A layer's tensors in the GGUF's order; their names are relative to the layer."""
    final_norm: TensorSpec
    metadata: Metadata
    """Entries with the prefix `graph`, beyond vocabulary, context, hidden size and layers."""
    seams: tuple[Seam, ...]
    """Of a layer, in the order they are computed."""
    frequency_factors: NDArray[np.float32] | None = None
    """Divisors of the RoPE frequencies."""
    remarks: tuple[str, ...] = ()
    """For the user: where the GGUF computes something else than the checkpoint."""
