"""What decoding has shown, in the user's cache folder beside the calibrations: a file for each of these and method."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nptool.decoding.adaptive.kept_files import KeptFiles
from nptool.decoding.adaptive.learnt import Learnt

_FILES = KeptFiles("experience", format=5)


def learnt_file(key: Mapping[str, Any], method: str) -> Path:
    """Where it is kept for a method.

    Args:
        key: of the calibration.
    """
    return _FILES.path(_with(key, method))


def load_learnt(key: Mapping[str, Any], method: str) -> Learnt | None:
    """What is kept; None where there is nothing that can be used."""
    return _FILES.load(_with(key, method), Learnt.from_json)


def store_learnt(key: Mapping[str, Any], method: str, learnt: Learnt) -> None:
    """Keep it for the next process; of two at a time, what the last one learnt stays."""
    _FILES.store(_with(key, method), learnt.to_json())


def _with(key: Mapping[str, Any], method: str) -> dict[str, Any]:
    return {**key, "method": method}
