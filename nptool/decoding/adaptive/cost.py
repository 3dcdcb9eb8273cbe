"""What a model costs on a machine: t(w), the seconds of a batch of w rows, and which widths share their bits.

One calibration measures both: batches of every width over the same tokens are timed, and their rows compared bit for
bit. Two widths are of one *class* when every row that both computed is equal to the last bit; within a class a step may
have any width and the text stays the same. The comparison is a self-test on a few tokens, not a proof. While decoding,
`Costs` corrects the calibrated times by what steps really take.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
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
_POSITIONS = 8
"""Positions at which the rows of all widths are compared."""


@dataclass(frozen=True)
class Calibration:
    """What was measured."""

    contexts: tuple[int, ...]
    """One or two numbers of tokens in the cache, ascending."""
    widths: tuple[int, ...]
    """Ascending, from 1."""
    seconds: tuple[tuple[float, ...], ...]
    """t(w): for each context, a median for each of `widths`."""
    classes: tuple[tuple[int, ...], ...]
    """Widths that give the same bits. A width that does not even agree with itself is in none."""
    complete: bool = True
    """Whether the whole grid was measured before the budget was spent."""
    spent: float = 0.0
    """Seconds that it took."""

    def at(self, width: int, length: float) -> float:
        """t(w) after `length` tokens: linear in both, and never below that of the first context."""
        near, slope = self.line(width)
        return near + slope * max(0.0, length - self.contexts[0])

    def line(self, width: int) -> tuple[float, float]:
        """t(w) at the first context, and what every further token adds."""
        beyond = max(1.0, width / self.widths[-1])
        near, far = (beyond * float(np.interp(width, self.widths, self.seconds[row])) for row in (0, -1))
        return near, max(0.0, far - near) / max(1, self.contexts[-1] - self.contexts[0])

    def to_json(self) -> dict[str, Any]:
        """A value for `json.dumps`."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """
        Raises:
            ValueError, TypeError, KeyError: `value` is no calibration.
        """
        found = cls(
            contexts=tuple(int(length) for length in value["contexts"]),
            widths=tuple(int(width) for width in value["widths"]),
            seconds=tuple(tuple(float(time) for time in row) for row in value["seconds"]),
            classes=tuple(tuple(int(width) for width in members) for members in value["classes"]),
            complete=bool(value["complete"]),
            spent=float(value["spent"]),
        )
        members = [width for group in found.classes for width in group]
        sound = (
            found.widths[:1] == (1,)
            and list(found.widths) == sorted(set(found.widths))
            and 0 < len(found.seconds) == len(found.contexts) <= len(CONTEXTS)
            and list(found.contexts) == sorted(found.contexts)
            and all(len(row) == len(found.widths) for row in found.seconds)
            and all(0 < time < np.inf for row in found.seconds for time in row)
            and len(members) == len(set(members))
            and set(members) <= set(found.widths)
        )
        if not sound:
            raise ValueError("no calibration")
        return found


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
        self._lines: dict[int, tuple[float, float]] = {}

    def seconds(self, width: int, length: int) -> float:
        """t(w) after `length` tokens."""
        return self._calibrated(width, length) * self.shape.get(width, 1.0) * self.pace

    def least(self, width: int, length: int) -> float:
        """The same if the width has become as fast as it was calibrated."""
        return min(self.seconds(width, length), self._calibrated(width, length))

    def learn(self, width: int, steps: Sequence[tuple[int, float]]) -> None:
        """Take successive steps of one width into account, given as (tokens before the step, seconds)."""
        ratio = median(seconds / self._calibrated(width, length) for length, seconds in steps)
        if width not in self.shape:
            # The first width of all shows the pace.
            self.shape[width] = ratio / self.pace if self.shape else 1.0
        elif self._width not in (None, width):
            self.shape[width] *= sqrt(ratio / (self.shape[width] * self.pace))
        self.pace = ratio / self.shape[width]
        self._width = width

    def _calibrated(self, width: int, length: int) -> float:
        if width not in self._lines:
            self._lines[width] = self.calibration.line(width)
        near, slope = self._lines[width]
        return near + slope * max(0, length - self.calibration.contexts[0])


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
    began = clock()
    lengths = fitting(engine, contexts)
    possible = [width for width in widths if width <= engine.width]
    count = lengths[-1] + 2 * engine.width + _POSITIONS
    tokens = np.random.default_rng(0).integers(0, engine.vocabulary_size, count, dtype=np.int32)
    near = _Measurement(engine, tokens, lengths[0])
    for width in possible:
        if near.seconds and clock() + near.foreseen(width) > began + budget / len(lengths):
            break
        near.measure(width)
    near.repeat(began + budget / len(lengths), clock)
    found = [near]
    if lengths[1:] and clock() + near.foreseen_at(lengths[1]) < began + budget:
        found.append(_Measurement(engine, tokens, lengths[1]))
        for width in near.seconds:
            found[1].measure(width)
        found[1].repeat(began + budget, clock)
    engine.rollback(0)
    return Calibration(
        contexts=tuple(measured.length for measured in found),
        widths=tuple(near.seconds),
        seconds=tuple(tuple(map(median_low, measured.seconds.values())) for measured in found),
        classes=_classes(found),
        complete=len(found) == len(lengths) and len(near.seconds) == len(possible),
        spent=clock() - began,
    )


def fitting(engine: Engine, contexts: Sequence[int] = CONTEXTS) -> tuple[int, ...]:
    """The context lengths that a small engine has room for: shorter ones then."""
    longest = max(1, engine.capacity - _POSITIONS)
    return tuple(sorted({min(length, longest) for length in contexts}))


class _Measurement:
    """Times and rows of batches after `length` tokens."""

    def __init__(self, engine: Engine, tokens: NDArray[np.int32], length: int) -> None:
        self.length = length
        self.seconds: dict[int, list[float]] = {}
        self.rows: dict[int, dict[int, bytes]] = {}
        """Width and position to the digest of the logits."""
        self.unsteady: set[int] = set()
        """Widths whose rows depend on their place in the batch."""
        self._engine, self._tokens = engine, tokens
        prefill(engine, tokens[:length])

    def foreseen(self, width: int) -> float:
        """Seconds that `measure` will take at most, from the widest batch so far."""
        widest = max(self.seconds)
        return len(_starts(width)) * min(self.seconds[widest]) * width / widest

    def foreseen_at(self, length: int) -> float:
        """Seconds that prefilling `length` tokens and measuring the same widths will take there."""
        widest = max(self.seconds)
        batches = sum(len(_starts(width)) * min(times) for width, times in self.seconds.items())
        return length * min(self.seconds[widest]) / widest + batches

    def measure(self, width: int) -> None:
        """Time overlapping batches, so that a row is seen at several places of a batch."""
        times, rows = [], self.rows.setdefault(width, {})
        for start in _starts(width):
            position, before = self.length + start, self._engine.seconds
            self._engine.rollback(position)
            logits_RV = self._engine.evaluate(self._tokens[position : position + width], position)
            times.append(self._engine.seconds - before)
            for row, logits_V in enumerate(logits_RV):
                digest = blake2b(logits_V.tobytes(), digest_size=16).digest()
                if rows.setdefault(position + row, digest) != digest:
                    self.unsteady.add(width)
        self._engine.rollback(self.length)
        # The first batch of a width builds a new graph.
        self.seconds[width] = times[1:]

    def repeat(self, end: float, clock: Callable[[], float]) -> None:
        """Replace the times by those of settled batches, as many as there is time for."""
        settled: dict[int, list[float]] = {}
        for width, seconds in time_in_turns(self._engine, self._tokens[: self.length], list(self.seconds), 3):
            settled.setdefault(width, []).append(seconds)
            if clock() >= end:
                break
        if len(settled) == len(self.seconds):
            self.seconds = settled


def _starts(width: int) -> range:
    """Where the batches of one width begin: all widths see the same positions, and three batches at least."""
    advance = max(1, min(width, _POSITIONS) // 2)
    return range(0, max(3, 1 - (width - _POSITIONS) // advance) * advance, advance)


def _classes(found: Sequence[_Measurement]) -> tuple[tuple[int, ...], ...]:
    """Widths whose rows are equal wherever both were seen, at every context."""
    groups: list[list[int]] = []
    for width in found[0].seconds:
        if any(width in measured.unsteady for measured in found):
            continue
        home = next((group for group in groups if all(_same(width, member, found) for member in group)), None)
        if home is None:
            groups.append([width])
        else:
            home.append(width)
    return tuple(tuple(group) for group in groups)


def _same(width: int, other: int, found: Sequence[_Measurement]) -> bool:
    pairs = [(measured.rows[width], measured.rows[other]) for measured in found]
    return all(one[position] == two[position] for one, two in pairs for position in one.keys() & two.keys())
