"""t(w): the time of a batch of w rows, which turns tokens per forward into tokens per second."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import numpy as np
from numpy.typing import NDArray

from nptool.decoding.loop.engine import Engine
from nptool.decoding.loop.timing import prefill, time_in_turns

REPEATS = 10


class StepCosts:
    """Seconds of a batch by its width, after one fixed prefix."""

    def __init__(self, engine: Engine, context: NDArray[np.int32], widths: Sequence[int]) -> None:
        """Args: `context` is the prefix, from one token to the engine's capacity."""
        self._engine, self._context = engine, context
        self._seconds: dict[int, list[float]] = {width: [] for width in widths}

    @property
    def context_length(self) -> int:
        """Tokens before the batch."""
        return len(self._context)

    def measure(self, repeats: int = REPEATS) -> None:
        """Time every width `repeats` times, in turns. The engine's cache is empty afterwards."""
        prefill(self._engine, self._context)
        for width, seconds in time_in_turns(self._engine, self._context, list(self._seconds), repeats):
            self._seconds[width].append(seconds)
        self._engine.rollback(0)

    def seconds(self) -> dict[int, float]:
        """Median seconds by width."""
        return {width: median(values) for width, values in self._seconds.items()}
