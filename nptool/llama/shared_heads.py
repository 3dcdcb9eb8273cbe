"""Heads that share one layer, in llama.cpp: all depths of the newest position are rows of one batch.

Implements `nptool.decoding.loop.engine.HeadsEngine`. The layer's cache holds the plain rows, which belong to K
sequences; in a draft's batch each depth is one more row, of its own sequence, and is removed afterwards. Shapes: T
positions, D hidden, K extra heads, R rank, V vocabulary.
"""

from __future__ import annotations

import ctypes
from time import perf_counter
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from nptool.errors import ContextError, GgufError, NptoolError
from nptool.llama.context import Context
from nptool.llama.gguf_parts import Part
from nptool.llama.head import check_sizes
from nptool.llama.model import Model
from nptool.llama.native import NativeContext, check_decoded, decode, float_view, get_logits, remove_tokens

_ANY = -1
"""llama.cpp's number for all sequences."""


class Depths:
    """What tells the depths apart: row k is z + e_k + B_k A_k z."""

    def __init__(self, part: Part, count: int) -> None:
        """
        Args:
            count: K.

        Raises:
            GgufError: a tensor is missing or does not fit the others.
        """
        self.e_KD = _read(part, "e")
        hidden = self.e_KD.shape[-1]
        empty = np.empty((count, 0, hidden), dtype=np.float32)
        a_KRD, self._b_KDR = (_read(part, "a"), _read(part, "b")) if "a" in part.header.tensors else (empty, empty)
        self.rank = a_KRD.shape[1]
        fits = a_KRD.shape == (count, self.rank, hidden) and self._b_KDR.shape == (count, hidden, self.rank)
        if self.e_KD.shape != (count, hidden) or (self.rank and not fits):
            raise GgufError(f"{part.header.path}: the depths of its heads do not fit each other; convert it again")
        self._a_SD = a_KRD.reshape(count * self.rank, hidden)

    def rows(self, z_D: NDArray[np.float32], out_KD: NDArray[np.float32]) -> None:
        """Write the rows of the first depths after a position."""
        count = len(out_KD)
        np.add(self.e_KD[:count], z_D, out=out_KD)
        if self.rank:
            low_KR1 = (self._a_SD[: count * self.rank] @ z_D).reshape(count, self.rank, 1)
            out_KD += (self._b_KDR[:count] @ low_KR1)[..., 0]


