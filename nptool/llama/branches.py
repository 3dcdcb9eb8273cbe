"""A batch whose rows are a tree: which sequences each row belongs to, and which cells of the cache stay afterwards.

Every path from the root to a leaf is a sequence of its own in llama.cpp's unified cache. Sequence 0 is the text; its
path is that of the first leaf, so that rows 0, 1, ... of that path continue the text as they stand. Knows no tokens.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from nptool.errors import ContextError

MAX_BRANCHES = 32
"""Sequences of one context."""


class Layout(NamedTuple):
    """Of one shape of tree."""

    depths: NDArray[np.int32]
    """Positions of the rows behind that of row 0."""
    sequences: tuple[tuple[int, ...], ...]
    """Of each row."""
    paths: int
    """Sequences in all."""


@lru_cache(maxsize=256)
def layout(parents: tuple[int, ...]) -> Layout:
    """Lay out a tree.

    Args:
        parents: row that each row follows, -1 for row 0.

    Raises:
        ContextError: it has more leaves than a context has sequences.
    """
    depths: list[int] = []
    for parent in parents:
        depths.append(0 if parent < 0 else depths[parent] + 1)
    leaves = sorted(set(range(len(parents))) - set(parents))
    if len(leaves) > MAX_BRANCHES:
        raise ContextError(f"a tree of {len(leaves)} paths, but at most {MAX_BRANCHES} are possible")
    sequences: list[list[int]] = [[] for _ in parents]
    for number, leaf in enumerate(leaves):
        row = leaf
        while row >= 0:
            sequences[row].append(number)
            row = parents[row]
    return Layout(np.array(depths, dtype=np.int32), tuple(tuple(row) for row in sequences), len(leaves))


def in_order(path: list[int]) -> int:
    """How many rows of a path are rows 0, 1, ... of the batch."""
    return next((place for place, row in enumerate(path) if row != place), len(path))


def fork(memory: object, count: int, end: int) -> None:
    """Give the text before position `end` to sequences 1..count-1 as well."""
    for number in range(1, count):
        llama_cpp.llama_memory_seq_cp(memory, 0, number, 0, end)


def drop(memory: object, count: int) -> None:
    """Leave sequence 0 alone."""
    for number in range(1, count):
        llama_cpp.llama_memory_seq_rm(memory, number, -1, -1)
