"""A llama.cpp context: one KV cache, one batch, the logits as a numpy view. Knows no decoding algorithm.

It is the `Engine` of `nptool.decoding`. Every size is checked before the call, because a failing GGML_ASSERT aborts
the whole process.
"""

from __future__ import annotations

import ctypes
from time import perf_counter
from types import TracebackType
from typing import Any, Self

import llama_cpp
import numpy as np
from gguf.constants import GGMLQuantizationType
from numpy.typing import NDArray

from nptool.errors import ContextError, GgufError, UsageError
from nptool.llama.library import cause, error_lines
from nptool.llama.model import Model
from nptool.provenance import usable_cores

DEFAULT_CONTEXT = 4096
# Rows of one batch: llama.cpp's own physical batch size, so a prompt is prefilled in pieces of this length.
DEFAULT_BATCH = 512
# The most rows of a decoding step, and so the most rows whose logits are kept.
DEFAULT_WIDTH = 64

CACHE_TYPES = {
    name: int(GGMLQuantizationType[name.upper()])
    for name in ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
}
_UNQUANTIZED = frozenset({"f32", "f16", "bf16"})
_SEQUENCE = 0

# Own prototypes: llama_cpp's get_logits returns a ctypes pointer object, which costs more than the call itself.
_LIBRARY = llama_cpp.llama_cpp._lib
_get_logits = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(("llama_get_logits", _LIBRARY))
_decode = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, llama_cpp.llama_batch)(("llama_decode", _LIBRARY))


