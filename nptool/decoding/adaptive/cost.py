"""What a model costs on a machine: t(w), the seconds of a batch of w rows, and which widths share their bits.

A calibration times batches of every width over the same tokens and compares their rows. Two widths are of one *class*
when every row that both computed is equal bit for bit; steps of one class may have any of its widths without changing
the text. A few tokens are a self-test, not a proof. While decoding, `Costs` corrects the calibrated times.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import sqrt
from statistics import median_low
from time import perf_counter
from typing import Any, Self

import numpy as np

from nptool.decoding.loop.engine import Engine
from nptool.decoding.loop.timing import POSITIONS, Rows, measure_rows, starts_of

GRID = (1, 2, 3, 4, 6, 8, 9, 12, 15, 16, 24, 32, 48, 64)
"""Rows of the batches that are measured; with multiples of 3, in which llama.cpp's AVX2 kernels take their rows."""
CONTEXTS = (128, 640)
"""Tokens in the cache; llama.cpp computes the attention of one row in another way from 512 tokens on."""
BUDGET = 2.0
"""Seconds that a calibration may take."""

Classes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Calibration:
    """What was measured."""

    contexts: tuple[int, ...]
    """Tokens in the cache: one or two numbers, ascending."""
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
    """t(w) now: calibrated, times a factor of the width, times the pace of the machine, which all widths share.

    A change while the width stays is the pace. A change at a switch of width may be either, and counts half as each.
    """

    def __init__(self, calibration: Calibration) -> None:
        self.calibration = calibration
        self.shape: dict[int, float] = {}
        """Width to its own factor, for widths that were seen."""
        self.pace = 1.0
        self._width: int | None = None

    def seconds(self, width: int, length: int) -> float:
        """t(w) after `length` tokens. One row never takes longer than several: its own times may be of a bad moment."""
        widths = (width, *self.shape) if width == 1 else (width,)
        return self.pace * min(self.calibration.at(rows, length) * self.shape.get(rows, 1.0) for rows in widths)

    def learn(self, width: int, length: int, seconds: float) -> None:
        """Take steps of one width into account that took `seconds` each, after `length` tokens."""
        ratio = seconds / self.calibration.at(width, length)
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
    """
    began, lengths = clock(), fitting(engine, contexts)
    possible = [width for width in widths if width <= engine.width]
    count = lengths[-1] + 2 * engine.width + POSITIONS
    tokens = np.random.default_rng(0).integers(0, engine.vocabulary_size, count, dtype=np.int32)
    times, rows = measure_rows(engine, tokens, lengths[0], possible, began + budget / len(lengths), clock)
    found, reached = [(times, rows)], list(times)
    foreseen = lengths[-1] * min(times[reached[-1]]) / reached[-1]
    foreseen += sum(len(starts_of(width)) * min(times[width]) for width in reached)
    if len(lengths) > 1 and clock() + foreseen < began + budget:
        found.append(measure_rows(engine, tokens, lengths[1], reached, began + budget, clock, widen=False))
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


def _classes(widths: Sequence[int], contexts: Sequence[Rows]) -> Classes:
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
