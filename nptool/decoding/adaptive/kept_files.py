"""Values in the user's cache folder: one JSON file for each key, written atomically.

A file that is damaged, of another format or of something else is no error: what was in it is found out again, and the
file is written anew. Knows not what the values are.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar

from nptool.cache_folder import cache_folder
from nptool.errors import NptoolError
from nptool.files import read_json, write_json

logger = logging.getLogger(__name__)

ValueT = TypeVar("ValueT")
Key = Mapping[str, Any]


@dataclass(frozen=True)
class KeptFiles:
    """One kind of values."""

    name: str
    """Of the folder, and of a value in its files."""
    format: int
    """Files of another one are not read."""

    def path(self, key: Key) -> Path:
        """Where the value of `key` is kept."""
        digest = blake2b(json.dumps(key, sort_keys=True).encode(), digest_size=8)
        return cache_folder() / self.name / f"{digest.hexdigest()}.json"

    def load(self, key: Key, parse: Callable[[Any], ValueT]) -> ValueT | None:
        """What is kept for `key`; None where there is nothing that can be used.

        Args:
            parse: makes a value of JSON, or raises what such a function does of JSON that is none.
        """
        path = self.path(key)
        try:
            saved = read_json(path) if path.is_file() else None
            if saved is None or saved["format"] != self.format or saved["key"] != key:
                return None
            return parse(saved[self.name])
        except (NptoolError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            logger.warning("%s is damaged and will be written anew (%s)", path, error)
            return None

    def forget(self, key: Key) -> None:
        """Keep nothing for `key` any longer."""
        try:
            self.path(key).unlink(missing_ok=True)
        except OSError as error:
            logger.info("the %s stays: %s", self.name, error)

    def store(self, key: Key, value: Any) -> None:
        """Keep a value for JSON. Where the folder cannot be written it is found out anew next time: no error."""
        try:
            write_json(self.path(key), {"format": self.format, "key": dict(key), self.name: value})
        except (NptoolError, OSError) as error:
            logger.info("the %s is not kept: %s", self.name, error)
