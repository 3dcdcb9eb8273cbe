"""Timing of batches behind a text that stays the same: for calibration, `bench` and answers. Draws no conclusions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from nptool.decoding.loop.engine import Engine

# Batches of a width until its time is what it is in decoding: all of them, or as many as this takes; but two at least.
_SETTLED = 8
_SETTLING_SECONDS = 0.01


def prefill(engine: Engine, text: NDArray[np.int32]) -> None:
    """Make `text` what the engine's cache holds."""
    engine.rollback(0)
    for start in range(0, len(text), engine.batch_limit):
        engine.evaluate(text[start : start + engine.batch_limit], start, outputs=False)


def time_batch(engine: Engine, tokens: NDArray[np.int32], start: int) -> tuple[float, NDArray[np.float32]]:
    """Seconds of one batch and its logits (rows, V), which are a view until the next. The cache keeps its rows."""
    before = engine.seconds
    logits_RV = engine.evaluate(tokens, start)
    return engine.seconds - before, logits_RV


def time_in_turns(
    engine: Engine, text: NDArray[np.int32], widths: Sequence[int], repeats: int
) -> Iterator[tuple[int, float]]:
    """(width, seconds) of every width in turns, `repeats` times. The cache holds `text`, before and after.

    A batch is timed behind others of its width, as in decoding: after another width a new graph is built, and the
    weights of a small model come back into the processor's cache only by and by. Measured, 5.4M parameters in F32: one
    row took 1.5 ms right after wide batches, 1.2 ms the next time, and 0.8 ms from the seventh time on.
    """
    length = len(text)
    for _ in range(repeats):
        for width in widths:
            tokens = np.resize(text, width)
            seconds = spent = 0.0
            for before in range(_SETTLED):
                if before > 1 and spent > _SETTLING_SECONDS:
                    break
                seconds, _ = time_batch(engine, tokens, length)
                spent += seconds
                engine.rollback(length)
            yield width, seconds
