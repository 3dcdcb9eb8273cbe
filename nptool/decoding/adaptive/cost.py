"""What a model costs on a machine: t(w), the seconds of a batch of w rows, and which widths share their bits.

One calibration measures both: batches of every width over the same tokens are timed, and their rows are compared bit
for bit. Two widths are of one *class* when every row that both computed is equal to the last bit; within a class a step
may have any width and the text stays the same. The comparison is a self-test on a few tokens, not a proof. While
decoding, `Costs` corrects the calibrated times by what steps really take.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from math import sqrt
from statistics import median, median_low
from time import perf_counter
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from nptool.decoding.loop.engine import Engine
from nptool.decoding.loop.timing import prefill, time_in_turns

GRID = (1, 2, 3, 4, 6, 8, 9, 12, 15, 16, 24, 32, 48, 64)
"""Rows of the batches that are measured; with multiples of 3, in which llama.cpp's AVX2 kernels take their rows."""
CONTEXTS = (128, 640)
"""Tokens in the cache; llama.cpp computes the attention of one row in another way from 512 tokens on."""
BUDGET = 2.0
"""Seconds that a calibration may take."""
POSITIONS = 8
"""Positions at which the rows of all widths are compared."""

Classes = tuple[tuple[int, ...], ...]
Rows = dict[int, dict[int, set[bytes]]]
"""Width and position to digests of the logits: one, if the row does not depend on its place in the batch."""


@dataclass(frozen=True)
class Calibration:
    """What was measured."""

    contexts: tuple[int, ...]
    """One or two numbers of tokens in the cache, ascending."""
    widths: tuple[int, ...]
    """Ascending, from 1."""
    seconds: tuple[tuple[float, ...], ...]
    """t(w): for each context, a median for each of `widths`."""
    classes: Classes
    """Widths that give the same bits. A width that does not even agree with itself is in none."""
    complete: bool = True
    """Whether the whole grid was measured before the budget was spent."""
    spent: float = 0.0
    """Seconds that it took."""

    def at(self, width: int, length: int) -> float:
        """t(w) after `length` tokens: linear in both, and never below that of the first context."""
        near, slope = self._lines.get(width) or self._line(width)
        return near + slope * max(0, length - self.contexts[0])

    @cached_property
    def _lines(self) -> dict[int, tuple[float, float]]:
        return {width: self._line(width) for width in self.widths}

    def _line(self, width: int) -> tuple[float, float]:
        """t(w) at the first context, and what every further token adds."""
        beyond = max(1.0, width / self.widths[-1])
        near, far = (beyond * float(np.interp(width, self.widths, self.seconds[row])) for row in (0, -1))
        return near, max(0.0, far - near) / max(1, self.contexts[-1] - self.contexts[0])

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """From `dataclasses.asdict` by way of JSON."""
        return cls(**{name: _frozen(part) for name, part in value.items()})


class Costs:
    """t(w) now: as calibrated, times a factor of the width's own, times the pace of the machine.

    A change while the width stays is the machine's pace, which all widths share. A change at a switch of width may be
    either, and counts half as each.
    """

    def __init__(self, calibration: Calibration) -> None:
        self.calibration = calibration
        self.shape: dict[int, float] = {}
        """Width to its own factor, for widths that were seen."""
        self.pace = 1.0
        self._width: int | None = None

    def seconds(self, width: int, length: int) -> float:
        """t(w) after `length` tokens."""
        return self.calibration.at(width, length) * self.shape.get(width, 1.0) * self.pace

    def learn(self, width: int, steps: Sequence[tuple[int, float]]) -> None:
        """Take successive steps of one width into account, given as (tokens before the step, seconds)."""
        ratio = median(seconds / self.calibration.at(width, length) for length, seconds in steps)
        if width not in self.shape:
            # The first width of all shows the pace.
            self.shape[width] = ratio / self.pace if self.shape else 1.0
        elif self._width not in (None, width):
            self.shape[width] *= sqrt(ratio / (self.shape[width] * self.pace))
        self.pace = ratio / self.shape[width]
        self._width = width


