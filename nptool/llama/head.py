"""Extra heads in llama.cpp, one layer each: a one-layer model with its own KV cache that reads z instead of tokens.

`SeparateHeads` implements `nptool.decoding.loop.engine.HeadsEngine`. Shapes: T positions, D hidden, K extra heads, V
vocabulary.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from time import perf_counter
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from nptool.errors import ContextError, GgufError, NptoolError
from nptool.llama.context import Context
from nptool.llama.gguf_check import Header
from nptool.llama.model import Model
from nptool.llama.native import NativeContext, check_decoded, decode, float_view, get_logits

_SEQUENCE = 0


class Head(NativeContext):
    """A head with as many positions as a trunk's context and the same settings."""

    def __init__(self, header: Header, trunk: Context) -> None:
        """Load the head at the offset of `header`.

        Raises:
            GgufError: llama.cpp cannot load it, or it does not fit the trunk.
            ContextError: there is no memory for its cache.
        """
        model = Model.load_part(header, trunk.model.options.for_heads)
        self._cells = trunk.capacity + trunk.width
        try:
            self.size = check_sizes(model, trunk.model)
            """Values of one row of z."""
            super().__init__(model, trunk.settings, cells=self._cells, batch=trunk.batch_limit, outputs=1)
        except NptoolError:
            model.close()
            raise
        self._address = 0
        self._logits_V = np.empty(0, dtype=np.float32)
        self._line = np.arange(self._cells, dtype=np.int32)
        self._positions = np.zeros(self.batch_limit, dtype=np.int32)
        self._flags = np.zeros(self.batch_limit, dtype=np.int8)
        self._last = 0
        self._batch: Any = self._make_batch()
        self._z_TD = np.empty((0, self.size), dtype=np.float32)
        trunk.model.add_dependent(self)

    def evaluate(self, z_TD: NDArray[np.float32], start: int, *, width: int = 0) -> None:
        """Read z of positions start, start+1, ...; the cache must hold exactly the positions before.

        `logits` then gives the logits of the last row. On a GPU this only starts the computation.

        Args:
            width: least rows of the batch. Padding rows are removed from the cache again. llama.cpp reuses the graph of
                the previous batch if that had the same number of rows.

        Raises:
            ContextError: the rows do not fit.
        """
        read = len(z_TD)
        rows = max(read, min(width, self.batch_limit, self._cells - start))
        if not 0 < read <= self.batch_limit or start < 0 or start + read > self._cells:
            raise ContextError(f"{read} rows from position {start} do not fit a head of {self._cells} positions")
        if z_TD.shape[1] != self.size or z_TD.dtype != np.float32:
            raise ValueError(f"a head reads float32 rows of {self.size} values")
        pointer = self.pointer
        self._positions[:rows] = self._line[start : start + rows]
        if len(self._z_TD) < rows:
            self._z_TD = np.zeros((rows, self.size), dtype=np.float32)
            self._batch.embd = self._z_TD.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        # A copy is faster than making a ctypes pointer to `z_TD`.
        self._z_TD[:read] = z_TD
        self._flags[self._last] = 0
        self._last = read - 1
        self._flags[self._last] = 1
        self._batch.n_tokens = rows
        began = perf_counter()
        code = decode(pointer, self._batch)
        self.seconds += perf_counter() - began
        check_decoded(code, rows, start)
        if rows > read:
            self.rollback(start + read)

    def logits(self) -> NDArray[np.float32]:
        """Logits (V) at the last position that was read: a view, valid until the next `evaluate`."""
        pointer = self.pointer
        began = perf_counter()
        address = get_logits(pointer)
        self.seconds += perf_counter() - began
        if not address:
            raise ContextError("llama.cpp returned no logits of a head")
        if address != self._address:
            self._logits_V = float_view(address, 1, self.model.vocabulary_size).reshape(-1)
            self._address = address
        return self._logits_V

    def close(self) -> None:
        """Free cache and weights."""
        super().close()
        self.model.close()

    def _make_batch(self) -> Any:
        """A batch over numpy arrays."""
        limit, row_type = self.batch_limit, ctypes.POINTER(ctypes.c_int32)
        self._counts = np.ones(limit, dtype=np.int32)
        self._sequence = (ctypes.c_int32 * 1)(_SEQUENCE)
        self._rows = (row_type * limit)(*[ctypes.cast(self._sequence, row_type)] * limit)
        return llama_cpp.llama_batch(
            n_tokens=0,
            token=None,
            embd=None,
            pos=self._positions.ctypes.data_as(row_type),
            n_seq_id=self._counts.ctypes.data_as(row_type),
            seq_id=self._rows,
            logits=self._flags.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )


class SeparateHeads:
    """Heads 2..n: K heads that read the same positions."""

    def __init__(self, heads: Sequence[Head]) -> None:
        self.batch_limit = min(head.batch_limit for head in heads)
        self._heads = heads

    @property
    def seconds(self) -> float:
        """Time spent inside llama.cpp so far."""
        return sum(head.seconds for head in self._heads)

    def read(self, z_TD: NDArray[np.float32], start: int, ids: NDArray[np.int32]) -> None:
        """See `Head.evaluate`."""
        for head in self._heads:
            # A step accepts at most n tokens. Batches of that many rows share one graph.
            head.evaluate(z_TD, start, width=len(self._heads) + 1)

    def draft(self, z_TD: NDArray[np.float32], start: int, ids: NDArray[np.int32], count: int) -> NDArray[np.float32]:
        """The same, and logits (count, V) of the first heads after the last position; valid until the next call."""
        self.read(z_TD, start, ids)
        return np.stack([head.logits() for head in self._heads[:count]])

    def rollback(self, position: int) -> None:
        """Remove everything from `position` on."""
        for head in self._heads:
            head.rollback(position)


def check_sizes(model: Model, trunk: Model) -> int:
    """Values of one row of z.

    Raises:
        GgufError: the head `model` does not fit the trunk.
    """
    size = int(llama_cpp.llama_model_n_embd_inp(model.pointer))
    for name, value, wanted in (
        ("values for each position", size, trunk.hidden_size),
        ("tokens in its vocabulary", model.vocabulary_size, trunk.vocabulary_size),
    ):
        if value != wanted:
            raise GgufError(
                f"{model.path}: the head at byte {model.header.offset} has {value} {name} and the model {wanted}; "
                "convert it again"
            )
    return size
