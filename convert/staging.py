"""A place beside the final file where it grows until it is whole.

llama.cpp's quantizer and loader want names of files, so the temporary file of `nptool.files.atomic_file`, an open
stream, does not do here. What is left when the block ends with an exception (Ctrl-C included) is removed.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nptool.errors import UsageError
from nptool.files import disk_errors


@contextmanager
def staged_file(path: Path) -> Iterator[Path]:
    """Yield the name of a file, in a directory of its own beside `path`, that takes `path`'s place at the end.

    Other files may be made beside the yielded one; they are removed.

    Raises:
        DiskFullError: the disk filled up; `path` is as it was before.
        UsageError: the place cannot be written to.
    """
    if path.is_dir():
        raise UsageError(f"cannot write {path}: it is a directory; name the file, for example {path / 'model.gguf'}")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        directory = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
        try:
            yield directory / path.name
            with (directory / path.name).open("rb") as stream:
                os.fsync(stream.fileno())
            os.replace(directory / path.name, path)
        finally:
            shutil.rmtree(directory, ignore_errors=True)
