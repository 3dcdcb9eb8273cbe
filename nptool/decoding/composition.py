"""Jacobi iteration whose first guesses are drafts of the model's heads, for a CLLM with heads.

The heads know what the last pass saw, and foresee the few tokens behind it; the window's guess reaches further. Knows
neither engine nor sampling.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nptool.decoding.proposers import Line, Proposer


class Overlay:
    """The guess of one proposer, its beginning replaced by the draft of another."""

    def __init__(self, window: Proposer[Line], first: Proposer[Line]) -> None:
        """Args: `first` drafts no more tokens than `window` guesses."""
        self.width = window.width
        self._window = window
        self._first = first

    @property
    def seconds(self) -> float:
        """Time spent inside models of their own so far."""
        return self._window.seconds + self._first.seconds

    def propose(self, room: int) -> NDArray[np.integer]:
        """The window's guess behind the other's draft."""
        guess = self._window.propose(room)
        draft = self._first.propose(len(guess))
        return np.concatenate([draft, guess[len(draft) :]])

    def observe(self, picks: NDArray[np.integer], accepted: int) -> None:
        """Both learn from the step."""
        self._window.observe(picks, accepted)
        self._first.observe(picks, accepted)
