"""Protocols of the models that decoding runs: `Engine`, and `Trunk` with `HeadEngine` for decoding with extra heads.

Implemented by `nptool.llama.context.Context` and `nptool.llama.head.Head`, and by scripted fakes in the tests.
Shapes: T tokens, D hidden, V vocabulary.
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

    def evaluate(
        self, tokens: NDArray[np.int32], start: int, *, outputs: bool = True, parents: tuple[int, ...] | None = None
    ) -> NDArray[np.float32]:
        """Logits (rows, V) of `tokens` at positions start, start+1, ...; valid until the next call.

        The cache must hold exactly the positions before `start`.

        Args:
            outputs: whether logits are computed.
            parents: the row that each row follows, -1 for the first; None is a line. After a tree, call `keep` or
                `rollback` before the next batch.
        """

    def keep(self, path: list[int]) -> int:
        """After a tree: remove all rows from the cache but the longest prefix of `path` that is 0, 1, 2, ...

        Args:
            path: rows from row 0 down the tree.

        Returns:
            The number of rows kept.
        """


class Trunk(Engine, Protocol):
    """An engine that can return z, the input of its last layer."""

    def evaluate(
        self,
        tokens: NDArray[np.int32],
        start: int,
        *,
        outputs: bool = True,
        show: bool = False,
        parents: tuple[int, ...] | None = None,
    ) -> NDArray[np.float32]:
        """As `Engine.evaluate`; `show` stores z of this batch for `layer_input`."""

    def layer_input(self) -> NDArray[np.float32]:
        """z (T, D) of the last batch, evaluated with `show`; valid until the next `evaluate`."""


class HeadEngine(Cached, Protocol):
    """One extra head: a layer with its own KV cache that reads z, the final norm and the unembedding."""

    def evaluate(self, z_TD: NDArray[np.float32], start: int, *, width: int = 0) -> None:
        """Read z of positions start, start+1, ...; the cache must hold exactly the positions before.

        Args:
            width: least rows of the batch. Padding rows are removed from the cache again.
        """

    def logits(self) -> NDArray[np.float32]:
        """Logits (V) at the last position read; valid until the next `evaluate`."""
