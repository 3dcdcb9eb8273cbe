"""Atomic writes: a file or directory appears under its final name whole, or not at all. Every writer uses them."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from nptool.errors import DataError, DiskFullError, NptoolError, UsageError

# Errors that mean that nothing can be written at this path.
_NO_PLACE = "EACCES EPERM EROFS ENOTDIR EISDIR EEXIST ENAMETOOLONG ELOOP EBUSY EINVAL EIO EFBIG"


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Translate the errors of the operating system while `path` is written.

    Raises:
        DiskFullError: no space or quota left.
        UsageError: `path` cannot be written: read-only, a directory of that name, ...
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(f"no space left on the disk while writing {path}; free some and run again") from error
        # ENOENT may be about a file that is read in the block; only the temporary file beside `path` counts.
        name = error.filename
        beside = isinstance(name, (str, Path)) and Path(name).parent == path.parent
        kind = errno.errorcode.get(error.errno or 0, "")
        if kind in _NO_PLACE.split() or (kind == "ENOENT" and beside):
            raise UsageError(f"cannot write {path}: {error.strerror}; choose another place") from error
        raise


@contextmanager
def atomic_file(path: str | Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary file that replaces `path` when the block ends without an exception.

    Args:
        mode: "wb" or "w" (UTF-8).

    Raises:
        DiskFullError, UsageError: see `disk_errors`; `path` is unchanged.
    """
    path = Path(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        try:
            with os.fdopen(handle, mode, encoding=None if "b" in mode else "utf-8") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(name, 0o666 & ~_umask())
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


@contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """Yield a temporary directory that replaces `path` when the block ends without an exception.

    Raises:
        DiskFullError, UsageError: see `disk_errors`; `path` is unchanged.
    """
    path = Path(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
        try:
            yield temporary
            os.chmod(temporary, 0o777 & ~_umask())
            _replace_directory(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    with atomic_file(path, "w") as stream:
        json.dump(value, stream, indent=2, ensure_ascii=False)
        stream.write("\n")


def read_json(path: str | Path, kind: type[NptoolError] = DataError) -> Any:
    """Read a JSON file.

    Raises:
        kind: the file is missing, cannot be read or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise kind(f"{path} does not exist") from error
    except OSError as error:
        raise kind(f"cannot read {path}: {error.strerror or error}") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise kind(f"{path} is not valid JSON: {error}") from error


def _replace_directory(temporary: Path, path: Path) -> None:
    """Move `temporary` to `path`. A directory cannot be replaced in one step, so an old one is moved away first."""
    if not path.exists():
        os.replace(temporary, path)
        return
    aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".old"))
    os.replace(path, aside / "old")
    os.replace(temporary, path)
    shutil.rmtree(aside, ignore_errors=True)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
