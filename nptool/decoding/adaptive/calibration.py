"""What a model costs on a machine: t(w), seconds of a batch of w rows, and which widths share their kernels.

DESIGN section 3. Both come from one pass: the same tokens go through the model in batches of every width, and a batch
is timed and its rows are compared bit for bit. Two widths are of one *class* when every row that both gave is the same
to the last bit; within a class a step may have any width and the text stays the same. The comparison is a self-test on
a few tokens behind two texts, not a proof. Knows neither files nor decoding.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from statistics import median_low
from time import perf_counter
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from nptool.decoding.adaptive.step_times import prefill, time_batch, time_in_turns
from nptool.decoding.loop.engine import Engine

GRID = (1, 2, 3, 4, 6, 8, 9, 12, 15, 16, 24, 32, 48, 64)
"""Rows of the batches that are measured. Multiples of 3 are among them because llama.cpp's matrix product for AVX2
takes rows in threes: on a 5.4M model 9 rows took as long as 8 (F16) or 2 % longer (F32), 15 rows 1 % (F16) or 7 % (F32)
less than 16."""
CONTEXTS = (128, 640)
"""Tokens before the batches. llama.cpp's attention of one row changes its way from 512 on."""
BUDGET = 2.0
"""Seconds that a calibration may take."""
# Until when, as shares of the budget, the first text's batches are widened, and then repeated.
_FIRST_SHARE = 0.6
_FIRST_REPEATS = 0.35
# Every width is compared at this many positions, and runs this many batches at least.
_POSITIONS = 8
_BATCHES = 3
# Rounds in turns after the pass, where there is time left. Of two or three times the lower or the middle one is taken.
_ROUNDS = 3
# Settled times of a width that need no others beside them.
_ENOUGH = 3


@dataclass(frozen=True)
class Calibration:
    """What was measured."""

    contexts: tuple[int, ...]
    """Tokens before the batches, ascending."""
    widths: tuple[int, ...]
    """Ascending; 1 is always among them."""
    seconds: tuple[tuple[float, ...], ...]
    """t(w): for every context a median for each of `widths`, or for the first of them only where time ran out."""
    classes: tuple[tuple[int, ...], ...]
    """Widths that give the same bits. A width that does not even agree with itself is in none."""
    complete: bool = True
    """Whether the whole grid was measured before the budget was spent."""
    spent: float = 0.0
    """Seconds that it took."""

    def at(self, width: int, context: float) -> float:
        """t(w) behind `context` tokens: linear between what was measured and beyond, never below the least."""
        near, slope = self.line(width)
        return near + slope * max(0.0, context - self.contexts[0])

    def times(self, width: int) -> tuple[float, ...]:
        """t(w) of one of `widths` behind each context, as measured; where time ran out, as it is foreseen."""
        far = (self._far(width),) if len(self.contexts) > 1 else ()
        return (self._between(self.seconds[0], width), *far)

    def line(self, width: int) -> tuple[float, float]:
        """t(w) behind the first context, and what every token behind that adds."""
        near = self._between(self.seconds[0], width)
        if len(self.contexts) == 1:
            return near, 0.0
        return near, max(0.0, self._far(width) - near) / (self.contexts[1] - self.contexts[0])

    @property
    def fingerprint(self) -> str:
        """Tells its times from those of another one."""
        return blake2b(repr((self.contexts, self.widths, self.seconds)).encode(), digest_size=8).hexdigest()

    def class_of(self, width: int) -> tuple[int, ...]:
        """The widths that share `width`'s bits; empty where that is not known."""
        return next((members for members in self.classes if width in members), ())

    def to_json(self) -> dict[str, Any]:
        """A value for `json.dumps`."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """
        Raises:
            ValueError, TypeError, KeyError: it is none.
        """
        found = cls(
            contexts=tuple(int(length) for length in value["contexts"]),
            widths=tuple(int(width) for width in value["widths"]),
            seconds=tuple(tuple(float(time) for time in row) for row in value["seconds"]),
            classes=tuple(tuple(int(width) for width in members) for members in value["classes"]),
            complete=bool(value["complete"]),
            spent=float(value["spent"]),
        )
        found._check()
        return found

    def _check(self) -> None:
        widths, rows = self.widths, self.seconds
        if not widths or widths[0] != 1 or list(widths) != sorted(set(widths)):
            raise ValueError("widths must ascend from 1")
        if not 0 < len(rows) == len(self.contexts) <= len(CONTEXTS) or list(self.contexts) != sorted(self.contexts):
            raise ValueError("one row of times for each context")
        if len(rows[0]) != len(widths) or not all(0 < len(row) <= len(widths) for row in rows):
            raise ValueError("one time for each width")
        if not all(0 < time < np.inf for row in rows for time in row):
            raise ValueError("times are positive")
        members = [width for group in self.classes for width in group]
        if len(members) != len(set(members)) or not set(members) <= set(widths):
            raise ValueError("every width is in one class at most")

    def _far(self, width: int) -> float:
        """t(w) behind the second context, by the first one's shape where time had run out."""
        known = self.widths[len(self.seconds[1]) - 1]
        if width <= known:
            return self._between(self.seconds[1], width)
        return self.seconds[1][-1] * self._between(self.seconds[0], width) / self._between(self.seconds[0], known)

    def _between(self, times: tuple[float, ...], width: int) -> float:
        place = bisect_left(self.widths, width)
        if place == len(self.widths):
            return times[-1] * width / self.widths[-1]
        if self.widths[place] == width:
            return times[place]
        low, high = self.widths[place - 1], self.widths[place]
        share = (width - low) / (high - low)
        return times[place - 1] * (1 - share) + times[place] * share


