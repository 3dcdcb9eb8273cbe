"""llama.cpp's shared library, initialised once: its log goes to Python's logging, its last errors are kept.

Only the low-level ctypes interface of llama_cpp is used. Knows no model and no context.
"""

from __future__ import annotations

import ctypes
import logging
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import llama_cpp

logger = logging.getLogger("nptool.llama.cpp")

LEVEL_WARN = 3
LEVEL_ERROR = 4
LEVEL_CONTINUE = 5
_PYTHON_LEVELS = {LEVEL_WARN: logging.INFO, LEVEL_ERROR: logging.WARNING}

_errors: deque[str] = deque(maxlen=32)


def _receive(level: int, text: bytes | None, _user: Any) -> None:
    """llama.cpp's log: everything at DEBUG, so that nothing shows unless it is asked for; errors are remembered."""
    line = (text or b"").decode("utf-8", errors="replace").rstrip("\n")
    if not line or level == LEVEL_CONTINUE:
        return
    if level == LEVEL_ERROR:
        _errors.append(line)
    logger.debug("%s", line)


# ctypes callbacks must outlive every call llama.cpp may make, so this one lives as long as the module.
_callback = llama_cpp.llama_log_callback(_receive)


@cache
def initialise() -> None:
    """Start llama.cpp's backends and take over its log. Later calls do nothing."""
    llama_cpp.llama_log_set(_callback, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()


@contextmanager
def error_lines() -> Iterator[list[str]]:
    """Collect what llama.cpp reports as errors inside the block; the list is filled when the block ends."""
    _errors.clear()
    lines: list[str] = []
    try:
        yield lines
    finally:
        lines.extend(_errors)


def cause(lines: list[str]) -> str:
    """The most telling of llama.cpp's error lines: the first, without the name of the C function."""
    if not lines:
        return "llama.cpp gives no reason (run with --debug for its log)"
    function, separator, rest = lines[0].partition(": ")
    return rest if separator and " " not in function else lines[0]


def supports_gpu() -> bool:
    """Whether this build of llama.cpp can put layers on a GPU."""
    initialise()
    return bool(llama_cpp.llama_supports_gpu_offload())
