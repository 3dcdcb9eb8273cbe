"""What the loop is told: who drafts (`Proposer`), how many rows a step has (`Widths`), and what a step was (`Step`).

Protocols, and the simplest implementation of each: no draft, which is autoregressive decoding, and a fixed width.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

DraftT = TypeVar("DraftT", covariant=True)
Line = NDArray[np.integer]
"""A draft without branches."""
_UNLIMITED = 1 << 30


class Drafts(Enum):
    """What a step of one width tells of others."""

    ITERATED = auto()
    """Nothing: a window gets better by what it iterates, so a guess is worth what the step before could see of it."""
    INDEPENDENT = auto()
    """What narrower ones would have brought: the tokens of a line are the same however long it is."""
    BRANCHING = auto()
    """Nothing: a tree is made for its size."""


class Step(NamedTuple):
    """What one forward pass was and cost."""

    length: int
    """Tokens of the text before it."""
    rows: int
    drafted: int
    accepted: int
    seconds: float
    drafting: float = 0.0
    """The part of `seconds` spent in models that draft."""


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


class Widths(Protocol):
    """Decides on the rows of each step of one text."""

    padded: bool
    """Whether a batch has all the rows that were chosen, whatever was drafted."""
    members: tuple[int, ...]
    """Widths at which autoregressive decoding gives this text bit for bit; none where batches are not padded."""
    wants_plain_time: bool
    """Whether `time_plain` is to be told, before the first step, what one row takes."""

    def time_plain(self, length: int, seconds: float) -> None:
        """What one row takes behind `length` tokens."""

    def choose(self, length: int, room: int, least: int = 1) -> int:
        """Rows of the next step of a text of `length` tokens in which at most `room` drafts fit.

        Args:
            least: rows that the step has in any case, before any draft.
        """

    def observe(self, length: int, rows: int, drafted: int, accepted: int, seconds: float, drafting: float) -> None:
        """What the step was, what it took in all, and the part of that spent in models that draft."""

    def finish(self) -> None:
        """The text has ended, or was left."""


class FixedWidth:
    """Every batch has `width` rows; None lets it be as narrow as its draft."""

    wants_plain_time = False

    def __init__(self, width: int | None) -> None:
        self.padded = width is not None
        self.members: tuple[int, ...] = () if width is None else (width,)
        self._width = _UNLIMITED if width is None else width

    def time_plain(self, length: int, seconds: float) -> None:
        """Nothing to compare with it."""

    def choose(self, length: int, room: int, least: int = 1) -> int:
        return self._width

    def observe(self, length: int, rows: int, drafted: int, accepted: int, seconds: float, drafting: float) -> None:
        """Nothing to learn."""

    def finish(self) -> None:
        """Nothing was learnt."""
