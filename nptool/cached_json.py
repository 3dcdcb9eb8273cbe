"""JSON values in the user's cache folder, each in a file of its own.

A file that is missing, damaged or foreign counts as no value: only what can be measured again is kept here.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

from nptool.cache_folder import cache_folder
from nptool.errors import NptoolError
from nptool.files import read_json, write_json

logger = logging.getLogger(__name__)


class CachedJson:
    """The value of one key."""

    def __init__(self, folder: str, key: Mapping[str, Any]) -> None:
        """Args: `folder` is a name inside the cache folder."""
        self._key = dict(key)
        self.path = cache_folder() / folder / f"{_digest(self._key)}.json"

    def load(self) -> Any:
        """What was stored, or None."""
        try:
            if not self.path.is_file():
                return None
            saved = read_json(self.path)
            if saved["digest"] != _digest([self._key, saved["value"]]):
                raise ValueError("its digest is another one")
        except (NptoolError, OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            logger.warning("%s is damaged and will be written again (%s)", self.path, error)
            return None
        return saved["value"]

    def store(self, value: Any) -> None:
        """Keep `value`, if the folder can be written."""
        # As JSON gives it back, where numbers among the keys of a mapping are text.
        value = json.loads(json.dumps(value))
        try:
            write_json(self.path, {"digest": _digest([self._key, value]), "value": value})
        except (NptoolError, OSError) as error:
            logger.info("%s is not written: %s", self.path, error)

    def forget(self) -> None:
        """Remove the value."""
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            logger.info("%s stays: %s", self.path, error)


def _digest(value: Any) -> str:
    return blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=8).hexdigest()
