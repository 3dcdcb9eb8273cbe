"""Drafts that branch: the first choices of each head make a tree, verified in one pass (Medusa, arXiv 2401.10774).

Row 0 is the last token of the text; a node of depth k is one of head k+1's choices for the k-th token behind it, under
any choice of the heads before. Nodes are added best-first: by the product of how often such choices were right on
held-out text. Knows neither engine nor loop.
"""

from __future__ import annotations

from functools import lru_cache
from heapq import heappop, heappush

import numpy as np
from numpy.typing import NDArray

from nptool.decoding.loop.sampling import Sampling
from nptool.decoding.loop.sequence import Sequence
from nptool.decoding.loop.verification import Draft, Shape
from nptool.decoding.proposers.chain import DraftHeads, drafting

MAX_PATHS = 32
"""Leaves of a tree, each a sequence of its own in the engine."""
DECAY = 0.35
"""Where a file has no accuracies: a head's next choice is right this many times as often as the one before. Measured
on no model; the order of the nodes matters, and hardly depends on it."""
FIRST = 0.6
"""The same: how often the first choice is right."""

Shares = tuple[tuple[float, ...], ...]
"""One row for each of heads 2..n: how often its first, second, ... choice is right."""


def assumed_shares(heads: int) -> Shares:
    """Shares for `heads` heads of which nothing was measured."""
    return tuple(tuple(FIRST * DECAY**rank for rank in range(8)) for _ in range(heads))


@lru_cache(maxsize=256)
def grow(shares: Shares, size: int) -> Shape:
    """The `size` nodes that are likeliest to be right, or fewer where there are no more.

    The path of first choices comes first, so that in most steps what is accepted lies in the cache as a text does.
    """
    chosen = [path for _, path in _best_first(shares, size)]
    nodes = sorted(chosen, key=lambda path: (any(path), chosen.index(path)))
    rows = {path: row for row, path in enumerate([(), *nodes])}
    return Shape(
        tuple(rows[path[:-1]] for path in nodes),
        tuple(len(path) for path in nodes),
        tuple(path[-1] for path in nodes),
    )


@lru_cache(maxsize=256)
def expected_tokens(shares: Shares, rows: int) -> float:
    """Tokens that a step of `rows` rows brings on average if the choices are right as often as `shares` says.

    One is certain; of a node's token one more comes whenever it is right and all before it are.
    """
    return 1.0 + sum(value for value, _ in _best_first(shares, rows - 1))


def _best_first(shares: Shares, size: int) -> list[tuple[float, tuple[int, ...]]]:
    """Nodes as the choices that lead to them, with how often they are right; the likeliest one first."""
    # Among equals the shallower one.
    waiting: list[tuple[float, tuple[int, ...]]] = []
    heappush(waiting, (-1.0, ()))
    chosen: list[tuple[float, tuple[int, ...]]] = []
    leaves = 1
    parents: set[tuple[int, ...]] = set()
    while waiting and len(chosen) <= size:
        value, path = heappop(waiting)
        if path:
            branching = path[:-1] in parents
            if branching and leaves == MAX_PATHS:
                continue
            leaves += branching
            parents.add(path[:-1])
        chosen.append((-value, path))
        if len(path) < len(shares):
            for rank, share in enumerate(shares[len(path)]):
                heappush(waiting, (value * share, (*path, rank)))
    return chosen[1:]


class HeadsTree:
    """Drafts a tree of at most `width - 1` tokens, or as many as the step has room for."""

    def __init__(self, width: int, heads: DraftHeads, sequence: Sequence, sampling: Sampling) -> None:
        self.width = width
        self._heads = heads
        self._sequence = sequence
        self._choosing = drafting(sampling)
        self._shares = heads.shares or assumed_shares(heads.count - 1)

    @property
    def seconds(self) -> float:
        """Time spent inside the heads so far."""
        return self._heads.heads_seconds

    def propose(self, room: int) -> Draft:
        """At most `room` tokens in all, with those that the batch begins with."""
        rows = min(self.width - 1, room) - self._sequence.pending
        possible = room > 0 and rows > 0 and self._heads.count > 1
        logits_KV = self._heads.draft_logits() if possible else None
        if logits_KV is None:
            return Draft(np.empty(0, dtype=np.int32), Shape((), (), ()))
        shape = grow(self._shares[:room], rows)
        most = max(shape.ranks, default=0) + 1
        ids_KC = self._choosing.likeliest_rows(logits_KV[:room], self._sequence.tokens, most)
        return Draft(ids_KC[np.array(shape.depths, np.intp) - 1, np.array(shape.ranks, np.intp)], shape)

    def observe(self, picks: NDArray[np.integer], accepted: int) -> None:
        """Nothing to learn: the engine knows what stayed in the text."""
