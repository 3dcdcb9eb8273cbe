"""DraftHeads decoding, a rival to compare with: Jacobi iteration on an untrained model (arXiv 2402.02057).

Its guesses seldom converge, but one token of a state and the pick behind it fit together, and so do the picks of
iterations that follow each other, read diagonally. Such n-grams are kept; the newest that begins with the last token is
drafted. This is the one-sequence form: the n-gram takes the first places of the window and Jacobi iteration goes on
behind it, where the paper verifies several n-grams beside the window under an attention mask of its own. Pure arrays;
knows neither engine nor sampling.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nptool.decoding.proposers.jacobi import Fill

# Tokens of an n-gram, the first one included, by which it is found. Tokens per forward of the text-to-SQL base model at
# n = 8 and 16: 1.70 and 1.82 with 3, 1.60 and 1.91 with 4, 1.53 and 1.85 with 5.
NGRAM = 4

NGram = tuple[int, ...]


class NGramPool:
    """The newest n-gram for each first token."""

    def __init__(self) -> None:
        self._followers: dict[int, NGram] = {}

    def add(self, ngram: NGram) -> None:
        """Remember an n-gram; a single token says nothing."""
        if len(ngram) > 1:
            self._followers[ngram[0]] = ngram[1:]

    def behind(self, token: int) -> NGram:
        """What followed `token` last; empty where nothing did."""
        return self._followers.get(token, ())


class LookaheadDecoding:
    """A sliding window of guesses, each with the n-gram that ends in it."""

    seconds = 0.0

    def __init__(self, n: int, prompt: NDArray[np.int32], seed: int) -> None:
        self.width = n
        self._pool = NGramPool()
        self._fill = Fill(prompt, seed, n)
        self._last: NGram = (int(prompt[-1]),)
        """The n-gram that ends in the text's last token."""
        self._window = self._fresh(n - 1)

    def propose(self, room: int) -> NDArray[np.integer]:
        """The newest n-gram behind the last token, and the guesses behind it."""
        ngram = self._last[-1:]
        for place, token in enumerate(self._pool.behind(self._last[-1])[: len(self._window)]):
            ngram = _extended(ngram, token)
            self._window[place] = ngram
        return np.array([ngram[-1] for ngram in self._window[:room]], dtype=np.intp)

    def observe(self, picks: NDArray[np.integer], accepted: int) -> None:
        """Every pick makes the n-gram that ends in its row's token longer."""
        rows = [self._last, *self._window]
        ngrams = [_extended(ngram, token) for ngram, token in zip(rows, picks.tolist(), strict=False)]
        for ngram in ngrams:
            self._pool.add(ngram)
        for token in picks[: accepted + 1].tolist():
            self._last = _extended(self._last, token)
            self._pool.add(self._last)
        # Behind a short draft stand guesses that no row has read yet.
        rest = ngrams[accepted + 1 :] + self._window[len(picks) :]
        self._window = rest + self._fresh(self.width - 1 - len(rest))

    def _fresh(self, count: int) -> list[NGram]:
        return [(token,) for token in self._fill.take(count).tolist()]


def _extended(ngram: NGram, token: int) -> NGram:
    return (*ngram, token)[-NGRAM:]
