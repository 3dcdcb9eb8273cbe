"""The heads of a NextN block in llama.cpp: one layer of the model's file that drafts token by token.

Implements `nptool.decoding.loop.engine.HeadsEngine` by a second context of the trunk's model, as llama.cpp's
`draft-mtp` does. Row p of the block reads token p and h of position p - 1: the trunk's, or in a draft its own. Shapes:
P positions, T rows, D hidden, V vocabulary.
"""

from __future__ import annotations

import ctypes
from time import perf_counter
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from nptool.errors import ContextError
from nptool.llama.context import Context
from nptool.llama.native import NativeContext, NextNState, check_decoded, decode, float_view, get_logits
from nptool.nextn import STEP35


class NextNHeads(NativeContext):
    """Heads 2..n with as many positions as a trunk's context and the same settings."""

    def __init__(self, trunk: Context, count: int) -> None:
        """
        Args:
            count: n - 1, the longest draft.

        Raises:
            ContextError: there is no memory for its cache.
        """
        end, self._size = trunk.capacity + trunk.width, trunk.model.hidden_size
        super().__init__(
            trunk.model, trunk.settings, cells=end + count, batch=trunk.batch_limit + 1, outputs=1, nextn=True
        )
        # hy_v3 hands on the state of every row, whatever the mask says, step35 that of rows with logits.
        self._masked = trunk.model.header.architecture == STEP35.architecture
        self._state = NextNState(trunk.model, masked=self._masked)
        self._state.show(self.pointer, True)
        # A read may begin with the row before it.
        self.batch_limit -= 1
        self._rows = 0
        """Rows in the cache."""
        self._h_PD = np.zeros((end + 1, self._size), dtype=np.float32)
        """What row p reads of position p - 1. Memory is used as far as it is written."""
        self._line = np.arange(end + count, dtype=np.int32)
        self._last = 0
        self._batch: Any = self._make_batch(self.batch_limit + 1)
        trunk.model.add_dependent(self)

    def read(self, z_TD: NDArray[np.float32], start: int, ids: NDArray[np.int32]) -> None:
        """Read h of positions start, start+1, ... with the tokens that follow them.

        Args:
            ids: tokens (T + 1) at these positions and the one after.

        Raises:
            ContextError: the rows do not fit.
        """
        end, most = start + len(z_TD), len(self._h_PD) - 1
        if not 0 < len(z_TD) <= self.batch_limit or start < 0 or end > most:
            raise ContextError(f"{len(z_TD)} rows from position {start} do not fit heads of {most} positions")
        self._h_PD[start + 1 : end + 1] = z_TD
        # After a rollback the row at `start` is missing too: its token may be another one now.
        self._run(ids[self._rows - start :], self._rows, self._h_PD[self._rows : end + 1])
        self._rows = end + 1

    def draft(self, z_TD: NDArray[np.float32], start: int, ids: NDArray[np.int32], count: int) -> NDArray[np.float32]:
        """The same, and logits (count, V) of the tokens after `ids`, each given the likeliest ones before it.

        Raises:
            ContextError: the rows do not fit.
        """
        self.read(z_TD, start, ids)
        logits_KV = np.empty((count, self.model.vocabulary_size), dtype=np.float32)
        for depth, logits_V in enumerate(logits_KV):
            if depth:
                self._run(logits_KV[depth - 1].argmax(keepdims=True), self._rows + depth - 1, self._own_state())
            logits_V[:] = float_view(self._logits(), 1, len(logits_V))[0]
        super().rollback(self._rows)
        return logits_KV

    def rollback(self, position: int) -> None:
        """Remove everything from `position` on."""
        super().rollback(position)
        self._rows = min(self._rows, position)

    def _run(self, ids_T: NDArray[np.integer], start: int, h_TD: NDArray[np.float32]) -> None:
        """Evaluate rows at `start`, `start` + 1, ...; only the last one has logits and a state."""
        rows, pointer = len(h_TD), self.pointer
        self._tokens[:rows], self._z_TD[:rows] = ids_T, h_TD
        self._positions[:rows] = self._line[start : start + rows]
        self._flags[self._last] = 0
        self._last = rows - 1
        self._flags[self._last] = 1
        self._batch.n_tokens = rows
        began = perf_counter()
        code = decode(pointer, self._batch)
        self.seconds += perf_counter() - began
        check_decoded(code, rows, start)

    def _own_state(self) -> NDArray[np.float32]:
        """h (1, D) of the last row."""
        rows = 1 if self._masked else self._last + 1
        return float_view(self._state.address(self.pointer), rows, self._size)[-1:]

    def _logits(self) -> int:
        """Address of the logits of the last row."""
        began = perf_counter()
        address = get_logits(self.pointer)
        self.seconds += perf_counter() - began
        if not address:
            raise ContextError("llama.cpp returned no logits of the heads")
        return int(address)

    def _make_batch(self, limit: int) -> Any:
        """A batch over numpy arrays, with tokens and states."""
        self._tokens, self._positions = np.zeros((2, limit), dtype=np.int32)
        self._z_TD = np.zeros((limit, self._size), dtype=np.float32)
        self._flags = np.zeros(limit, dtype=np.int8)
        self._counts = np.ones(limit, dtype=np.int32)
        self._sequence = ctypes.c_int32(0)
        self._sequences = np.full(limit, ctypes.addressof(self._sequence), dtype=np.uintp)

        def at(array: NDArray[Any], kind: Any) -> Any:
            return array.ctypes.data_as(ctypes.POINTER(kind))

        return llama_cpp.llama_batch(
            n_tokens=0,
            token=at(self._tokens, ctypes.c_int32),
            embd=at(self._z_TD, ctypes.c_float),
            pos=at(self._positions, ctypes.c_int32),
            n_seq_id=at(self._counts, ctypes.c_int32),
            seq_id=at(self._sequences, ctypes.POINTER(ctypes.c_int32)),
            logits=at(self._flags, ctypes.c_int8),
        )