class SharedHeads(NativeContext):
    """Heads 2..n with as many positions as a trunk's context and the same settings."""

    def __init__(self, layer: Part, depths: Part, count: int, trunk: Context) -> None:
        """
        Args:
            count: K.

        Raises:
            GgufError: llama.cpp cannot load the layer, or it does not fit the trunk or the depths.
            ContextError: there is no memory for its cache.
        """
        self._depths = Depths(depths, count)
        self.count = count
        model = Model.load_part(layer.header, trunk.model.options.for_heads)
        self._end = trunk.capacity + trunk.width
        try:
            self._size = check_sizes(model, trunk.model)
            if self._depths.e_KD.shape[1] != self._size:
                raise GgufError(
                    f"{layer.header.path}: the depths of its heads do not fit their layer; convert it again"
                )
            super().__init__(
                model,
                trunk.settings,
                cells=self._end + count,
                batch=trunk.batch_limit + count,
                outputs=count,
                sequences=count,
            )
        except NptoolError:
            model.close()
            raise
        self.batch_limit -= count
        self._address, self._logits_KV = 0, np.empty((0, 0), dtype=np.float32)
        self._make_rows()
        trunk.model.add_dependent(self)

    def read(self, z_TD: NDArray[np.float32], start: int, ids: NDArray[np.int32]) -> None:
        """Read z of positions start, start+1, ...; the cache must hold exactly the positions before.

        Raises:
            ContextError: the rows do not fit.
        """
        self._run(z_TD, start, 0)

    def draft(self, z_TD: NDArray[np.float32], start: int, ids: NDArray[np.int32], count: int) -> NDArray[np.float32]:
        """The same, and logits (count, V) of the first heads after the last position; valid until the next call.

        Raises:
            ContextError: the rows do not fit.
        """
        limit, end = self.batch_limit, start + len(z_TD)
        self._depths.rows(z_TD[-1], self._z_TD[limit : limit + count])
        self._positions[limit : limit + count] = end
        self._run(z_TD, start, count)
        began = perf_counter()
        address = get_logits(self.pointer)
        self.seconds += perf_counter() - began
        if not address:
            raise ContextError("llama.cpp returned no logits of the heads")
        if address != self._address:
            self._logits_KV = float_view(address, self.count, self.model.vocabulary_size)
            self._address = address
        self.rollback(end)
        return self._logits_KV[:count]

    def rollback(self, position: int) -> None:
        """Remove everything from `position` on."""
        if not remove_tokens(self.memory, _ANY, position, -1):
            raise GgufError(f"{self.model.path}: llama.cpp cannot remove tokens from this model's cache")

    def close(self) -> None:
        """Free cache and weights."""
        super().close()
        self.model.close()

    def _run(self, z_TD: NDArray[np.float32], start: int, depths: int) -> None:
        read, limit, pointer = len(z_TD), self.batch_limit, self.pointer
        if not 0 < read <= limit or start < 0 or start + read > self._end:
            raise ContextError(f"{read} rows from position {start} do not fit heads of {self._end} positions")
        if z_TD.shape[1] != self._size or z_TD.dtype != np.float32:
            raise ValueError(f"heads read float32 rows of {self._size} values")
        self._z_TD[limit - read : limit] = z_TD
        self._positions[limit - read : limit] = self._line[start : start + read]
        batch = self._batches.get(read) or self._batch(read)
        batch.n_tokens = read + depths
        began = perf_counter()
        code = decode(pointer, batch)
        self.seconds += perf_counter() - began
        check_decoded(code, read + depths, start)

    def _make_rows(self) -> None:
        """Arrays of the widest batch: plain rows that end at `batch_limit`, then one row for each depth."""
        plain, rows = self.batch_limit, self.batch_limit + self.count
        self._line = np.arange(self._end, dtype=np.int32)
        self._z_TD = np.zeros((rows, self._size), dtype=np.float32)
        self._positions = np.zeros(rows, dtype=np.int32)
        self._flags = np.repeat(np.array([0, 1], dtype=np.int8), (plain, self.count))
        self._counts = np.repeat(np.array([self.count, 1], dtype=np.int32), (plain, self.count))
        self._numbers = np.arange(self.count, dtype=np.int32)
        addresses = np.full(rows, self._numbers.ctypes.data, dtype=np.uintp)
        addresses[plain:] += np.arange(self.count, dtype=np.uintp) * self._numbers.itemsize
        self._sequences = addresses
        self._batches: dict[int, Any] = {}

    def _batch(self, read: int) -> Any:
        """The batch whose first row is the first of `read` plain ones."""
        first = self.batch_limit - read

        def at(array: NDArray[Any], kind: Any) -> Any:
            return ctypes.cast(array[first:].ctypes.data, ctypes.POINTER(kind))

        batch = self._batches[read] = llama_cpp.llama_batch(
            n_tokens=0,
            token=None,
            embd=at(self._z_TD, ctypes.c_float),
            pos=at(self._positions, ctypes.c_int32),
            n_seq_id=at(self._counts, ctypes.c_int32),
            seq_id=at(self._sequences, ctypes.POINTER(ctypes.c_int32)),
            logits=at(self._flags, ctypes.c_int8),
        )
        return batch


def _read(part: Part, name: str) -> NDArray[np.float32]:
    """A float32 tensor of a part."""
    header = part.header
    shape, kind = header.tensors.get(name, ((), -1))
    if kind != 0:
        raise GgufError(f"{header.path}: the depths of its heads have no F32 tensor {name}; convert it again")
    count = int(np.prod(shape))
    values = np.fromfile(header.path, "<f4", count, offset=header.starts[name])
    return np.ascontiguousarray(values.reshape(shape[::-1]))
