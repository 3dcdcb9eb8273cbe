"""Safetensors weights, read a few rows at a time.

Rows are mapped from the file and widened to float32: bfloat16 needs no torch, and memory holds one chunk. Format:
https://github.com/huggingface/safetensors.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nptool.errors import CheckpointError

LENGTH_BYTES = 8
"""A safetensors file begins with the length of its header."""
CHUNK_VALUES = 1 << 22
"""Values held in memory at once: 16 MiB as float32."""
BF16 = "BF16"
STORED = {"F64": "<f8", "F32": "<f4", "F16": "<f2", BF16: "<u2"}
"""numpy's type of each of safetensors' types."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file, not yet read."""

    name: str
    file: Path
    dtype: str
    """Safetensors' name of the type, a key of STORED."""
    shape: tuple[int, ...]
    offset: int
    """First byte in the file."""

    @property
    def size(self) -> int:
        return prod(self.shape)

    def chunks(self, order: NDArray[np.intp] | None = None) -> Iterator[NDArray[np.float32]]:
        """The rows as float32, about CHUNK_VALUES values at a time, in the order of the row numbers `order`."""
        if not self.size:
            return
        rows = self.shape[0]
        mapped = np.memmap(self.file, STORED[self.dtype], "r", self.offset, (rows, self.size // rows))
        step = max(1, CHUNK_VALUES // mapped.shape[1])
        for start in range(0, rows, step):
            chosen = slice(start, start + step) if order is None else order[start : start + step]
            values = _widened(mapped[chosen], self.dtype)
            yield values.reshape(-1, *self.shape[1:])


def read_index(files: Sequence[Path]) -> dict[str, StoredTensor]:
    """All tensors of complete safetensors files, by name.

    Raises:
        CheckpointError: a tensor is not floating point.
    """
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(LENGTH_BYTES))
            header: dict[str, Any] = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            if entry["dtype"] not in STORED:
                raise CheckpointError(
                    f"{file}: {name} is stored as {entry['dtype']}; nptool converts {', '.join(STORED)}: "
                    "use the unquantized checkpoint"
                )
            start = LENGTH_BYTES + length + entry["data_offsets"][0]
            tensors[name] = StoredTensor(name, file, entry["dtype"], tuple(entry["shape"]), start)
    return tensors


def same_values(one: StoredTensor, other: StoredTensor) -> bool:
    """Whether two tensors hold the same values."""
    pairs = zip(one.chunks(), other.chunks(), strict=True)
    return one.shape == other.shape and all(np.array_equal(a, b) for a, b in pairs)


def _widened(values: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    if dtype == BF16:  # the upper half of a float32
        return (values.astype(np.uint32) << 16).view(np.float32)
    return np.asarray(values, np.float32)
