"""Protocols of the models that decoding runs: `Engine`, and `Trunk` with `HeadsEngine` for decoding with extra heads.

Implemented in `nptool.llama` by `Context`, `SeparateHeads`, `SharedHeads` and `NextNHeads`, and by scripted fakes in
the tests. Shapes: T tokens, D hidden, V vocabulary.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Cached(Protocol):
    """A model, or part of one, with the KV cache of one sequence."""

    @property
    def seconds(self) -> float:
        """Time spent inside it so far."""

    def rollback(self, position: int) -> None:
        """Remove `position` and everything after it from the cache."""


class Engine(Cached, Protocol):
    """A causal model."""

    capacity: int
    """Most tokens of a sequence. A batch may reach `width - 1` rows beyond it."""
    width: int
    """Most rows of a batch with logits."""
    batch_limit: int
    """Most rows of a batch without logits."""
    vocabulary_size: int

    def evaluate(self, tokens: NDArray[np.int32], start: int, *, outputs: bool = True) -> NDArray[np.float32]:
        """Logits (rows, V) of `tokens` at positions start, start+1, ...; valid until the next call.

        The cache must hold exactly the positions before `start`.

        Args:
            outputs: whether logits are computed.
        """


class Trunk(Engine, Protocol):
    """An engine that can return z, which its heads read: the input of its last layer, or what a NextN block reads."""

    def evaluate(
        self, tokens: NDArray[np.int32], start: int, *, outputs: bool = True, show: bool = False
    ) -> NDArray[np.float32]:
        """As `Engine.evaluate`; `show` stores z of this batch for `shown`."""

    def shown(self) -> NDArray[np.float32]:
        """z (T, D) of the last batch, evaluated with `show`; valid until the next `evaluate`."""


class HeadsEngine(Cached, Protocol):
    """Heads 2..n, which read z, with caches of their own."""

    batch_limit: int
    """Most positions that are read at once."""

    def read(self, z_TD: NDArray[np.float32], start: int, ids: NDArray[np.int32]) -> None:
        """Read z of positions start, start+1, ...; the caches must hold exactly the positions before.

        Args:
            ids: tokens (T + 1) at these positions and the one after.
        """

    def draft(self, z_TD: NDArray[np.float32], start: int, ids: NDArray[np.int32], count: int) -> NDArray[np.float32]:
        """The same, and logits (count, V) of the first heads after the last position; valid until the next call."""
