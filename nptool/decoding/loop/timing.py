"""Times of batches apart from any answer: for calibration, for `bench`, and of one row before a text of wide steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median

import numpy as np
from numpy.typing import NDArray

from nptool.decoding.loop.engine import Engine
from nptool.decoding.loop.sequence import Sequence as Text
from nptool.decoding.loop.steps import Widths

SETTLED, SETTLING_SECONDS = 8, 0.01
"""Batches of one width, or seconds of them, until its time is that of decoding: after another width the graph is new,
and the weights of a small model have to come back into the processor's cache."""


def prefill(engine: Engine, tokens: NDArray[np.int32]) -> None:
    """Make `tokens` what the engine's cache holds."""
    engine.rollback(0)
    for start in range(0, len(tokens), engine.batch_limit):
        engine.evaluate(tokens[start : start + engine.batch_limit], start, outputs=False)


def time_in_turns(
    engine: Engine, tokens: NDArray[np.int32], widths: Sequence[int], repeats: int
) -> Iterator[tuple[int, float]]:
    """(width, seconds) of settled batches, the widths in turns, `repeats` times. The cache holds `tokens`."""
    length = len(tokens)
    for _ in range(repeats):
        for width in widths:
            batch, began, seconds = np.resize(tokens, width), engine.seconds, 0.0
            for done in range(SETTLED):
                if done > 1 and engine.seconds - began > SETTLING_SECONDS:
                    break
                before = engine.seconds
                engine.evaluate(batch, length)
                seconds = engine.seconds - before
                engine.rollback(length)
            yield width, seconds


def time_plain(engine: Engine, text: Text, widths: Widths) -> None:
    """Tell `widths` what one row takes after a prefilled text, where they ask for it before the first step."""
    if widths.wants_plain_time:
        cached = text.tokens[: text.cached]
        # The median of three: no step of this text would correct one that was interrupted.
        widths.time_plain(len(cached), median(seconds for _, seconds in time_in_turns(engine, cached, (1,), 3)))
