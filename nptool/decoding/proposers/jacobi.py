"""Jacobi iteration: the picks on one guess are the next guess (CLLM, arXiv 2403.00835, section 3.1).

A step has the last accepted token and n-1 guessed ones as its rows and gives n picks, as a training block of n tokens
does. Does not import the engine: proposers see picks only.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nptool.decoding.loop.steps import Draft, Proposer

# Tokens drawn in advance; they are reused in turn when a sequence needs more.
FILL_LENGTH = 4096


class Fill:
    """First guesses: tokens drawn at random from the prompt, as in the training data."""

    def __init__(self, prompt: NDArray[np.int32], seed: int, longest: int) -> None:
        """Args: `longest` is the largest `count` for `take`."""
        # Any integer is a valid seed, as for the noise, but numpy rejects negative ones.
        generator = np.random.default_rng(seed % (1 << 64))
        # The type of argmax's results, so that joining the two needs no conversion.
        self._tokens = generator.choice(prompt, size=max(FILL_LENGTH, longest)).astype(np.intp)
        self._next = 0

    def take(self, count: int) -> NDArray[np.intp]:
        """The next `count` tokens, a view."""
        if self._next + count > len(self._tokens):
            self._next = 0
        start = self._next
        self._next += count
        return self._tokens[start : self._next]


class JacobiWindow(Proposer):
    """A sliding window: accepted tokens leave at the front, as many fresh ones enter at the end.

    A step may draft only a prefix of the window, or nothing; the rest keeps its place in the sequence.
    """

    seconds = 0.0

    def __init__(self, n: int, prompt: NDArray[np.int32], seed: int) -> None:
        self.width = n
        self._fill = Fill(prompt, seed, n)
        self._guess = self._fill.take(n - 1).copy()
        self._passed = 0
        """Tokens at the front of the guess whose positions the sequence has passed."""

    def propose(self, room: int) -> Draft:
        if room < 1:
            return self._guess[:0]
        if self._passed:
            self._shift(self._guess[self._passed :])
            self._passed = 0
        return self._guess[:room]

    def observe(self, picks: NDArray[np.integer], accepted: int) -> None:
        """Replace the draft by the picks that did not join the sequence, and slide."""
        if len(picks) == 1:
            # Nothing was drafted. The window slides later, so that the cheapest steps have no overhead.
            self._passed += 1
            return
        kept = picks[accepted + 1 :]
        if len(picks) <= len(self._guess):
            kept = np.concatenate([kept, self._guess[len(picks) :]])
        self._shift(kept)

    def _shift(self, kept: NDArray[np.integer]) -> None:
        """The new guess: `kept`, then fresh tokens."""
        self._guess[: len(kept)] = kept
        self._guess[len(kept) :] = self._fill.take(len(self._guess) - len(kept))


class JacobiBlock(Proposer):
    """The paper's blocks: n tokens are iterated until all are accepted, then the next n."""

    seconds = 0.0

    def __init__(self, n: int, prompt: NDArray[np.int32], seed: int) -> None:
        self.width = n
        self._fill = Fill(prompt, seed, n)
        self._guess: NDArray[np.integer] = self._fill.take(n - 1)
        self._left = n

    def propose(self, room: int) -> Draft:
        """The guess of the rest of the block without its last token, which is the pick after the guess."""
        return self._guess[: max(0, room)]

    def observe(self, picks: NDArray[np.integer], accepted: int) -> None:
        """Keep the picks that were not accepted as the guess, or start the next block."""
        self._left -= accepted + 1
        if self._left > 0:
            undrafted = self._guess[len(picks) :]
            self._guess = np.concatenate([picks, undrafted])[accepted + 1 :][: self._left - 1]
        else:
            self._guess = self._fill.take(self.width - 1)
            self._left = self.width
