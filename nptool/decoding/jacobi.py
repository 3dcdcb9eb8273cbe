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
        generator = np.random.default_rng(seed)
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
    """A window that slides: what was accepted leaves at the front, as many fresh tokens enter at the end."""

    seconds = 0.0

    def __init__(self, n: int, prompt: NDArray[np.int32], seed: int) -> None:
        self.width = n
        self._fill = Fill(prompt, seed, n)
        self._guess = self._fill.take(n - 1).copy()

    def propose(self, room: int) -> NDArray[np.integer]:
        """The guess of the whole window."""
        return self._guess[:room]

    def observe(self, picks: NDArray[np.integer], accepted: int) -> None:
        """Shift the picks that did not join the text to the front and fill up."""
        rest = len(picks) - accepted - 1
        self._guess[:rest] = picks[accepted + 1 :]
        self._guess[rest:] = self._fill.take(len(self._guess) - rest)


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
        return self._guess[:room]

    def observe(self, picks: NDArray[np.integer], accepted: int) -> None:
        """Keep the rest of the picks as the guess, or begin the next block."""
        self._left -= accepted + 1
        if self._left > 0:
            self._guess = picks[accepted + 1 :][: self._left - 1]
        else:
            self._guess = self._fill.take(self.width - 1)
            self._left = self.width
