"""Calibrations in the user's cache folder: one for each model, machine and way to compute. Knows no llama.cpp."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nptool.decoding.adaptive.calibration import Calibration
from nptool.decoding.adaptive.kept_files import KeptFiles

_FILES = KeptFiles("calibration", format=1)


def calibration_file(key: Mapping[str, Any]) -> Path:
    """Where the calibration of `key` is kept."""
    return _FILES.path(key)


def load_calibration(key: Mapping[str, Any]) -> Calibration | None:
    """What is kept for `key`; None where there is nothing that can be used."""
    return _FILES.load(key, Calibration.from_json)


def forget_calibration(key: Mapping[str, Any]) -> None:
    """Let the next use measure anew."""
    _FILES.forget(key)


def store_calibration(key: Mapping[str, Any], calibration: Calibration) -> None:
    """Keep it for the next use."""
    _FILES.store(key, calibration.to_json())
