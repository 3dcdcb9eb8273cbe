"""What a forward pass was and cost, and what it tells of passes of other widths. Knows no policy."""

from __future__ import annotations

from enum import Enum, auto
from typing import NamedTuple


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
