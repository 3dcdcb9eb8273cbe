"""Lookahead decoding, for comparison: Jacobi iteration on an untrained model (arXiv 2402.02057).

Guesses of an untrained model seldom converge, but successive picks form n-grams: a token and the pick after it, and the
picks of successive iterations read diagonally. The newest n-gram that starts with the last token is drafted. This is a
one-sequence form: the n-gram takes the first places of the window and the Jacobi guesses follow it, where the paper
verifies several n-grams beside the window under its own attention mask.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nptool.decoding.loop.steps import Draft, Proposer
from nptool.decoding.proposers.jacobi import Fill

# Tokens of an n-gram, including the first one, by which it is found.
NGRAM = 4

NGram = tuple[int, ...]


class LookaheadDecoding(Proposer):
    """A sliding window of guesses, each stored as the n-gram that ends in it."""

    seconds = 0.0

    def __init__(self, n: int, prompt: NDArray[np.int32], seed: int) -> None:
        self.width = n
        self._pool: dict[int, NGram] = {}
        """By first token, what followed it in the newest n-gram."""
        self._fill = Fill(prompt, seed, n)
        self._last: NGram = (int(prompt[-1]),)
        """The n-gram that ends in the last token of the sequence."""
        self._window = self._fresh(n - 1)

    def propose(self, room: int) -> Draft:
        """The newest n-gram after the last token, then the guesses after it."""
        ngram = self._last[-1:]
        for place, token in enumerate(self._pool.get(self._last[-1], ())[: len(self._window)]):
            ngram = _extended(ngram, token)
            self._window[place] = ngram
        return np.array([ngram[-1] for ngram in self._window[:room]], dtype=np.intp)

    def observe(self, picks: NDArray[np.integer], accepted: int) -> None:
        """Extend the n-gram of every row by the row's pick."""
        rows = [self._last, *self._window]
        ngrams = [_extended(ngram, token) for ngram, token in zip(rows, picks.tolist(), strict=False)]
        for ngram in ngrams:
            self._pool[ngram[0]] = ngram[1:]
        for token in picks[: accepted + 1].tolist():
            self._last = _extended(self._last, token)
            self._pool[self._last[0]] = self._last[1:]
        # After a short draft the window has guesses that were no rows of the batch.
        rest = ngrams[accepted + 1 :] + self._window[len(picks) :]
        self._window = rest + self._fresh(self.width - 1 - len(rest))

    def _fresh(self, count: int) -> list[NGram]:
        return [(token,) for token in self._fill.take(count).tolist()]


def _extended(ngram: NGram, token: int) -> NGram:
    return (*ngram, token)[-NGRAM:]
