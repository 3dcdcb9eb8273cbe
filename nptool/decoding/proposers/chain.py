"""Blockwise parallel decoding: each head drafts one token (arXiv 1811.03115; arXiv 2404.19737, section 2).

At position i head 1, the model's own, predicts token i+1, and head k token i+k: heads 2..n draft the n-1 tokens after
the one just picked. Shapes: K extra heads, V vocabulary.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from nptool.decoding.loop.sampling import Sampling
from nptool.decoding.loop.sequence import Sequence
from nptool.decoding.loop.steps import NO_DRAFT, Draft, Proposer


class DraftHeads(Protocol):
    """Heads that have read every position before the last token. Implemented by `HeadedEngine`."""

    count: int
    """n: all heads, including the model's own."""

    @property
    def heads_seconds(self) -> float:
        """Time spent inside the heads so far."""

    def draft_logits(self, last: int, most: int) -> NDArray[np.float32] | None:
        """Logits of the tokens after `last`, at most `most` rows; None if there was no pass before it."""


class HeadsChain(Proposer):
    """At most n-1 tokens, each the likeliest one of its head."""

    def __init__(self, heads: DraftHeads, sequence: Sequence, sampling: Sampling) -> None:
        self.width = heads.count
        self._heads = heads
        self._sequence = sequence
        # Drafts are penalized like picks, but not sampled: heads are right more often without the pick's noise.
        self._choosing = replace(sampling, temperature=0.0)

    @property
    def seconds(self) -> float:
        return self._heads.heads_seconds

    def propose(self, room: int) -> Draft:
        position, known = self._sequence.length, self._sequence.tokens
        logits_KV = self._heads.draft_logits(int(known[-1]), room) if room > 0 and self.width > 1 else None
        if logits_KV is None:
            return NO_DRAFT
        if self._choosing.raw:
            return self._choosing.pick_rows(logits_KV[:room], position, known)
        # Penalty and hook of a token depend on the drafts before it.
        for logits_V in logits_KV[:room]:
            token = self._choosing.pick(logits_V, position, known)
            known = np.append(known, np.int32(token))
        return known[position:]
