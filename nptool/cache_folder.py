"""The user's cache folder, for measurements that can be repeated."""

from __future__ import annotations

import os
import sys
from pathlib import Path

OVERRIDE = "NPTOOL_CACHE"
"""Environment variable with another folder."""


def cache_folder() -> Path:
    """`NPTOOL_CACHE`, or nptool's folder in the operating system's place for caches. It may not exist yet."""
    if given := os.environ.get(OVERRIDE):
        return Path(given)
    if given := os.environ.get("XDG_CACHE_HOME"):
        return Path(given) / "nptool"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "nptool" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "nptool"
    return Path.home() / ".cache" / "nptool"
