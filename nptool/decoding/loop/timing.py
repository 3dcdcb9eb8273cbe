"""Batches outside the loop, timed and compared: to calibrate, for `bench`, and one row before a text of wide steps."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from collections.abc import Sequence as AnySequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from nptool.decoding.loop.engine import Engine
from nptool.decoding.loop.sequence import Sequence
from nptool.decoding.loop.steps import Widths

SETTLED, SETTLING_SECONDS = 8, 0.01
"""Batches of one width, or seconds of them, until its time is that of decoding. The first ones are slower: the graph is
rebuilt, and a small model's weights are loaded into the processor's cache."""
POSITIONS = 8
"""Positions at which the rows of all widths are compared."""

Rows = dict[int, dict[int, set[bytes]]]
"""Width and position to digests of the logits: one, if the row does not depend on its place in the batch."""


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


def measure_rows(
    engine: Engine,
    tokens: NDArray[np.int32],
    length: int,
    widths: AnySequence[int],
    end: float,
    clock: Callable[[], float],
    widen: bool = True,
) -> tuple[dict[int, list[float]], Rows]:
    """Seconds of each width's batches after `length` tokens, as far as there is time if `widen`, and their rows."""
    prefill(engine, tokens[:length])
    times, rows, widest = dict[int, list[float]](), Rows(), 0
    for width in widths:
        if widen and widest and clock() + len(starts_of(width)) * min(times[widest]) * width / widest > end:
            break
        times[width], rows[width], widest = [], {}, width
        for start in range(length, length + starts_of(width).stop, starts_of(width).step):
            engine.rollback(start)
            before = engine.seconds
            logits_RV = engine.evaluate(tokens[start : start + width], start)
            times[width].append(engine.seconds - before)
            for row, logits_V in enumerate(logits_RV):
                digest = blake2b(logits_V.tobytes(), digest_size=16).digest()
                rows[width].setdefault(start + row, set()).add(digest)
        engine.rollback(length)
        # The first batch of a width builds a new graph.
        times[width].pop(0)
    settled: dict[int, list[float]] = {}
    for width, seconds in time_in_turns(engine, tokens[:length], list(times), 3):
        settled.setdefault(width, []).append(seconds)
        if clock() >= end:
            break
    return settled if len(settled) == len(times) else times, rows


def starts_of(width: int) -> range:
    """Where batches of one width begin: they overlap, and all widths see the same positions."""
    advance = max(1, min(width, POSITIONS) // 2)
    return range(0, max(3, 1 - (width - POSITIONS) // advance) * advance, advance)
