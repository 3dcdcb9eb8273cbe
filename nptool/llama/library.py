"""llama.cpp's shared library: initialized once, its log sent to Python's logging, its last errors kept.

Only the low-level ctypes interface of llama_cpp is used.
"""

from __future__ import annotations

import ctypes
import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Self

import llama_cpp

logger = logging.getLogger("nptool.llama.cpp")

LIBRARY = llama_cpp.llama_cpp._lib
"""llama.cpp's shared library, for functions that llama_cpp does not bind."""

# llama.cpp's level of an error, and of a piece of a line.
_ERROR, _CONTINUE = 4, 5

_errors: deque[str] = deque(maxlen=32)


class Closable(ABC):
    """Something that llama.cpp allocated; `close` or the end of a `with` block frees it."""

    @abstractmethod
    def close(self) -> None:
        """Free it. A second call does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _receive(level: int, text: bytes | None, _user: Any) -> None:
    """Log a line at DEBUG, so that it shows only on request; keep it if it is an error."""
    line = (text or b"").decode("utf-8", errors="replace").rstrip("\n")
    if not line or level == _CONTINUE:
        return
    if level == _ERROR:
        _errors.append(line)
    logger.debug("%s", line)


# ctypes callbacks must outlive every call that llama.cpp may make, so this one lives as long as the module.
_callback = llama_cpp.llama_log_callback(_receive)


@cache
def initialize() -> None:
    """Start llama.cpp's backends and take over its log, on the first call."""
    llama_cpp.llama_log_set(_callback, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()


@contextmanager
def error_lines() -> Iterator[list[str]]:
    """Collect llama.cpp's errors inside the block; the list is filled when the block ends."""
    _errors.clear()
    lines: list[str] = []
    try:
        yield lines
    finally:
        lines.extend(_errors)


def cause(lines: list[str]) -> str:
    """The first of llama.cpp's error lines, without the name of the C function."""
    if not lines:
        return "llama.cpp gives no reason (run with --debug for its log)"
    function, separator, rest = lines[0].partition(": ")
    return rest if separator and " " not in function else lines[0]


def supports_gpu() -> bool:
    """Whether this build of llama.cpp can put layers on a GPU."""
    initialize()
    return bool(llama_cpp.llama_supports_gpu_offload())
