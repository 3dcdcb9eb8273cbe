"""Tree drafts: the first choices of each head form a tree, verified in one pass (Medusa, arXiv 2401.10774).

Row 0 is the last token of the sequence. A node of depth k is one of head k+1's choices for the k-th token after it.
Nodes are added best-first, by the product of how often the choices on their path were right on held-out text.
"""

from __future__ import annotations

from functools import lru_cache
from heapq import heappop, heappush

import numpy as np

from nptool.decoding.loop.sampling import Sampling
from nptool.decoding.loop.sequence import Sequence
from nptool.decoding.loop.verification import Draft, Shape
from nptool.decoding.proposers.chain import DraftHeads, HeadsProposer

MAX_PATHS = 32
"""Most leaves of a tree: each is a sequence of its own in the engine."""
FIRST, DECAY = 0.6, 0.35
"""Assumed without measured accuracies: how often a head's first choice is right, and the factor of each further one."""

Shares = tuple[tuple[float, ...], ...]
"""One row for each of heads 2..n: how often its first, second, ... choice is right."""


def assumed_shares(heads: int) -> Shares:
    """Shares for `heads` extra heads without measured accuracies."""
    return tuple(tuple(FIRST * DECAY**rank for rank in range(8)) for _ in range(heads))


@lru_cache(maxsize=256)
def grow(shares: Shares, size: int) -> Shape:
    """The `size` nodes that are likeliest to be right, or all if there are fewer.

    The path of first choices comes first, so that accepted tokens are mostly in sequence order in the cache.
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
    """Average tokens of a step of `rows` rows: 1, and for each node the probability that it is accepted."""
    return 1.0 + sum(value for value, _ in _best_first(shares, rows - 1))


def _best_first(shares: Shares, size: int) -> list[tuple[float, tuple[int, ...]]]:
    """Probability and path of the likeliest nodes, best first; a path is the rank of each choice on it."""
    # A heap by -probability; equal ones by path, so shallower ones first.
    waiting: list[tuple[float, tuple[int, ...]]] = [(-1.0, ())]
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


class HeadsTree(HeadsProposer[Draft]):
    """A tree of at most `width - 1` tokens."""

    def __init__(self, width: int, heads: DraftHeads, sequence: Sequence, sampling: Sampling) -> None:
        super().__init__(width, heads, sequence, sampling)
        self._shares = heads.shares or assumed_shares(heads.count - 1)

    def propose(self, room: int) -> Draft:
        """Pending tokens and the tree have at most `room` tokens together."""
        rows = min(self.width - 1, room) - self._sequence.pending
        possible = room > 0 and rows > 0 and self._heads.count > 1
        logits_KV = self._heads.draft_logits(room) if possible else None
        if logits_KV is None:
            return Draft(np.empty(0, dtype=np.int32), Shape((), (), ()))
        shape = grow(self._shares[:room], rows)
        most = max(shape.ranks, default=0) + 1
        ids_KC = self._choosing.likeliest_rows(logits_KV[:room], self._sequence.tokens, most)
        return Draft(ids_KC[np.array(shape.depths, np.intp) - 1, np.array(shape.ranks, np.intp)], shape)
