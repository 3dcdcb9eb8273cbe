"""The loop's inputs besides engine, sequence and sampling: a `Proposer` drafts, `Widths` choose the rows of each step.

Both observe every step. The simplest ones are here: no draft, which is autoregressive decoding, and a fixed width.
Classes that inherit from these protocols inherit their empty methods.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Draft = NDArray[np.integer]
"""Guesses of the next tokens."""
NO_DRAFT: Draft = np.empty(0, dtype=np.int32)
_UNLIMITED = 1 << 30


class Step(NamedTuple):
    """What one forward pass gave and cost."""

    length: int
    """Tokens of the sequence before it."""
    rows: int
    drafted: int
    accepted: int
    seconds: float
    drafting: float = 0.0
    """The part of `seconds` spent in models that draft."""


class Proposer(Protocol):
    """Drafts tokens for one sequence."""

    width: int
    """Rows of a full step: the last accepted token and the longest draft."""

    @property
    def seconds(self) -> float:
        """Time that `propose` has spent in models of its own."""

    def propose(self, room: int) -> Draft:
        """The draft of the next step, at most `room` tokens."""

    def observe(self, picks: NDArray[np.integer], accepted: int) -> None:
        """Take the result of a step into account.

        Args:
            picks: the tokens picked after the last accepted token and after the draft's tokens, as in `Verified`.
            accepted: accepted tokens of the draft; `accepted + 1` picks joined the sequence.
        """
        return


class Autoregressive(Proposer):
    """No draft: one token per forward pass."""

    width = 1
    seconds = 0.0

    def propose(self, room: int) -> Draft:
        return NO_DRAFT


class Widths(Protocol):
    """Chooses the rows of each step of one sequence."""

    padded: bool
    """Whether batches are padded to the chosen width."""
    members: tuple[int, ...]
    """Widths at which autoregressive decoding gives the same text bit for bit; empty if batches are not padded."""
    wants_plain_time: bool
    """Whether `time_plain` is to be called before the first step."""

    def time_plain(self, length: int, seconds: float) -> None:
        """Take the time of a batch of one row after `length` tokens into account."""
        return

    def choose(self, length: int, room: int) -> int:
        """Rows of the next step of a sequence of `length` tokens with room for `room` drafts."""

    def observe(self, step: Step) -> None:
        """Take a step into account."""
        return

    def finish(self) -> None:
        """The sequence has ended or was abandoned."""
        return


class FixedWidth(Widths):
    """Every batch has `width` rows; None is one row more than the draft has."""

    wants_plain_time = False

    def __init__(self, width: int | None) -> None:
        self.padded = width is not None
        self.members = () if width is None else (width,)
        self._width = _UNLIMITED if width is None else width

    def choose(self, length: int, room: int) -> int:
        return self._width
