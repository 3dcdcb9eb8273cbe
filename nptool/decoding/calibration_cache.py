"""Calibrations in the user's cache folder: one JSON file for each model, machine and way to compute.

A file that is damaged, of another format or of something else is no error: it is measured again. Knows no llama.cpp.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

from nptool.cache_folder import cache_folder
from nptool.decoding.calibration import Calibration
from nptool.errors import NptoolError
from nptool.files import read_json, write_json

logger = logging.getLogger(__name__)

FORMAT = 1
_FOLDER = "calibration"


def calibration_file(key: Mapping[str, Any]) -> Path:
    """Where the calibration of `key` is kept."""
    digest = blake2b(json.dumps(key, sort_keys=True).encode(), digest_size=8)
    return cache_folder() / _FOLDER / f"{digest.hexdigest()}.json"


def load_calibration(key: Mapping[str, Any]) -> Calibration | None:
    """What is kept for `key`; None where there is nothing that can be used."""
    path = calibration_file(key)
    try:
        saved = read_json(path) if path.is_file() else None
        if saved is None or saved["format"] != FORMAT or saved["key"] != key:
            return None
        return Calibration.from_json(saved["calibration"])
    except (NptoolError, OSError, ValueError, TypeError, KeyError) as error:
        logger.info("%s is measured again: %s", path, error)
        return None


def store_calibration(key: Mapping[str, Any], calibration: Calibration) -> None:
    """Keep it. Where the folder cannot be written it is measured anew next time, which is no error."""
    path = calibration_file(key)
    try:
        write_json(path, {"format": FORMAT, "key": dict(key), "calibration": calibration.to_json()})
    except (NptoolError, OSError) as error:
        logger.info("the calibration is not kept: %s", error)