class Context:
    """One text's cache in a model. Positions 0..capacity-1 may hold its tokens.

    A batch may reach `width - 1` rows beyond `capacity`: drafts and padding behind the last token need room too, so a
    text ends at the same token whatever the width it is decoded with.
    """

    def __init__(
        self,
        model: Model,
        capacity: int | None = None,
        *,
        width: int = DEFAULT_WIDTH,
        batch: int = DEFAULT_BATCH,
        threads: int | None = None,
        flash_attention: bool = True,
        kv_type: str = "f16",
    ) -> None:
        """Make a context.

        Args:
            capacity: tokens; None is the model's own context length, at most `DEFAULT_CONTEXT`.
            width: the most rows whose logits one call of `evaluate` may ask for.
            batch: the most rows of one call.
            threads: None is every usable core.
            flash_attention: llama.cpp's fused attention kernel; needed by a quantized cache.
            kv_type: element type of the cache, one of `CACHE_TYPES`.

        Raises:
            ContextError: `width` is above `batch`, or there is no memory for the cache.
            UsageError: a number below 1, an unknown cache type, or a quantized cache without flash attention.
        """
        self.model = model
        self.capacity = min(model.context_length, DEFAULT_CONTEXT) if capacity is None else capacity
        self.width = width
        self.threads = usable_cores() if threads is None else threads
        self.batch_limit = batch
        self._check_settings(kv_type, flash_attention)
        self.vocabulary_size = model.vocabulary_size
        self.seconds = 0.0
        """Time spent inside llama.cpp by `evaluate` since the start."""
        self._batch: Any = None
        self._line = np.arange(self.capacity + width, dtype=np.int32)
        self._flagged = True
        self._pointer: Any = self._create(kv_type, flash_attention)
        model.add_dependent(self)
        self._memory = llama_cpp.llama_get_memory(self._pointer)
        if not self._memory:
            self.close()
            raise GgufError(f"{model.path} has no KV cache in llama.cpp; it cannot generate text")
        # llama.cpp lowers it to the size of a smaller cache.
        self.batch_limit = int(llama_cpp.llama_n_batch(self._pointer))
        self._batch = llama_cpp.llama_batch_init(self.batch_limit, 0, 1)
        self._bind_batch(self.batch_limit)
        self._logits_address = 0
        self._logits = np.empty((0, self.vocabulary_size), dtype=np.float32)

    def evaluate(self, tokens: NDArray[np.int32], start: int, *, outputs: bool = True) -> NDArray[np.float32]:
        """Run one batch: `tokens` at positions start, start+1, ... of the text.

        Returns:
            Logits (rows, vocabulary) of every row, or (0, vocabulary) without `outputs`: a view into llama.cpp's
            buffer, valid until the next call.

        Raises:
            ContextError: the batch does not fit, or is too wide.
        """
        # First of all: the arrays below are freed with the context.
        pointer = self.pointer
        rows = len(tokens)
        limit = self.width if outputs else self.batch_limit
        if not 0 < rows <= limit:
            raise ContextError(f"a batch of {rows} rows, but 1 to {limit} are possible")
        if start < 0 or start + rows > self.capacity + self.width:
            raise ContextError(f"{rows} rows from position {start} do not fit the context of {self.capacity} tokens")
        # Plain copies, and none that can be left out: after a pass nothing of this is in the processor's cache.
        self._tokens[:rows] = tokens
        self._positions[:rows] = self._line[start : start + rows]
        if outputs != self._flagged:
            self._flags[:] = outputs
            self._flagged = outputs
        self._batch.n_tokens = rows
        began = perf_counter()
        code = _decode(pointer, self._batch)
        address = _get_logits(pointer) if outputs else 0
        self.seconds += perf_counter() - began
        if code != 0:
            raise ContextError(_explain(code, rows, start))
        if not outputs:
            return self._logits[:0]
        if address != self._logits_address:
            self._bind_logits(address)
        return self._logits[:rows]

    def rollback(self, position: int) -> None:
        """Forget everything at `position` and behind it."""
        if not llama_cpp.llama_memory_seq_rm(self._memory_pointer, _SEQUENCE, position, -1):
            raise GgufError(f"{self.model.path}: llama.cpp cannot take back tokens of this model's cache")

    def clear(self) -> None:
        """Forget everything."""
        llama_cpp.llama_memory_clear(self._memory_pointer, False)

    def close(self) -> None:
        """Free the cache and the batch. A second call does nothing."""
        if self._pointer:
            llama_cpp.llama_free(self._pointer)
            self._pointer = None
        if self._batch is not None:
            llama_cpp.llama_batch_free(self._batch)
            self._batch = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pointer(self) -> Any:
        """`llama_context *`, never NULL."""
        if not self._pointer:
            raise ValueError("the context is closed")
        return self._pointer

    @property
    def _memory_pointer(self) -> Any:
        if not self._pointer:
            raise ValueError("the context is closed")
        return self._memory

    def _check_settings(self, kv_type: str, flash_attention: bool) -> None:
        for name, value in (("context", self.capacity), ("width", self.width), ("threads", self.threads)):
            if value < 1:
                raise UsageError(f"the {name} must be at least 1, got {value}")
        if self.width > self.batch_limit:
            raise ContextError(f"a block of {self.width} tokens is above the batch limit of {self.batch_limit}")
        if kv_type not in CACHE_TYPES:
            raise UsageError(f"unknown cache type {kv_type!r}; known are {', '.join(CACHE_TYPES)}")
        if kv_type not in _UNQUANTIZED and not flash_attention:
            raise UsageError(f"a cache of type {kv_type} needs flash attention; leave it on or use f16")

    def _create(self, kv_type: str, flash_attention: bool) -> Any:
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = self.capacity + self.width
        parameters.n_batch = parameters.n_ubatch = self.batch_limit
        parameters.n_outputs_max = self.width
        parameters.n_threads = parameters.n_threads_batch = self.threads
        parameters.type_k = parameters.type_v = CACHE_TYPES[kv_type]
        parameters.flash_attn_type = (
            llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED if flash_attention else llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        )
        # A sliding-window cache of its natural size drops cells that a rollback would need.
        parameters.swa_full = True
        parameters.no_perf = True
        with error_lines() as lines:
            pointer = llama_cpp.llama_init_from_model(self.model.pointer, parameters)
        if not pointer:
            raise ContextError(f"no context of {self.capacity} tokens for {self.model.path}: {cause(lines)}")
        return pointer

    def _bind_batch(self, batch: int) -> None:
        """Numpy views over the batch's arrays; the columns that never change are filled once."""

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
        # As many rows as a step may have; the buffer holds those of the last batch, and only they are handed out.
        buffer = (ctypes.c_float * (self.width * self.vocabulary_size)).from_address(address)
        self._logits = np.ctypeslib.as_array(buffer).reshape(self.width, self.vocabulary_size)
        self._logits_address = address


def _explain(code: int, rows: int, start: int) -> str:
    causes = {1: "no free cells in the KV cache", 2: "aborted", -1: "llama.cpp calls the batch invalid"}
    return f"llama_decode failed on {rows} rows from position {start}: {causes.get(code, f'error {code}')}"
