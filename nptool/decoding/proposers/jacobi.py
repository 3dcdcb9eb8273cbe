"""Jacobi iteration: the next guess is what the model picked on the last one (CLLM, arXiv 2403.00835, section 3.1).

A step's rows are the last accepted token and n-1 guessed ones, which gives n picks, so the first row sees exactly what
a training block of n tokens sees before its first token. Pure arrays; knows neither engine nor sampling.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Tokens drawn in advance for one text; a longer text goes round.
FILL_LENGTH = 4096


class Fill:
    """Tokens for places about which nothing is known yet: drawn at random from the prompt, as in the training data."""

    def __init__(self, prompt: NDArray[np.int32], seed: int, longest: int) -> None:
        """Args: `longest` is the most tokens that `take` will be asked for at once."""
        # Any integer is a seed, as for the noise; numpy takes none below 0.
        generator = np.random.default_rng(seed % (1 << 64))
        # As wide as argmax's results, so that comparing the two takes no conversion.
        self._tokens = generator.choice(prompt, size=max(FILL_LENGTH, longest)).astype(np.intp)
        self._next = 0

    def take(self, count: int) -> NDArray[np.intp]:
        """The next `count` tokens. A view."""
        if self._next + count > len(self._tokens):
            self._next = 0
        start = self._next
        self._next += count
        return self._tokens[start : self._next]


class JacobiWindow:
    """A window that slides: what was accepted leaves at the front, as many fresh tokens enter at the end.

    A step may draft less than the window or nothing at all; what it left out is kept for its place in the text.
    """

    seconds = 0.0

    def __init__(self, n: int, prompt: NDArray[np.int32], seed: int) -> None:
        self.width = n
        self._fill = Fill(prompt, seed, n)
        self._guess = self._fill.take(n - 1).copy()
        self._passed = 0
        """Places at the front of the guess that the text has gone past."""

    def propose(self, room: int) -> NDArray[np.integer]:
        """The guess of the whole window, or of its beginning."""
        if room < 1:
            return self._guess[:0]
        if self._passed:
            self._shift(self._guess[self._passed :])
            self._passed = 0
        return self._guess[:room]

    def observe(self, picks: NDArray[np.integer], accepted: int) -> None:
        """Put the picks that did not join the text in the place of what was drafted; slide."""
        if len(picks) == 1:
            # Nothing was drafted, which must cost nothing: such steps are the cheapest ones.
            self._passed += 1
            return
        kept = picks[accepted + 1 :]
        if len(picks) <= len(self._guess):
            kept = np.concatenate([kept, self._guess[len(picks) :]])
        self._shift(kept)

    def _shift(self, kept: NDArray[np.integer]) -> None:
        """Begin the guess with `kept` and fill up."""
        self._guess[: len(kept)] = kept
        self._guess[len(kept) :] = self._fill.take(len(self._guess) - len(kept))


class JacobiBlock:
    """The paper's blocks: n tokens are iterated until all of them are accepted, only then the next n are begun."""

    seconds = 0.0

    def __init__(self, n: int, prompt: NDArray[np.int32], seed: int) -> None:
        self.width = n
        self._fill = Fill(prompt, seed, n)
        self._guess: NDArray[np.integer] = self._fill.take(n - 1)
        self._left = n

    def propose(self, room: int) -> NDArray[np.integer]:
        """The guess of what is left of the block, but for its last token: a pick behind the guess gives that one."""
        return self._guess[: max(0, room)]

    def observe(self, picks: NDArray[np.integer], accepted: int) -> None:
        """Keep the rest of the picks as the guess, or begin the next block."""
        self._left -= accepted + 1
        if self._left > 0:
            undrafted = self._guess[len(picks) :]
            self._guess = np.concatenate([picks, undrafted])[accepted + 1 :][: self._left - 1]
        else:
            self._guess = self._fill.take(self.width - 1)
            self._left = self.width