@dataclass
class _Behind:
    """What was found behind one text."""

    context: int
    seconds: dict[int, list[float]] = field(default_factory=dict)
    rows: dict[int, dict[int, bytes]] = field(default_factory=dict)
    """Width and position to the digest of the logits."""
    unsteady: set[int] = field(default_factory=set)
    """Widths at which a row depends on its place in the batch."""


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
        contexts: ascending; only what fits the engine is used.
        budget: seconds after which it stops widening.
        clock: gives seconds.
    """
    began = clock()
    lengths = fitting(engine, contexts)
    reached = possible = [width for width in widths if width <= engine.width]
    found: list[_Behind] = []
    for length in lengths:
        last = length == lengths[-1]
        end = began + budget * (1.0 if last else _FIRST_SHARE)
        repeat_end = end if last else began + budget * _FIRST_REPEATS
        if found and clock() + _prefill_seconds(found[0], length) > end:
            break
        found.append(_measure(engine, length, reached, (end, repeat_end), clock))
        reached = list(found[0].seconds)
    engine.rollback(0)
    return Calibration(
        contexts=tuple(behind.context for behind in found),
        widths=tuple(reached),
        seconds=tuple(tuple(median_low(times) for times in behind.seconds.values()) for behind in found),
        classes=_classes(reached, found),
        complete=len(found) == len(lengths) and all(len(behind.seconds) == len(possible) for behind in found),
        spent=clock() - began,
    )


def fitting(engine: Engine, contexts: Sequence[int] = CONTEXTS) -> tuple[int, ...]:
    """The context lengths that a small engine has room for: shorter ones then."""
    longest = max(1, engine.capacity - _POSITIONS)
    return tuple(sorted({min(length, longest) for length in contexts}))


def _prefill_seconds(known: _Behind, length: int) -> float:
    widest = max(known.seconds)
    return length * min(known.seconds[widest]) / widest


def _measure(
    engine: Engine, length: int, widths: Sequence[int], ends: tuple[float, float], clock: Callable[[], float]
) -> _Behind:
    """Widen until the first end, then repeat what was reached, in turns, until the second."""
    tokens = _tokens(engine, length)
    prefill(engine, tokens[:length])
    behind = _Behind(length)
    for width in widths:
        if behind.seconds:
            before = max(behind.seconds)
            expected = _batches(width) * min(behind.seconds[before]) * width / before
            if clock() + expected > ends[0]:
                break
        _pass(engine, tokens, width, behind)
    turns = time_in_turns(engine, tokens[:length], sorted(behind.seconds), _ROUNDS)
    settled: dict[int, list[float]] = {width: [] for width in behind.seconds}
    while clock() < ends[1] and (turn := next(turns, None)) is not None:
        settled[turn[0]].append(turn[1])
    for width, times in settled.items():
        # The first ones, from while the classes were found, are no worse than few.
        behind.seconds[width] = times if len(times) >= _ENOUGH else behind.seconds[width] + times
    return behind


def _advance(width: int) -> int:
    return max(1, min(width, _POSITIONS) // 2)


def _batches(width: int) -> int:
    """Enough for every width to see the same positions, among others."""
    return max(_BATCHES, 1 + -(-(_POSITIONS - width) // _advance(width)))


def _pass(engine: Engine, tokens: NDArray[np.int32], width: int, behind: _Behind) -> None:
    """Batches of one width that overlap, so that a row is seen at several places of a batch."""
    times, rows = [], behind.rows.setdefault(width, {})
    position = behind.context
    for _ in range(_batches(width)):
        seconds, logits_RV = time_batch(engine, tokens[position : position + width], position)
        times.append(seconds)
        for row, logits_V in enumerate(logits_RV):
            digest = blake2b(logits_V.tobytes(), digest_size=16).digest()
            if rows.setdefault(position + row, digest) != digest:
                behind.unsteady.add(width)
        position += _advance(width)
        engine.rollback(position)
    engine.rollback(behind.context)
    # The first batch of a width builds a new graph.
    behind.seconds[width] = times[1:]


def _classes(widths: Sequence[int], found: Sequence[_Behind]) -> tuple[tuple[int, ...], ...]:
    """Widths whose rows are equal wherever both were seen, behind every text."""
    unsteady = set().union(*(behind.unsteady for behind in found))
    groups: list[list[int]] = []
    for width in widths:
        if width in unsteady:
            continue
        home = next((group for group in groups if all(_same(width, member, found) for member in group)), None)
        if home is None:
            groups.append([width])
        else:
            home.append(width)
    return tuple(tuple(group) for group in groups)


def _same(width: int, other: int, found: Sequence[_Behind]) -> bool:
    pairs = [(behind.rows.get(width, {}), behind.rows.get(other, {})) for behind in found]
    return all(one[position] == two[position] for one, two in pairs for position in one.keys() & two.keys())


def _tokens(engine: Engine, length: int) -> NDArray[np.int32]:
    """Random tokens, the same every time."""
    count = length + 2 * engine.width + _POSITIONS
    return np.random.default_rng(0).integers(0, engine.vocabulary_size, count, dtype=np.int32)
