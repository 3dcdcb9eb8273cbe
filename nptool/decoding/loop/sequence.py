"""One sequence: the tokens so far, and how many of them are in the engine's cache.

Both are tracked separately, so an interruption at any moment is harmless: the cache is trusted only up to `cached`, and
`open` rolls the rest back.
"""

from __future__ import annotations

from collections.abc import Sequence as AnySequence

import numpy as np
from numpy.typing import NDArray

from nptool.decoding.loop.engine import Engine
from nptool.errors import ContextError


class Sequence:
    """Tokens in one buffer. Drafts are written after the last token, so a batch is a slice of it, not a copy."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._buffer = np.zeros(engine.capacity + engine.width, dtype=np.int32)
        self.length = 0
        """Tokens so far."""
        self.cached = 0
        """Leading tokens whose keys and values are in the engine's cache."""

    @property
    def tokens(self) -> NDArray[np.int32]:
        """The tokens so far, a view."""
        return self._buffer[: self.length]

    def open(self, prompt: NDArray[np.int32] | AnySequence[int]) -> int:
        """Start a new sequence with `prompt`. A prefix that is already in the cache stays there.

        Returns:
            The length of that prefix, at most all but the last token, which is the first row of the first step.

        Raises:
            ContextError: the prompt is empty or fills the context.
        """
        ids = np.asarray(prompt, dtype=np.int32)
        if not ids.size:
            raise ContextError("the prompt is empty; there is no token to continue from")
        if ids.size >= self._engine.capacity:
            raise ContextError(
                f"the prompt has {ids.size} tokens and the context holds {self._engine.capacity}; "
                "shorten it or raise -c"
            )
        shared = min(self.cached, ids.size - 1)
        differing = np.flatnonzero(self._buffer[:shared] != ids[:shared])
        self.cached = int(differing[0]) if differing.size else shared
        self._engine.rollback(self.cached)
        self._buffer[: ids.size] = ids
        self.length = ids.size
        return self.cached

    def prefill(self) -> int:
        """Evaluate all tokens before the last one that are not in the cache, and return their number."""
        missing = self.length - 1 - self.cached
        while self.cached < self.length - 1:
            end = min(self.cached + self._engine.batch_limit, self.length - 1)
            self._engine.evaluate(self._buffer[self.cached : end], self.cached, outputs=False)
            self.cached = end
        return missing

    def lay(self, draft: NDArray[np.integer], rows: int) -> NDArray[np.int32]:
        """The batch of a step, a view: the last token, `draft`, and padding up to `rows` rows.

        Padding is whatever the buffer holds there.
        """
        self._buffer[self.length : self.length + len(draft)] = draft
        return self._buffer[self.length - 1 : self.length - 1 + rows]

    def before(self, rows: int) -> NDArray[np.int32]:
        """The tokens before the position of the last of `rows` rows, a view: the sequence and the draft laid last."""
        return self._buffer[: self.length + rows - 1]

    def extend(self, tokens: NDArray[np.integer], rows: int = 1) -> None:
        """Append the tokens that a batch of `rows` rows gave, and remove its rejected rows from the cache."""
        end = self.length + len(tokens)
        self._buffer[self.length : end] = tokens
        self.length = end
        # All tokens but the last were drafts, so their rows are in the cache.
        self.cached = end - 1
        if rows > len(tokens):
            self._engine.rollback(end - 1)

    def truncate(self, length: int) -> None:
        """Drop all tokens after the first `length`."""
        if length < self.length:
            self.length = length
            self.cached = min(self.cached, max(0, length - 1))
