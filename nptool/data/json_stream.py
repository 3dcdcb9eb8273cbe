"""Stream the values of a JSON file with their line numbers; memory holds one value and a buffer.

It may be JSONL, an array of objects, objects one after another over several lines each, or one object that holds the
array in one of `WRAPPERS`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from nptool.errors import DataError

BUFFER_CHARS = 1 << 16
WRAPPERS = ("data", "rows", "examples", "instances", "train")
SPACE = " \t\r\n"
# A number that the buffer cuts off may end in up to this many characters ("e+") that do not parse yet.
NUMBER_TAIL = 2


def read_json_objects(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield (line number from 1, value) for every record; inside a wrapper its number from 1.

    Raises:
        DataError: malformed JSON; the message has file and line.
        UnicodeDecodeError: the file is not UTF-8.
    """
    with path.open(encoding="utf-8-sig") as stream:
        head = ""
        while not head.strip():
            head = stream.readline(BUFFER_CHARS)
            if not head:
                return
    if _is_whole(head) and not head.lstrip().startswith("["):
        yield from _unwrapped(_lines(path))
        return
    with path.open(encoding="utf-8-sig") as stream:
        values = _Values(path, stream)
        yield from values.elements() if head.lstrip().startswith("[") else _unwrapped(values.sequence())


def _is_whole(line: str) -> bool:
    """Whether a line is a value by itself, or is no beginning of one either: then its error is the one to show."""
    try:
        json.loads(line)
    except json.JSONDecodeError as error:
        return error.pos < len(line.rstrip())
    except (ValueError, RecursionError):
        return True
    return True


def _unwrapped(values: Iterator[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
    """The values, or the records inside the only one."""
    line, value = next(values)
    inside = next((value[name] for name in WRAPPERS if name in value), None) if isinstance(value, dict) else None
    records = inside if isinstance(inside, list) and all(isinstance(element, dict) for element in inside) else []
    second = next(values, None) if records else None
    if records and second is None:
        yield from enumerate(records, start=1)
        return
    yield line, value
    if second is not None:
        yield second
    yield from values


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open(encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                yield number, json.loads(line.rstrip("\r\n"))
            except json.JSONDecodeError as error:
                raise DataError(
                    f"{path}:{number}: malformed JSON ({error.msg} at column {error.colno}); "
                    "expected one JSON object per line, or one array of objects"
                ) from error
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}:{number}: {_unreadable(error)}") from error


def _unreadable(error: Exception) -> str:
    """Why Python cannot hold a value of valid JSON."""
    return "values nested too deeply" if isinstance(error, RecursionError) else f"a value that cannot be read: {error}"


class _Values:
    """Incremental reader of an array, or of values one after another."""

    def __init__(self, path: Path, stream: IO[str]) -> None:
        self._path = path
        self._stream = stream
        self._decoder = json.JSONDecoder()
        self._buffer = ""
        self._position = 0
        self._line = 1

    def elements(self) -> Iterator[tuple[int, Any]]:
        """Each element with its first line, from 1.

        Raises:
            DataError: malformed JSON, or something follows the array.
        """
        self._expect("[")
        more = self._next() != "]"
        while more:
            self._next()
            line = self._line
            yield line, self._value()
            if more := self._next() != "]":
                self._expect(",")
        self._expect("]")
        if self._next():
            raise self._malformed("nothing after the array")

    def sequence(self) -> Iterator[tuple[int, Any]]:
        """Each value of a file without an array, with its first line.

        Raises:
            DataError: malformed JSON.
        """
        while self._next():
            line = self._line
            yield line, self._value()

    def _next(self) -> str:
        """Skip white space and return the next character, "" at the end of the file."""
        while True:
            while self._position < len(self._buffer) and self._buffer[self._position] in SPACE:
                self._line += self._buffer[self._position] == "\n"
                self._position += 1
            if self._position < len(self._buffer):
                return self._buffer[self._position]
            if not self._fill():
                return ""

    def _expect(self, character: str) -> None:
        if self._next() != character:
            raise self._malformed(f"{character!r}")
        self._position += 1

    def _value(self) -> Any:
        while True:
            try:
                value, end = self._decoder.raw_decode(self._buffer, self._position)
            except json.JSONDecodeError as error:
                # The buffer may have cut the value off.
                if self._fill():
                    continue
                self._line += self._buffer.count("\n", self._position, error.pos)
                raise self._malformed("an object") from error
            except (ValueError, RecursionError) as error:
                raise DataError(f"{self._path}:{self._line}: {_unreadable(error)}") from error
            # A number may continue in the next read.
            if end + NUMBER_TAIL >= len(self._buffer) and self._fill():
                continue
            self._line += self._buffer.count("\n", self._position, end)
            self._position = end
            return value

    def _fill(self) -> bool:
        """Read more and drop what is consumed; the buffer doubles if one value is larger than it."""
        rest = self._buffer[self._position :]
        more = self._stream.read(max(BUFFER_CHARS, len(rest)))
        if more:
            self._buffer = rest + more
            self._position = 0
        return bool(more)

    def _malformed(self, expected: str) -> DataError:
        found = self._buffer[self._position : self._position + 20] or "the end of the file"
        return DataError(f"{self._path}:{self._line}: malformed JSON: expected {expected}, found {found!r}")
