"""Log-probabilities of an answer's tokens in the model's own distribution: before hook, penalty, filters, temperature.

Shapes: R rows, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nptool.decoding.loop.engine import Engine


class TokenLogprob(NamedTuple):
    """One token of an answer."""

    id: int
    logprob: float
    """Natural logarithm of its probability."""
    top: tuple[tuple[int, float], ...]
    """The likeliest tokens at its place with theirs, the likeliest first."""


class WatchedEngine(Engine):
    """An engine whose newest rows of logits can be read until its next batch."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.capacity, self.width, self.batch_limit = engine.capacity, engine.width, engine.batch_limit
        self.vocabulary_size = engine.vocabulary_size
        self.logits_RV: NDArray[np.float32] = np.empty((0, 0), dtype=np.float32)

    @property
    def seconds(self) -> float:
        return self._engine.seconds

    def rollback(self, position: int) -> None:
        self._engine.rollback(position)

    def evaluate(self, tokens: NDArray[np.int32], start: int, *, outputs: bool = True) -> NDArray[np.float32]:
        self.logits_RV = self._engine.evaluate(tokens, start, outputs=outputs)
        return self.logits_RV


def token_logprob(logits_V: NDArray[np.float32], token: int, count: int) -> TokenLogprob:
    """The log-probability of a token and those of the `count` likeliest ones; equal ones in the order of their ids."""
    exact_V = logits_V.astype(np.float64)
    top = exact_V.max()
    logs_V = exact_V - top - np.log(np.exp(exact_V - top).sum())
    likeliest = np.argsort(-logs_V, kind="stable")[:count].tolist()
    return TokenLogprob(token, float(logs_V[token]), tuple((other, float(logs_V[other])) for other in likeliest))
