"""The layout of a batch whose rows are a tree of tokens.

Every path from the root to a leaf is a sequence of its own in llama.cpp's unified cache. Sequence 0 is the path to the
first leaf, so its rows 0, 1, ... continue the cached tokens.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nptool.errors import ContextError

MAX_BRANCHES = 32
"""Most sequences of one context."""


class Layout(NamedTuple):
    """Where the rows of a tree go."""

    depths: NDArray[np.int32]
    """Position of each row after that of row 0."""
    sequences: tuple[tuple[int, ...], ...]
    """Sequences that each row belongs to."""
    paths: int
    """Number of sequences."""


@lru_cache(maxsize=256)
def layout(parents: tuple[int, ...]) -> Layout:
    """Lay out a tree.

    Args:
        parents: the row that each row follows, -1 for row 0.

    Raises:
        ContextError: the tree has more leaves than a context has sequences.
    """
    depths: list[int] = []
    for parent in parents:
        depths.append(0 if parent < 0 else depths[parent] + 1)
    leaves = sorted(set(range(len(parents))) - set(parents))
    if len(leaves) > MAX_BRANCHES:
        raise ContextError(f"a tree of {len(leaves)} paths, but at most {MAX_BRANCHES} are possible")
    sequences: list[list[int]] = [[] for _ in parents]
    for number, row in enumerate(leaves):
        while row >= 0:
            sequences[row].append(number)
            row = parents[row]
    return Layout(np.array(depths, dtype=np.int32), tuple(tuple(row) for row in sequences), len(leaves))


def in_order(path: list[int]) -> int:
    """How many rows at the start of a path are rows 0, 1, ... of the batch."""
    return next((place for place, row in enumerate(path) if row != place), len(path))
