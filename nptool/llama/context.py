"""A llama.cpp context: one KV cache, one batch, the logits as a numpy view. Knows no decoding algorithm.

It is the `Engine` of `nptool.decoding`. Every size is checked before the call, because a failing GGML_ASSERT aborts
the whole process.
"""

from __future__ import annotations

import ctypes
from time import perf_counter
from types import TracebackType
from typing import Any, NamedTuple, Self

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from nptool.errors import ContextError, UsageError
from nptool.llama import branches
from nptool.llama.model import Model
from nptool.llama.native import (
    ContextSettings,
    LayerInput,
    create_context,
    decode,
    explain,
    float_view,
    get_logits,
    memory_of,
    remove_from,
)
from nptool.provenance import usable_cores

DEFAULT_CONTEXT = 4096
# Rows of one batch: llama.cpp's own physical batch size, so a prompt is prefilled in pieces of this length.
DEFAULT_BATCH = 512
# The most rows of a decoding step, and so the most rows whose logits are kept.
DEFAULT_WIDTH = 64

_SEQUENCE = 0


def default_capacity(model: Model) -> int:
    """Tokens of a context where nobody says: the model's own length, at most `DEFAULT_CONTEXT`."""
    return min(model.context_length, DEFAULT_CONTEXT)


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
        self.capacity = default_capacity(model) if capacity is None else capacity
        self.width = width
        self.settings = ContextSettings(threads, flash_attention, kv_type)
        self.threads = threads or usable_cores()
        self.batch_limit = batch
        self._check_sizes()
        self._layer: LayerInput | None = None
        self.vocabulary_size = model.vocabulary_size
        self.seconds = 0.0
        """Time spent inside llama.cpp by `evaluate` since the start."""
        self._batch: Any = None
        self._line = np.arange(self.capacity + width, dtype=np.int32)
        self._flagged = True
        # A tree has fewer paths than rows; llama.cpp aborts on fewer outputs than sequences.
        sequences = min(branches.MAX_BRANCHES, width)
        self._pointer: Any = create_context(
            model, self.settings, cells=self.capacity + width, batch=batch, outputs=width, sequences=sequences
        )
        model.add_dependent(self)
        self._memory = memory_of(model, self._pointer)
        # llama.cpp lowers it to the size of a smaller cache.
        self.batch_limit = int(llama_cpp.llama_n_batch(self._pointer))
        self._batch = llama_cpp.llama_batch_init(self.batch_limit, 0, branches.MAX_BRANCHES)
        self._bind_batch(self.batch_limit)
        self._branches = 1
        """Sequences in the cache: more than the text's between a tree's batch and `keep`."""
        self._tree_rows = 0
        """Rows of the batch that may still belong to other sequences than the text."""
        self._logits_address = 0
        self._logits = np.empty((0, self.vocabulary_size), dtype=np.float32)
        self._showing = False
        self._shown = _Shown(0, 0, np.empty((0, 0), dtype=np.float32))

    def evaluate(
        self,
        tokens: NDArray[np.int32],
        start: int,
        *,
        outputs: bool = True,
        show: bool = False,
        parents: tuple[int, ...] | None = None,
    ) -> NDArray[np.float32]:
        """Run one batch: `tokens` at positions start, start+1, ... of the text.

        Args:
            show: keep the input of the chosen layer for `layer_input`.
            parents: row that each row follows, -1 for the first, where the rows are a tree; `keep` must follow. The
                path to the first leaf is the rows in their order.

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
        if parents is not None:
            self._lay_tree(parents, start)
        else:
            self._positions[:rows] = self._line[start : start + rows]
            if self._tree_rows:
                self._lay_line()
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
        if code != 0:
            raise ContextError(explain(code, rows, start))
        if not outputs:
            return self._logits[:0]
        if address != self._logits_address:
            self._bind_logits(address)
        return self._logits[:rows]

    def choose_layer(self, layer: int) -> None:
        """Say which layer's input `evaluate` shows on request.

        Raises:
            GgufError: the model has no such layer, or llama.cpp cannot show it.
        """
        if self._showing:
            self._switch(False)
        self._layer = LayerInput(self.model, layer)

    def layer_input(self) -> NDArray[np.float32]:
        """What the chosen layer read (rows, D) in the last batch, which had to show it: a view until the next."""
        if not self._showing or self._layer is None:
            raise ValueError("the last batch did not show the input of a layer")
        began = perf_counter()
        address, rows = self._layer.address(self.pointer), int(self._batch.n_tokens)
        self.seconds += perf_counter() - began
        if (address, rows) != (self._shown.address, self._shown.rows):
            self._shown = _Shown(address, rows, float_view(address, rows, self._layer.size))
        return self._shown.view_TD

    def keep(self, path: list[int]) -> int:
        """Forget all rows of the last batch, a tree, but those of a path from row 0, as far as these lie in order.

        Returns:
            How many stay: rows 0, 1, ... of the batch.
        """
        kept = branches.in_order(path)
        self.rollback(int(self._positions[0]) + kept)
        return kept

    def rollback(self, position: int) -> None:
        """Forget everything at `position` and behind it."""
        if self._branches > 1:
            branches.drop(self._memory_pointer, self._branches)
            self._branches = 1
        remove_from(self.model, self._memory_pointer, _SEQUENCE, position)

    def clear(self) -> None:
        """Forget everything."""
        self._branches = 1
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

    def _check_sizes(self) -> None:
        for name, value in (("context", self.capacity), ("width", self.width)):
            if value < 1:
                raise UsageError(f"the {name} must be at least 1, got {value}")
        if self.width > self.batch_limit:
            raise ContextError(f"a block of {self.width} tokens is above the batch limit of {self.batch_limit}")

    def _switch(self, show: bool) -> None:
        if self._layer is None:
            raise ValueError("no layer was chosen whose input could be shown")
        self._layer.show(self.pointer, show)
        self._showing = show

    def _lay_line(self) -> None:
        """Every row belongs to the text alone again."""
        self._sequence_counts[: self._tree_rows] = 1
        for row in range(self._tree_rows):
            self._batch.seq_id[row][0] = _SEQUENCE
        self._tree_rows = 0

    def _lay_tree(self, parents: tuple[int, ...], start: int) -> None:
        """Say which sequences the rows belong to, and give these the text before."""
        tree = branches.layout(parents)
        self._positions[: len(parents)] = tree.depths + start
        self._tree_rows = max(self._tree_rows, len(parents))
        for row, sequences in enumerate(tree.sequences):
            self._sequence_counts[row] = len(sequences)
            for place, sequence in enumerate(sequences):
                self._batch.seq_id[row][place] = sequence
        branches.fork(self._memory_pointer, tree.paths, start)
        self._branches = tree.paths

    def _bind_batch(self, batch: int) -> None:
        """Numpy views over the batch's arrays; the columns that never change are filled once."""

        def view(pointer: Any, kind: type[Any]) -> NDArray[Any]:
            address = ctypes.cast(pointer, ctypes.c_void_p).value
            return np.ctypeslib.as_array((kind * batch).from_address(address))

        self._tokens = view(self._batch.token, ctypes.c_int32)
        self._positions = view(self._batch.pos, ctypes.c_int32)
        self._flags = view(self._batch.logits, ctypes.c_int8)
        self._sequence_counts = view(self._batch.n_seq_id, ctypes.c_int32)
        self._sequence_counts[:] = 1
        for row in range(batch):
            self._batch.seq_id[row][0] = _SEQUENCE
        self._flags[:] = self._flagged

    def _bind_logits(self, address: int | None) -> None:
        if not address:
            raise ContextError("llama.cpp returned no logits for a batch that asked for them")
        # As many rows as a step may have; the buffer holds those of the last batch, and only they are handed out.
        self._logits = float_view(address, self.width, self.vocabulary_size)
        self._logits_address = address


class _Shown(NamedTuple):
    """A view that serves as long as llama.cpp's buffer stays where it is and the batch as wide as it was."""

    address: int
    rows: int
    view_TD: NDArray[np.float32]
