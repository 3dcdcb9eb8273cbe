"""A temporary place beside the final file.

llama.cpp takes file names, so the open stream of `nptool.files.atomic_file` does not serve here. Nothing is left when
the block ends with an exception, Ctrl-C included.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from nptool.errors import UsageError
from nptool.files import disk_errors


@contextmanager
def staged_file(path: Path) -> Iterator[Path]:
    """Yield a path, in a temporary directory beside `path`, whose file replaces `path` when the block ends.

    Other files in that directory are removed.

    Raises:
        DiskFullError: the disk filled up; `path` is as it was before.
        UsageError: the place cannot be written to.
    """
    with staging_folder(path) as folder:
        staged = folder / path.name
        yield staged
        with staged.open("rb") as stream:
            os.fsync(stream.fileno())
        os.replace(staged, path)


@contextmanager
def staging_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary directory beside `path`, which is removed with all that is in it.

    Raises:
        DiskFullError, UsageError: see `staged_file`.
    """
    if path.is_dir():
        raise UsageError(f"cannot write {path}: it is a directory; name the file, for example {path / 'model.gguf'}")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(
            dir=path.parent, prefix=f".{path.name}.", suffix=".tmp", ignore_cleanup_errors=True
        ) as directory:
            yield Path(directory)
