"""A trunk and its extra heads as one engine: every position that stays in the text is read by the heads too.

The loop sees an ordinary `Engine`. What the trunk shows of a batch (z) is held back until it is known which rows were
right: the next batch begins behind them, or `draft_logits` is asked. So junk and rejected drafts never reach a head, no
pass of the trunk is added, and the heads' caches stay in step with the trunk's from turn to turn.
"""

from __future__ import annotations

from collections.abc import Sequence as AnySequence
from statistics import median
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nptool.decoding.loop.engine import Engine, HeadEngine, Trunk
from nptool.decoding.loop.sequence import Sequence
from nptool.decoding.proposers.tree import Shares

_TIMED_DRAFTS = 4


class HeadedEngine:
    """An `Engine` with heads 2..n behind it."""

    def __init__(self, trunk: Trunk, heads: AnySequence[HeadEngine], shares: Shares | None = None) -> None:
        """
        Args:
            heads: heads 2..n in this order. The caches of all must be empty, or be rolled back before use.
            shares: how often the first, second, ... choice of each was right on held-out text.
        """
        self.shares = shares
        self.capacity = trunk.capacity
        self.width = trunk.width
        self.batch_limit = trunk.batch_limit
        self.vocabulary_size = trunk.vocabulary_size
        self.count = 1 + len(heads)
        """n: heads in all, the trunk's own included."""
        self._trunk = trunk
        self._heads = heads
        self._logits_KV = np.empty((len(heads), trunk.vocabulary_size), dtype=np.float32)
        self._end = 0
        """Positions in the trunk's cache."""
        self._read = 0
        """Positions in the heads' caches."""
        self._held: list[NDArray[np.float32]] = []
        """z (T, D) of positions that the heads have not read, from `_read` on."""
        self._held_end = 0
        """Positions whose z was read or put by."""
        self._start = 0
        """Position of the first row of z."""
        self._z_TD = np.empty((0, 0), dtype=np.float32)
        self._newest = 0
        """The heads' logits are those at the position before this one."""
        self._uneven = False
        """An interruption may have left some heads further than others."""

    @property
    def seconds(self) -> float:
        """Time inside the trunk so far."""
        return self._trunk.seconds

    @property
    def heads_seconds(self) -> float:
        """Time inside the heads so far."""
        return sum(head.seconds for head in self._heads)

    def evaluate(
        self,
        tokens: NDArray[np.int32],
        start: int,
        *,
        outputs: bool = True,
        parents: tuple[int, ...] | None = None,
    ) -> NDArray[np.float32]:
        """As the trunk's. What the batch before left in the text is put by for the heads, as it will be overwritten.

        They read it when they are asked, so steps that draft nothing pay nothing for them.
        """
        if outputs:
            self._put_by()
        else:
            self._let_read()
        logits_RV = self._trunk.evaluate(tokens, start, outputs=outputs, show=bool(self._heads), parents=parents)
        if self._heads:
            self._z_TD = self._trunk.layer_input()
        self._start, self._end = start, start + len(tokens)
        return logits_RV

    def keep(self, path: list[int]) -> int:
        """As the trunk's. The heads will read the whole path, of which the trunk may have to evaluate the end again."""
        kept = self._trunk.keep(path)
        if self._heads:
            self._z_TD = self._z_TD[path]
        self._end = self._start + len(path)
        return kept

    def rollback(self, position: int) -> None:
        """Forget everything at `position` and behind it, in the trunk and in the heads."""
        self._trunk.rollback(position)
        self._end = min(self._end, position)
        if self._held_end > position:
            self._held = [z_TD[: max(0, position - self._read)] for z_TD in self._joined()]
            self._held_end = max(self._read, position)
        if self._read >= position:
            # Even where they have read no further: other engines may use the same heads.
            self._uneven = True
            self._read = self._held_end = position

    def draft_logits(self) -> NDArray[np.float32] | None:
        """What heads 2..n say (n-1, V) of the tokens behind the one that the text's last pass gave.

        None where no pass led there: behind an empty cache, or right after a rollback.
        """
        self._let_read()
        if not self._end or self._newest != self._end:
            return None
        for row_V, head in zip(self._logits_KV, self._heads, strict=True):
            row_V[:] = head.logits()
        return self._logits_KV

    def time_draft(self) -> float:
        """Seconds that a draft of all heads takes behind one new token; the caches are empty before and afterwards."""
        times = []
        for _ in range(_TIMED_DRAFTS):
            self.evaluate(np.zeros(1, dtype=np.int32), 0)
            before = self.heads_seconds
            self.draft_logits()
            times.append(self.heads_seconds - before)
            self.rollback(0)
        # The first one builds graphs.
        return median(times[1:])

    def _let_read(self) -> None:
        """Let every head read what the trunk's cache holds and theirs do not."""
        if self._uneven:
            for head in self._heads:
                head.rollback(self._read)
            self._uneven = False
        self._put_by()
        if self._read == self._end:
            return
        self._held = self._joined()
        self._uneven = True
        for head in self._heads:
            for place in range(self._read, self._end, self.batch_limit):
                first = place - self._read
                # A step of heads leaves at most `count` positions; batches of as many rows share one graph.
                head.evaluate(self._held[0][first : first + self.batch_limit], place, width=self.count)
        self._read = self._newest = self._end
        self._held = []
        self._uneven = False

    def _put_by(self) -> None:
        """Copy what the last batch left in the text behind what the heads have not read yet."""
        if self._heads and self._held_end < self._end:
            self._held.append(self._z_TD[self._held_end - self._start : self._end - self._start].copy())
            self._held_end = self._end

    def _joined(self) -> list[NDArray[np.float32]]:
        """Everything put by as one array, or nothing."""
        return [np.concatenate(self._held)] if len(self._held) > 1 else self._held


class Opened(NamedTuple):
    """What one way to decode works on. Ways with another number of heads share the caches and have their own text."""

    engine: Engine
    sequence: Sequence
    heads: HeadedEngine | None
    """The engine again, where it has heads."""
