"""A trunk and its extra heads as one `Engine`: the heads read every position that stays in the sequence.

z, what the heads read of each position, is held back until the next batch begins or `draft_logits` is called. By then
the rejected rows are known, so no rejected draft reaches a head, and the heads' caches stay in step with the trunk's.
"""

from __future__ import annotations

from statistics import median
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nptool.decoding.loop.engine import Engine, HeadsEngine, Trunk
from nptool.decoding.loop.sequence import Sequence

_TIMED_DRAFTS = 4


class HeadedEngine:
    def __init__(self, trunk: Trunk, heads: HeadsEngine, count: int) -> None:
        """
        Args:
            count: n, how many heads are used, the trunk's own included.
            heads: their caches and the trunk's must be empty, or be rolled back before use.
        """
        self.capacity, self.width, self.batch_limit = trunk.capacity, trunk.width, trunk.batch_limit
        self.vocabulary_size = trunk.vocabulary_size
        self.count = count
        """n."""
        self._trunk, self._heads = trunk, heads
        self._ids = np.zeros(trunk.capacity + trunk.width, dtype=np.int32)
        """Tokens of the trunk's positions, and in a draft the one after."""
        self._end = 0
        """Positions in the trunk's cache."""
        self._read = 0
        """Positions in the heads' caches."""
        self._held: list[NDArray[np.float32]] = []
        """z (T, D) of positions that the heads have not read, beginning with `_read`."""
        self._held_end = 0
        """Positions whose z was read or is in `_held`."""
        self._start = 0
        """Position of the first row of `_z_TD`."""
        self._z_TD = np.empty((0, 0), dtype=np.float32)
        self._drafted = 0
        """Positions that the heads' last logits follow."""
        self._logits_KV = np.empty((0, 0), dtype=np.float32)
        self._uneven = False
        """An interruption may have left some heads at different positions."""

    @property
    def seconds(self) -> float:
        """Time spent inside the trunk so far."""
        return self._trunk.seconds

    @property
    def heads_seconds(self) -> float:
        """Time spent inside the heads so far."""
        return self._heads.seconds

    def evaluate(self, tokens: NDArray[np.int32], start: int, *, outputs: bool = True) -> NDArray[np.float32]:
        """See `Engine`. Holds the accepted z of the previous batch, which this batch overwrites.

        Heads read it only when they draft, so steps without drafts cost nothing extra.
        """
        self._ids[start : start + len(tokens)] = tokens
        if outputs:
            self._hold()
        else:
            self._catch_up()
        logits_RV = self._trunk.evaluate(tokens, start, outputs=outputs, show=True)
        self._z_TD = self._trunk.shown()
        self._start, self._end = start, start + len(tokens)
        return logits_RV

    def rollback(self, position: int) -> None:
        """Forget everything from `position` on, in the trunk and in the heads."""
        self._trunk.rollback(position)
        self._end = min(self._end, position)
        if self._held_end > position:
            self._held = [z_TD[: max(0, position - self._read)] for z_TD in self._joined()]
            self._held_end = max(self._read, position)
        if self._read >= position:
            # Even where they have not read that far: other engines may use the same heads.
            self._uneven = True
            self._read = self._held_end = position
            self._drafted = 0

    def draft_logits(self, last: int, most: int) -> NDArray[np.float32] | None:
        """Logits of heads 2, 3, ... after the last pass, which gave the token `last`: at most `most` rows, and n-1.

        None with an empty cache or right after a rollback, when no pass led to the end of the sequence.
        """
        self._ids[self._end] = last
        self._catch_up(min(most, self.count - 1))
        return self._logits_KV if self._end and self._drafted == self._end else None

    def read_prompt(self) -> None:
        """Let the heads read all positions but the newest, which they read when they draft."""
        self._hold()
        if self._end - self._read > 1:
            (z_TD,) = self._joined()
            self._read_rows(z_TD[:-1])
            self._held = [z_TD[-1:]]

    def time_draft(self) -> tuple[float, float]:
        """Seconds of a draft: whatever the rows of the step, and for each.

        From drafts of one head and of all, each after as many new tokens as such a step accepts at most. The caches
        must be empty, and are afterwards.
        """
        narrow, wide = (self._time_draft(rows) for rows in (2, self.count))
        each = max(0.0, wide - narrow) / max(1, self.count - 2)
        return max(0.0, wide - each * self.count), each

    def _time_draft(self, rows: int) -> float:
        times = []
        for _ in range(_TIMED_DRAFTS):
            self.evaluate(np.zeros(rows, dtype=np.int32), 0)
            before = self.heads_seconds
            self.draft_logits(0, rows - 1)
            times.append(self.heads_seconds - before)
            self.rollback(0)
        # The first draft builds graphs.
        return median(times[1:])

    def _catch_up(self, drafting: int = 0) -> None:
        """Bring the heads' caches up to the trunk's, and let the first `drafting` heads draft after it."""
        self._hold()
        if self._read < self._end:
            (z_TD,) = self._joined()
            self._read_rows(z_TD, drafting)
            self._held = []

    def _read_rows(self, z_TD: NDArray[np.float32], drafting: int = 0) -> None:
        if self._uneven:
            self._heads.rollback(self._read)
        begin, end, limit = self._read, self._read + len(z_TD), self._heads.batch_limit
        self._uneven = True
        for place in range(begin, end, limit):
            rows_TD = z_TD[place - begin :][:limit]
            ids = self._ids[place : place + len(rows_TD) + 1]
            if drafting and place + limit >= end:
                self._logits_KV, self._drafted = self._heads.draft(rows_TD, place, ids, drafting), end
            else:
                self._heads.read(rows_TD, place, ids)
        self._read, self._uneven = end, False

    def _hold(self) -> None:
        """Append the accepted z of the last batch to what the heads have not read yet."""
        if self._held_end < self._end:
            self._held.append(self._z_TD[self._held_end - self._start : self._end - self._start].copy())
            self._held_end = self._end

    def _joined(self) -> list[NDArray[np.float32]]:
        """Everything held as one array, or nothing."""
        return [np.concatenate(self._held)] if len(self._held) > 1 else self._held


class Opened(NamedTuple):
    """What one answer works on. Engines with different numbers of heads share caches, but not the sequence."""

    engine: Engine
    sequence: Sequence
    heads: HeadedEngine | None
    """The engine again if it has heads."""
