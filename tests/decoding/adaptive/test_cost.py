"""Calibration on a scripted machine: exact times, exact classes, the budget, and the cache file's mishaps."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import pytest
from numpy.typing import NDArray

from nptool.decoding.adaptive.cost import GRID, Calibration, calibrate, fitting


class Machine:
    """A batch of w rows after c tokens takes 1 + w / 10 + c / 1000 s; the last bits of a row tell its kernel."""

    width = 64
    batch_limit = 512
    vocabulary_size = 16

    def __init__(self, kernel: Callable[[int, int, int], float], capacity: int = 1000) -> None:
        """Args: `kernel` gives what is added to a row's logits, from width, place in the batch and position."""
        self.capacity = capacity
        self.seconds = 0.0
        self.widths: list[int] = []
        self._kernel = kernel
        self._cached = 0

    def clock(self) -> float:
        return self.seconds

    def evaluate(self, tokens: NDArray[np.int32], start: int, *, outputs: bool = True) -> NDArray[np.float32]:
        assert start == self._cached
        rows = len(tokens)
        assert start + rows <= self.capacity + self.width
        self._cached += rows
        if not outputs:
            assert rows <= self.batch_limit
            self.seconds += 0.5
            return np.empty((0, self.vocabulary_size), dtype=np.float32)
        self.seconds += 1 + rows / 10 + start / 1000
        self.widths.append(rows)
        added = [self._kernel(rows, row, start + row) for row in range(rows)]
        one_hot = np.eye(self.vocabulary_size, dtype=np.float32)[tokens]
        return one_hot + np.array(added, dtype=np.float32)[:, None]

    def rollback(self, position: int) -> None:
        self._cached = min(self._cached, position)


def alike(rows: int, row: int, position: int) -> float:
    return 0.0


def test_times_are_medians_and_between_them_linear() -> None:
    machine = Machine(alike)
    found = calibrate(machine, budget=1e6, clock=machine.clock)
    assert found.contexts == (128, 640)
    assert found.widths == GRID
    assert found.complete
    for width in (1, 5, 16, 20, 64):
        for length in (128, 300, 640, 900):
            # A little after the text, since the batches of a width move on over some tokens.
            assert found.at(width, length) == pytest.approx(1 + width / 10 + length / 1000, rel=0.01)
    assert found.at(1, 5) == found.at(1, 128)
    assert found.spent == machine.seconds
    machine.evaluate(np.zeros(1, dtype=np.int32), 0)


@pytest.mark.parametrize(
    ("kernel", "classes"),
    [
        (alike, (GRID,)),
        (lambda rows, row, position: float(rows == 1), ((1,), GRID[1:])),
        (lambda rows, row, position: float(rows // 16), ((1, 2, 3, 4, 6, 8, 9, 12, 15), (16, 24), (32,), (48,), (64,))),
        # Only after a long text, and only in some rows.
        (lambda rows, row, position: float(rows == 1 and position == 645), ((1,), GRID[1:])),
        # 4 and 6 rows depend on their place, so nothing can be said of them.
        (
            lambda rows, row, position: float(rows in (4, 6) and row == 1),
            (tuple(width for width in GRID if width not in (4, 6)),),
        ),
    ],
)
def test_classes_are_widths_whose_rows_are_the_same_bits(
    kernel: Callable[[int, int, int], float], classes: tuple[tuple[int, ...], ...]
) -> None:
    machine = Machine(kernel)
    assert calibrate(machine, budget=1e6, clock=machine.clock).classes == classes


def test_it_stops_widening_when_the_time_is_spent() -> None:
    for budget in (20, 60, 150, 300):
        machine = Machine(alike)
        found = calibrate(machine, budget=budget, clock=machine.clock)
        assert found.widths == GRID[: len(found.widths)]
        assert found.complete == (found.widths == GRID and len(found.seconds) == 2)
        # One width at least is measured, whatever it takes.
        assert found.spent == machine.seconds < 1.2 * budget + 10
        assert found.at(64, 640) > found.at(1, 128)
        assert Calibration.from_json(json.loads(json.dumps(asdict(found)))) == found


def test_a_small_context_is_used_as_far_as_it_goes() -> None:
    machine = Machine(alike, capacity=40)
    assert fitting(machine) == (32,)
    found = calibrate(machine, budget=1e6, clock=machine.clock)
    assert found.contexts == (32,)
    assert found.complete
    assert fitting(Machine(alike, capacity=400)) == (128, 392)