def calibrate(
    engine: Engine,
    *,
    widths: Sequence[int] = GRID,
    contexts: Sequence[int] = CONTEXTS,
    budget: float = BUDGET,
    clock: Callable[[], float] = perf_counter,
) -> Calibration:
    """Measure; the engine's cache is empty afterwards.

    Args:
        widths: ascending from 1; those beyond the engine's are left out.
        contexts: ascending; the second is measured only if the time left is foreseen to suffice.
        budget: seconds. Half of it bounds the widening at the first context.
        clock: gives seconds.
    """
    began, lengths = clock(), fitting(engine, contexts)
    possible = [width for width in widths if width <= engine.width]
    count = lengths[-1] + 2 * engine.width + POSITIONS
    tokens = np.random.default_rng(0).integers(0, engine.vocabulary_size, count, dtype=np.int32)
    times, rows = _measure(engine, tokens, lengths[0], possible, began + budget / len(lengths), clock)
    found, reached = [(times, rows)], list(times)
    foreseen = lengths[-1] * min(times[reached[-1]]) / reached[-1]
    foreseen += sum(len(_starts(width)) * min(times[width]) for width in reached)
    if len(lengths) > 1 and clock() + foreseen < began + budget:
        found.append(_measure(engine, tokens, lengths[1], reached, began + budget, clock, widen=False))
    engine.rollback(0)
    return Calibration(
        contexts=lengths[: len(found)],
        widths=tuple(reached),
        seconds=tuple(tuple(map(median_low, times.values())) for times, _ in found),
        classes=_classes(reached, [rows for _, rows in found]),
        complete=len(found) == len(lengths) and len(reached) == len(possible),
        spent=clock() - began,
    )


def fitting(engine: Engine, contexts: Sequence[int] = CONTEXTS) -> tuple[int, ...]:
    """The context lengths that a small engine has room for: shorter ones then."""
    longest = max(1, engine.capacity - POSITIONS)
    return tuple(sorted({min(length, longest) for length in contexts}))


def _measure(
    engine: Engine,
    tokens: NDArray[np.int32],
    length: int,
    widths: Sequence[int],
    end: float,
    clock: Callable[[], float],
    widen: bool = True,
) -> tuple[dict[int, list[float]], Rows]:
    """Seconds of each width's batches after `length` tokens, as far as there is time if `widen`, and their rows."""
    prefill(engine, tokens[:length])
    times, rows, widest = dict[int, list[float]](), Rows(), 0
    for width in widths:
        if widen and widest and clock() + len(_starts(width)) * min(times[widest]) * width / widest > end:
            break
        times[width], rows[width], widest = [], {}, width
        for start in range(length, length + _starts(width).stop, _starts(width).step):
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


def _starts(width: int) -> range:
    """Where batches of one width begin: they overlap, and all widths see the same positions."""
    advance = max(1, min(width, POSITIONS) // 2)
    return range(0, max(3, 1 - (width - POSITIONS) // advance) * advance, advance)


def _classes(
    widths: Sequence[int], contexts: Sequence[dict[int, dict[int, set[bytes]]]]
) -> tuple[tuple[int, ...], ...]:
    """Widths whose rows are equal wherever both were seen, in every context."""

    def same(one: int, other: int) -> bool:
        pairs = [(rows[one], rows[other]) for rows in contexts]
        return all(len(a[position] | b[position]) == 1 for a, b in pairs for position in a.keys() & b.keys())

    groups: list[list[int]] = []
    for width in widths:
        home = next((group for group in groups if all(same(width, member) for member in group)), None)
        if home is not None:
            home.append(width)
        elif same(width, width):
            groups.append([width])
    return tuple(map(tuple, groups))


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
