"""What the loop needs of a model: rows of logits for a batch, and forgetting. Implemented by nptool.llama.Context.

A scripted fake implements it just as well, which is how every loop is tested.
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
    seconds: float
    """Time spent inside the model so far."""

    def evaluate(self, tokens: NDArray[np.int32], start: int, *, outputs: bool = True) -> NDArray[np.float32]:
        """Logits (rows, vocabulary) of `tokens` at positions start, start+1, ...; valid until the next call.

        The cache must hold exactly the positions before `start`.
        """

    def rollback(self, position: int) -> None:
        """Forget everything at `position` and behind it."""
