"""C's `FILE *`, from which llama.cpp reads a GGUF that begins in the middle of a file."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nptool.errors import GgufError

# The C library that llama.cpp is linked with; on Windows it has to be named.
_LIBRARY = ctypes.CDLL("ucrtbase" if os.name == "nt" else None)
_FDOPEN = "_fdopen" if os.name == "nt" else "fdopen"
_open = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p)((_FDOPEN, _LIBRARY))
_close = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(("fclose", _LIBRARY))


@contextmanager
def c_stream(path: Path, offset: int) -> Iterator[int]:
    """A `FILE *` that reads `path` from byte `offset` on, closed at the end of the block.

    Raises:
        GgufError: the file cannot be opened.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        # The stream starts at the descriptor's position; fseek would be limited to 2 GiB on some platforms.
        os.lseek(descriptor, offset, os.SEEK_SET)
    except OSError as error:
        raise GgufError(f"cannot read {path}: {error.strerror or error}") from error
    stream = _open(descriptor, b"rb")
    if not stream:
        os.close(descriptor)
        raise GgufError(f"cannot read {path}: the C library cannot open a stream on it")
    try:
        yield int(stream)
    finally:
        _close(stream)
