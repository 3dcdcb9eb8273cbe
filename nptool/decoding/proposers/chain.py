"""Blockwise parallel decoding: each head drafts one token (arXiv 1811.03115; arXiv 2404.19737, section 2).

At position i head 1 predicts token i+1, which is what a pass of the model picks, and head k token i+k: heads 2..n draft
the n-1 tokens behind the one just picked. Knows neither engine nor loop.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from nptool.decoding.loop.sampling import Sampling
from nptool.decoding.loop.sequence import Sequence

_NOTHING = np.empty(0, dtype=np.int32)


class DraftHeads(Protocol):
    """Heads that have read every position before the last token. Implemented by `HeadedEngine`."""

    count: int
    """n: heads in all."""
    shares: tuple[tuple[float, ...], ...] | None
    """For heads 2..n, how often the first, second, ... choice was right on held-out text; None is unknown."""

    @property
    def heads_seconds(self) -> float:
        """Time spent inside the heads so far."""

    def draft_logits(self) -> NDArray[np.float32] | None:
        """Logits (n-1, V) of the tokens behind the last one, or None where the heads know nothing yet."""


def drafting(sampling: Sampling) -> Sampling:
    """How heads choose where the model's tokens are picked by `sampling`: without noise, but penalized as those are."""
    return replace(sampling, temperature=0.0)


class HeadsChain:
    """One draft, as long as there are heads; its token at a place is that head's likeliest.

    At any temperature: a head that foresees several tokens is less sure than the model will be, so that the noise which
    decides the model's pick misleads it more often than it helps (at 0.8: 2.85 tokens per forward against 2.72).
    """

    def __init__(self, heads: DraftHeads, sequence: Sequence, sampling: Sampling) -> None:
        self.width = heads.count
        self._heads = heads
        self._sequence = sequence
        self._choosing = drafting(sampling)

    @property
    def seconds(self) -> float:
        """Time spent inside the heads so far."""
        return self._heads.heads_seconds

    def propose(self, room: int) -> NDArray[np.integer]:
        """What heads 2..n hold likeliest."""
        if room < 1 or self.width < 2:
            return _NOTHING
        logits_KV = self._heads.draft_logits()
        if logits_KV is None:
            return _NOTHING
        return self._picks(logits_KV[:room])

    def observe(self, picks: NDArray[np.integer], accepted: int) -> None:
        """Nothing to learn: the engine knows what stayed in the text."""

    def _picks(self, logits_KV: NDArray[np.float32]) -> NDArray[np.integer]:
        position, known = self._sequence.length, self._sequence.tokens
        if self._choosing.repeat_penalty == 1.0:
            return self._choosing.pick_rows(logits_KV, position, known)
        # A token is penalized by the drafts before it too, which are known one after another.
        draft: list[int] = []
        for logits_V in logits_KV:
            before = np.concatenate([known, np.array(draft, dtype=np.int32)])
            draft.append(self._choosing.pick(logits_V, position + len(draft), before))
        return np.array(draft, dtype=np.int32)
