"""A llama.cpp context: one KV cache, one batch, the logits as a numpy view. Implements `Engine` and `Trunk`.

Every size is checked before the call, because a failing GGML_ASSERT aborts the process.
"""

from __future__ import annotations

import ctypes
from time import perf_counter
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from nptool.errors import ContextError, UsageError
from nptool.llama.loading import DEFAULT_BATCH, DEFAULT_WIDTH, CacheType
from nptool.llama.model import Model
from nptool.llama.native import (
    ContextSettings,
    LayerInput,
    NativeContext,
    NextNState,
    check_decoded,
    decode,
    float_view,
    get_logits,
)
from nptool.resources import usable_cores

_SEQUENCE = 0


class Context(NativeContext):
    """The cache of one sequence, whose tokens are at positions 0..capacity-1.

    A batch may reach `width - 1` rows beyond `capacity`, which is room for drafts and padding after the last token, so
    that a sequence ends at the same token for every width.
    """

    def __init__(
        self,
        model: Model,
        capacity: int | None = None,
        *,
        width: int = DEFAULT_WIDTH,
        batch: int = DEFAULT_BATCH,
        ubatch: int | None = None,
        threads: int | None = None,
        flash_attention: bool = True,
        cache_type_k: CacheType = "f16",
        cache_type_v: CacheType = "f16",
    ) -> None:
        """
        Args:
            capacity: tokens; None is `Model.capacity`.
            width: most rows of an `evaluate` with outputs.
            batch: most rows of an `evaluate` without outputs.
            ubatch: most rows that llama.cpp computes at once; None is `batch`.
            threads, flash_attention, cache_type_k, cache_type_v: see `ContextSettings`.

        Raises:
            ContextError: `width` is above `batch` or `ubatch`, or there is no memory for the cache.
            UsageError: a number below 1, or see `ContextSettings`.
        """
        self.capacity = model.capacity if capacity is None else capacity
        self.width = width
        self.settings = ContextSettings(threads, flash_attention, cache_type_k, cache_type_v)
        ubatch = min(batch, ubatch or batch)
        self.threads = threads or usable_cores()
        for name, value in (("context", self.capacity), ("width", width)):
            if value < 1:
                raise UsageError(f"the {name} must be at least 1, got {value}")
        if width > ubatch:
            raise ContextError(f"a block of {width} tokens is above the batch limit of {ubatch}; raise -b and -ub")
        self._layer: LayerInput | NextNState | None = None
        self.vocabulary_size = model.vocabulary_size
        self._batch: Any = None
        self._line = np.arange(self.capacity + width, dtype=np.int32)
        self._flagged = True
        super().__init__(model, self.settings, cells=self.capacity + width, batch=batch, ubatch=ubatch, outputs=width)
        model.add_dependent(self)
        model.apply_adapters(self.pointer)
        self._batch = llama_cpp.llama_batch_init(self.batch_limit, 0, 1)
        self._bind_batch(self.batch_limit)
        self._logits_address = 0
        self._logits = np.empty((0, self.vocabulary_size), dtype=np.float32)
        self._showing = False
        self._shown_address = 0
        self._shown_TD = np.empty((0, 0), dtype=np.float32)

    def evaluate(
        self, tokens: NDArray[np.int32], start: int, *, outputs: bool = True, show: bool = False
    ) -> NDArray[np.float32]:
        """Run one batch: `tokens` at positions start, start+1, ... of the sequence.

        Args:
            show: keep what heads read for `shown`; see `choose_layer`.

        Returns:
            Logits (rows, vocabulary), or (0, vocabulary) without `outputs`: a view into llama.cpp's buffer, valid until
            the next call.

        Raises:
            ContextError: the batch does not fit, or is too wide.
        """
        # Raises after `close`, which frees the arrays below.
        pointer = self.pointer
        rows = len(tokens)
        limit = self.width if outputs else self.batch_limit
        if not 0 < rows <= limit:
            raise ContextError(f"a batch of {rows} rows, but 1 to {limit} are possible")
        if start < 0 or start + rows > self.capacity + self.width:
            raise ContextError(f"{rows} rows from position {start} do not fit the context of {self.capacity} tokens")
        self._tokens[:rows] = tokens
        self._positions[:rows] = self._line[start : start + rows]
        if outputs != self._flagged:
            self._flags[:] = outputs
            self._flagged = outputs
        if show != self._showing:
            self._switch(show)
        self._batch.n_tokens = rows
        began = perf_counter()
        code = decode(pointer, self._batch)
        address = get_logits(pointer) if outputs else 0
        self.seconds += perf_counter() - began
        check_decoded(code, rows, start)
        if not outputs:
            return self._logits[:0]
        if address != self._logits_address:
            self._bind_logits(address)
        return self._logits[:rows]

    def choose_layer(self, layer: int | None) -> None:
        """Choose the layer whose input `evaluate` shows on request; None is the state that a NextN block reads.

        Raises:
            GgufError: the model has no such layer, or llama.cpp cannot show its input.
        """
        if self._showing:
            self._switch(False)
        self._layer = NextNState(self.model) if layer is None else LayerInput(self.model, layer)

    def shown(self) -> NDArray[np.float32]:
        """What was chosen (rows, D), of the last batch, which must have shown it; valid until the next one."""
        if not self._showing or self._layer is None:
            raise ValueError("the last batch did not show the input of a layer")
        began = perf_counter()
        address, rows = self._layer.address(self.pointer), int(self._batch.n_tokens)
        self.seconds += perf_counter() - began
        if (address, rows) != (self._shown_address, len(self._shown_TD)):
            self._shown_address, self._shown_TD = address, float_view(address, rows, self._layer.size)
        return self._shown_TD

    def clear(self) -> None:
        """Remove all tokens."""
        llama_cpp.llama_memory_clear(self.memory, False)

    def close(self) -> None:
        """Free the cache and the batch."""
        super().close()
        if self._batch is not None:
            llama_cpp.llama_batch_free(self._batch)
            self._batch = None

    def _switch(self, show: bool) -> None:
        if self._layer is None:
            raise ValueError("choose a layer before a batch shows its input")
        self._layer.show(self.pointer, show)
        self._showing = show

    def _bind_batch(self, batch: int) -> None:
        """Make numpy views of the batch's arrays, and fill those that seldom change."""

        def view(pointer: Any, kind: type[Any]) -> NDArray[Any]:
            address = ctypes.cast(pointer, ctypes.c_void_p).value
            return np.ctypeslib.as_array((kind * batch).from_address(address))

        self._tokens = view(self._batch.token, ctypes.c_int32)
        self._positions = view(self._batch.pos, ctypes.c_int32)
        self._flags = view(self._batch.logits, ctypes.c_int8)
        view(self._batch.n_seq_id, ctypes.c_int32)[:] = 1
        for row in range(batch):
            self._batch.seq_id[row][0] = _SEQUENCE
        self._flags[:] = self._flagged

    def _bind_logits(self, address: int | None) -> None:
        if not address:
            raise ContextError("llama.cpp returned no logits for a batch that asked for them")
        # The view covers the widest step; `evaluate` returns the rows of the last batch.
        self._logits = float_view(address, self.width, self.vocabulary_size)
        self._logits_address = address
