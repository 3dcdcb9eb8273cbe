"""What is known of one model on one machine, kept in one file, so that a process begins where the last one ended."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict
from functools import cached_property
from typing import Any

from nptool.cached_json import CachedJson
from nptool.decoding.adaptive.chooser import Chooser
from nptool.decoding.adaptive.cost import Calibration

logger = logging.getLogger(__name__)

FORMAT = 2
"""Of the file; raised when the meaning of a value changes."""
DISTURBED = 0.5
"""Share of their calibrated time below which steps show that something else ran during the calibration."""


class Store:
    """The calibration of one model, and its choosers."""

    def __init__(self, identify: Callable[[], dict[str, Any]], measure: Callable[[], Calibration]) -> None:
        """Args: `identify` gives, for JSON, what a calibration depends on (model, machine, way to compute)."""
        self._identify, self._measure = identify, measure
        self._choosers: dict[str, Chooser] = {}

    @cached_property
    def file(self) -> CachedJson:
        """The calibration, and what `Chooser.to_json` gave."""
        return CachedJson("decoding", self._identify() | {"format": FORMAT})

    @cached_property
    def calibration(self) -> Calibration:
        """What steps cost: measured at the first use of the model on this machine."""
        saved = self._load()
        return self.calibrate() if saved is None else saved[0]

    def calibrate(self) -> Calibration:
        """Measure what steps cost, and keep it for the next use."""
        self.calibration = self._measure()
        self.file.store([asdict(self.calibration), None])
        return self.calibration

    def chooser(self, purpose: str = "") -> Chooser:
        """What decoding has shown, from text to text. One with a `purpose` begins with nothing, and is not kept."""
        if purpose not in self._choosers:
            self._choosers[purpose] = Chooser(self.calibration, None if purpose else self._learnt())
        return self._choosers[purpose]

    def keep(self) -> None:
        """Keep what was learnt for the next process, unless another one has calibrated meanwhile.

        A calibration that was disturbed is forgotten, and with it what was learnt: its times are wrong, and it may have
        run out of time before the wide steps.
        """
        chooser = self._choosers.get("")
        if chooser is None or not chooser.used or self._learnt() == ():
            return
        if chooser.costs.pace < DISTURBED:
            self.file.forget()
        else:
            self.file.store([asdict(self.calibration), chooser.to_json()])

    def _learnt(self) -> Any:
        """What is kept beside this calibration; () if another one is kept, or none."""
        saved = self._load()
        return () if saved is None or saved[0] != self.calibration else saved[1]

    def _load(self) -> tuple[Calibration, Any] | None:
        """What is kept, if it has the layout of this version."""
        if (saved := self.file.load()) is None:
            return None
        try:
            calibration, learnt = Calibration.from_json(saved[0]), saved[1]
            Chooser(calibration, learnt)
        except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
            logger.warning("%s has another layout and will be written again (%r)", self.file.path, error)
            return None
        return calibration, learnt
