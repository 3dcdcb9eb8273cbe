"""What a model family says about one model, and all that the rest of the conversion knows about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nptool.convert.hyperparameters import Hyperparameters
from nptool.convert.weights import StoredTensor

Metadata = Mapping[str, str | int | float | Sequence[float]]
"""GGUF entries by key: string, uint32, float32 or an array of float32."""
Chunks = Iterator[NDArray[np.float32]]


@dataclass(frozen=True)
class TensorSpec:
    """A tensor that the checkpoint must have."""

    source: str
    """Its name in transformers."""
    name: str
    """Its name in the GGUF."""
    shape: tuple[int, ...]
    read: Callable[[StoredTensor], Chunks] = StoredTensor.chunks
    """The values of the GGUF, a few rows at a time."""


@dataclass(frozen=True)
class Seam:
    """A value inside a layer that transformers and llama.cpp both compute, to find the first that differs."""

    name: str
    """In llama.cpp's graph, without the layer's number."""
    module: str
    """Path in transformers below the layer; empty for the layer itself."""
    part: str
    """What computes it, with the GGUF's tensors; {0} is the layer's number."""
    of_input: bool = False
    """It is the module's input; else its output."""
    later_part: str | None = None
    """What is wrong if the first token's value is right, which attends only to itself."""


@dataclass(frozen=True)
class ModelSpec:
    """One model."""

    architecture: str
    """transformers' class."""
    graph: str
    """`general.architecture`: the graph that llama.cpp builds."""
    sizes: Hyperparameters
    layer: tuple[TensorSpec, ...]
    """The tensors of a layer in the GGUF's order; `source` and `name` are relative to the layer."""
    final_norm: TensorSpec
    metadata: Metadata
    """Entries with the prefix `graph`, beyond vocabulary, context, hidden size and layers."""
    seams: tuple[Seam, ...]
    """Of a layer, in the order they are computed."""
    frequency_factors: Sequence[float] = ()
    """Divisors of the RoPE frequencies, or empty."""
    remarks: tuple[str, ...] = ()
    """Where the GGUF computes something else than the checkpoint, for the user."""
