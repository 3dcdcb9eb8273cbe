"""The loop's inputs besides engine, sequence and sampling: a `Proposer` drafts, `Widths` choose the rows of each step.

Both observe every step. The simplest ones are here: no draft, which is autoregressive decoding, and a fixed width.
Classes that inherit from these protocols inherit their empty methods.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

DraftT = TypeVar("DraftT", covariant=True)
Line = NDArray[np.integer]
"""A draft without branches."""
NO_DRAFT: Line = np.empty(0, dtype=np.int32)
_UNLIMITED = 1 << 30


class Drafts(Enum):
    """Kinds of drafts, by what a step of one width shows about other widths."""

    ITERATED = auto()
    """Nothing: the quality of a guess depends on the rows of the steps before."""
    INDEPENDENT = auto()
    """Narrower widths: the first tokens of a line are the same for every length of it."""
    BRANCHING = auto()
    """Nothing: a tree of another size has other branches."""


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


class Proposer(Protocol[DraftT]):
    """Drafts tokens for one sequence: a line or a tree."""

    width: int
    """Rows of a full step: the last accepted token and the longest draft."""

    @property
    def seconds(self) -> float:
        """Time that `propose` has spent in models of its own."""

    def propose(self, room: int) -> DraftT:
        """The draft of the next step, at most `room` tokens deep."""

    def observe(self, picks: NDArray[np.integer], accepted: int) -> None:
        """Take the result of a step into account.

        Args:
            picks: the tokens picked after the last accepted token and after the draft's tokens, as in `Verified`.
            accepted: accepted tokens of the draft; `accepted + 1` picks joined the sequence.
        """
        return


class Autoregressive(Proposer[Line]):
    """No draft: one token per forward pass."""

    width = 1
    seconds = 0.0

    def propose(self, room: int) -> Line:
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

    def choose(self, length: int, room: int, least: int = 1) -> int:
        """Rows of the next step of a sequence of `length` tokens with room for `room` drafts.

        Args:
            least: rows that the step has without any draft.
        """

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

    def choose(self, length: int, room: int, least: int = 1) -> int:
        return self._width
