"""What is known of one model on one machine, in one file of the user's cache folder, so that a process begins where the
last one ended: the calibration, and what decoding has shown.

A damaged or foreign file is no error: what was in it is found out again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any

from nptool.cache_folder import cache_folder
from nptool.decoding.adaptive.chooser import Chooser
from nptool.decoding.adaptive.cost import Calibration
from nptool.errors import NptoolError
from nptool.files import read_json, write_json

logger = logging.getLogger(__name__)

FORMAT = 1
"""Files of another format are not read."""
DISTURBED = 0.5
"""Steps took less than this share of their calibrated time: the calibration was measured while something else ran."""


class Store:
    """The calibration of one model, and its choosers."""

    def __init__(self, identify: Callable[[], dict[str, Any]], measure: Callable[[], Calibration]) -> None:
        """
        Args:
            identify: gives what a calibration depends on: model, machine, way to compute; for JSON.
            measure: calibrates.
        """
        self._identify, self._measure = identify, measure
        self._choosers: dict[str, Chooser] = {}

    @cached_property
    def key(self) -> dict[str, Any]:
        """What a calibration depends on."""
        return self._identify()

    @cached_property
    def path(self) -> Path:
        """The file."""
        digest = blake2b(json.dumps(self.key, sort_keys=True).encode(), digest_size=8)
        return cache_folder() / "decoding" / f"{digest.hexdigest()}.json"

    @cached_property
    def calibration(self) -> Calibration:
        """What steps cost: measured at the first use of the model on this machine."""
        saved = self._load()
        return self.calibrate() if saved is None else saved[0]

    def calibrate(self) -> Calibration:
        """Measure what steps cost, and keep it for the next use."""
        self.calibration = self._measure()
        self._save(None)
        return self.calibration

    def chooser(self, purpose: str = "") -> Chooser:
        """What decoding has shown, from text to text.

        Args:
            purpose: keeps one use apart from all others; its chooser begins with nothing, and is not kept.
        """
        if purpose not in self._choosers:
            saved = None if purpose else self._load()
            learnt = saved[1] if saved is not None and saved[0] == self.calibration else None
            self._choosers[purpose] = Chooser(self.calibration, learnt)
        return self._choosers[purpose]

    def keep(self) -> None:
        """Keep what was learnt for the next process, unless another one has calibrated meanwhile.

        A calibration that was disturbed is forgotten, and with it what was learnt: its times are wrong, and it may have
        run out of time before the wide steps.
        """
        chooser, saved = self._choosers.get(""), self._load()
        if chooser is None or not chooser.used or saved is None or saved[0] != self.calibration:
            return
        try:
            if chooser.costs.pace < DISTURBED:
                self.path.unlink(missing_ok=True)
            else:
                self._save(chooser.to_json())
        except OSError as error:
            logger.info("%s stays: %s", self.path, error)

    def _load(self) -> tuple[Calibration, Any] | None:
        try:
            saved = read_json(self.path) if self.path.is_file() else None
            if saved is None or saved["format"] != FORMAT or saved["key"] != self.key:
                return None
            calibration, learnt = Calibration.from_json(saved["calibration"]), saved["learnt"]
            Chooser(calibration, learnt)
        except (NptoolError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            logger.warning("%s is damaged and will be written again (%s)", self.path, error)
            return None
        return calibration, learnt

    def _save(self, learnt: Any) -> None:
        """Where the folder cannot be written, all is found out again next time: no error."""
        value = {"format": FORMAT, "key": self.key, "calibration": self.calibration.to_json(), "learnt": learnt}
        try:
            write_json(self.path, value)
        except (NptoolError, OSError) as error:
            logger.info("%s is not written: %s", self.path, error)
