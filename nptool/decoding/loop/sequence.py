"""One text as the loop sees it: the tokens known so far, and how many of them the engine's cache holds.

The two are kept apart so that an interruption at any moment leaves nothing wrong behind: the cache is trusted only up
to `cached`, and `open` takes everything else back. Knows no proposer and no sampling.
"""

from __future__ import annotations

from collections.abc import Sequence as AnySequence

import numpy as np
from numpy.typing import NDArray

from nptool.decoding.loop.engine import Engine
from nptool.errors import ContextError


class Sequence:
    """Tokens in one buffer. Drafts are laid behind the last token, so a batch is a slice of it: nothing is copied."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._buffer = np.zeros(engine.capacity + engine.width, dtype=np.int32)
        self.length = 0
        """Tokens known."""
        self.cached = 0
        """Leading tokens whose keys and values the engine holds."""

    @property
    def tokens(self) -> NDArray[np.int32]:
        """The tokens known so far: a view."""
        return self._buffer[: self.length]

    def open(self, prompt: NDArray[np.int32] | AnySequence[int]) -> int:
        """Make `prompt` the text. What the cache already holds of it stays there.

        All but the last token of the prompt are to be prefilled; the last one is the first row of the first step.

        Returns:
            How many of its tokens are in the cache.

        Raises:
            ContextError: the prompt is empty, or leaves no room for a token behind it.
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
        kept = int(differing[0]) if differing.size else shared
        self.cached = kept
        self._engine.rollback(kept)
        self._buffer[: ids.size] = ids
        self.length = ids.size
        return kept

    def prefill(self) -> int:
        """Evaluate what is missing in the cache before the last token, in batches of the engine's limit.

        Returns:
            The number of tokens evaluated.
        """
        missing = self.length - 1 - self.cached
        while self.cached < self.length - 1:
            end = min(self.cached + self._engine.batch_limit, self.length - 1)
            self._engine.evaluate(self._buffer[self.cached : end], self.cached, outputs=False)
            self.cached = end
        return missing

    @property
    def pending(self) -> int:
        """Tokens before the last one that are not in the cache: none but behind a tree."""
        return self.length - 1 - self.cached

    def lay(self, draft: NDArray[np.integer], rows: int) -> NDArray[np.int32]:
        """The batch of a step: what is not in the cache, the last token, `draft`, and old junk up to `rows` rows.

        A view.
        """
        self._buffer[self.length : self.length + len(draft)] = draft
        return self._buffer[self.cached : self.cached + rows]

    def before(self, rows: int) -> NDArray[np.int32]:
        """The tokens before the last of `rows` rows' positions: the text and the draft just laid. A view."""
        return self._buffer[: self.length + rows - 1]

    def extend(self, tokens: NDArray[np.integer], rows: int = 1, path: list[int] | None = None) -> None:
        """Add the tokens that a batch of `rows` rows gave.

        All but the last of them were drafts, so the cache holds them already; it forgets what else was in the batch.

        Args:
            path: where the batch was a tree, its rows that are the text's tokens, those behind `tokens` included.
        """
        if path is not None:
            self.cached += self._engine.keep(path[: self.pending + len(tokens)])
            self._buffer[self.length : self.length + len(tokens)] = tokens
            self.length += len(tokens)
            return
        end = self.length + len(tokens)
        self._buffer[self.length : end] = tokens
        self.length = end
        self.cached = end - 1
        if rows > len(tokens):
            self._engine.rollback(end - 1)

    def truncate(self, length: int) -> None:
        """Drop tokens at `length` and behind it."""
        if length < self.length:
            self.length = length
            self.cached = min(self.cached, max(0, length - 1))
