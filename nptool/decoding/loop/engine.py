"""What the loop needs of a model: rows of logits for a batch, and forgetting. Implemented by nptool.llama.Context.

And what decoding with heads needs beside it: a trunk that shows z, and heads that read it (nptool.llama.Head). Scripted
fakes implement all of it just as well, which is how every loop is tested.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Engine(Protocol):
    """A causal model with a cache of one text."""

    capacity: int
    """Positions 0..capacity-1 may hold tokens of the text; a batch may reach `width - 1` rows beyond."""
    width: int
    """The most rows of a batch whose logits are asked for."""
    batch_limit: int
    """The most rows of a batch without logits."""
    vocabulary_size: int

    @property
    def seconds(self) -> float:
        """Time spent inside the model so far."""

    def evaluate(
        self,
        tokens: NDArray[np.int32],
        start: int,
        *,
        outputs: bool = True,
        parents: tuple[int, ...] | None = None,
    ) -> NDArray[np.float32]:
        """Logits (rows, vocabulary) of `tokens` at positions start, start+1, ...; valid until the next call.

        The cache must hold exactly the positions before `start`.

        Args:
            parents: row that each row follows, -1 for the first; None is the row before. A tree's rows must be judged
                by `keep` before the next batch.
        """

    def keep(self, path: list[int]) -> int:
        """Forget all rows of the last batch, a tree, but those of a path from row 0, as far as these lie in order.

        Returns:
            How many stay: rows 0, 1, ... of the batch.
        """

    def rollback(self, position: int) -> None:
        """Forget everything at `position` and behind it."""


class Trunk(Protocol):
    """An engine that shows the input z of its last layer."""

    capacity: int
    width: int
    batch_limit: int
    vocabulary_size: int

    @property
    def seconds(self) -> float:
        """Time spent inside the model so far."""

    def evaluate(
        self,
        tokens: NDArray[np.int32],
        start: int,
        *,
        outputs: bool = True,
        show: bool = False,
        parents: tuple[int, ...] | None = None,
    ) -> NDArray[np.float32]:
        """As an `Engine`; `show` keeps z of this batch."""

    def keep(self, path: list[int]) -> int:
        """As an `Engine`."""

    def layer_input(self) -> NDArray[np.float32]:
        """z (rows, D) of the last batch, which had to show it; valid until the next call of `evaluate`."""

    def rollback(self, position: int) -> None:
        """Forget everything at `position` and behind it."""


class HeadEngine(Protocol):
    """One extra head: a layer with a cache of its own that reads z, the final norm and the unembedding."""

    @property
    def seconds(self) -> float:
        """Time spent inside the head so far."""

    def evaluate(self, z_TD: NDArray[np.float32], start: int, *, width: int = 0) -> None:
        """Read z of positions start, start+1, ...; the cache must hold exactly the positions before.

        Args:
            width: rows of the batch at least; what it has behind z is junk that is forgotten again.
        """

    def logits(self) -> NDArray[np.float32]:
        """Logits (V) at the last position read; valid until the next call of `evaluate`."""

    def rollback(self, position: int) -> None:
        """Forget everything at `position` and behind it."""
