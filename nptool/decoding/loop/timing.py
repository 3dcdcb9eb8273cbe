"""Timing of batches outside the loop: for calibration, for `bench`, and of one row before a sequence of wide steps."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
from numpy.typing import NDArray

from nptool.decoding.loop.engine import Engine
from nptool.decoding.loop.sequence import Sequence
from nptool.decoding.loop.steps import Widths

SETTLED, SETTLING_SECONDS = 8, 0.01
"""Batches of one width, or seconds of them, until its time is that of decoding. The first ones are slower: the graph is
rebuilt, and a small model's weights are loaded into the processor's cache."""


def prefill(engine: Engine, tokens: NDArray[np.int32]) -> None:
    """Fill the engine's cache with exactly `tokens`."""
    engine.rollback(0)
    for start in range(0, len(tokens), engine.batch_limit):
        engine.evaluate(tokens[start : start + engine.batch_limit], start, outputs=False)


def time_in_turns(
    engine: Engine, tokens: NDArray[np.int32], widths: Collection[int], repeats: int
) -> Iterator[tuple[int, float]]:
    """Yield (width, seconds) of a settled batch of each width in turn, `repeats` times. The cache holds `tokens`."""
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


def time_plain(engine: Engine, sequence: Sequence, widths: Widths) -> None:
    """Time one row after a prefilled prompt if `widths` want it."""
    if widths.wants_plain_time:
        cached = sequence.tokens[: sequence.cached]
        (_, seconds), *_ = time_in_turns(engine, cached, (1,), 1)
        widths.time_plain(len(cached), seconds)
