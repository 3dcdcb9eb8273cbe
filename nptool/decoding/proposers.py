"""Who drafts the tokens that a step verifies. Pure: arrays in, arrays out; knows neither engine nor sampling.

Here the protocol and the empty proposer, which is autoregressive decoding; Jacobi iteration is in `jacobi`.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

DraftT = TypeVar("DraftT", covariant=True)
Line = NDArray[np.integer]
"""A draft without branches."""


class Proposer(Protocol[DraftT]):
    """Drafts tokens for one text: a line of them, or a tree."""

    width: int
    """Rows of a full step: the last accepted token and the longest draft."""

    @property
    def seconds(self) -> float:
        """Time that `propose` has spent inside models of its own."""

    def propose(self, room: int) -> DraftT:
        """The draft of the next step, at most `room` tokens one behind the other."""

    def observe(self, picks: NDArray[np.integer], accepted: int) -> None:
        """Learn what the step gave.

        Args:
            picks: the tokens picked behind the last accepted token and behind those of the draft that were looked at.
            accepted: how many tokens of the draft were right; `accepted + 1` picks joined the text.
        """


class Autoregressive:
    """No draft: one token for each forward pass."""

    width = 1
    seconds = 0.0
    _nothing = np.empty(0, dtype=np.int32)

    def propose(self, room: int) -> NDArray[np.integer]:
        """Nothing."""
        return self._nothing

    def observe(self, picks: NDArray[np.integer], accepted: int) -> None:
        """Nothing to learn."""
