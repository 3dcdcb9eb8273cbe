"""Atomic writes: whole or not at all."""

import errno
import os
from pathlib import Path

import pytest

from nptool.errors import DataError, DiskFullError, UsageError
from nptool.files import atomic_directory, atomic_file, read_json, write_json


def test_a_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file.bin"
    with atomic_file(target) as stream:
        stream.write(b"half")
        assert not target.exists()
        stream.write(b" and half")
    assert target.read_bytes() == b"half and half"
    assert [path.name for path in target.parent.iterdir()] == ["file.bin"]


@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt()])
def test_an_exception_keeps_the_old_file_and_leaves_no_other(tmp_path: Path, error: BaseException) -> None:
    target = tmp_path / "file.txt"
    target.write_text("old")

    def write_half() -> None:
        with atomic_file(target, "w") as stream:
            stream.write("new")
            raise error

    with pytest.raises(type(error)):
        write_half()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_full_disk_is_one_clear_line(tmp_path: Path) -> None:
    target = tmp_path / "file.bin"
    with pytest.raises(DiskFullError) as caught, atomic_file(target):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert str(caught.value) == f"no space left on the disk while writing {target}; free some and run again"
    assert list(tmp_path.iterdir()) == []


def test_a_file_where_a_folder_belongs(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"cannot write .*/file/inside: .*; choose another place"):  # noqa: SIM117
        with atomic_file(tmp_path / "file" / "inside"):
            pass


@pytest.mark.parametrize("number", [errno.EROFS, errno.EIO, errno.ENAMETOOLONG])
def test_a_place_that_takes_no_file(number: int, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught, atomic_file(tmp_path / "file.bin"):
        raise OSError(number, os.strerror(number))
    assert str(caught.value) == f"cannot write {tmp_path}/file.bin: {os.strerror(number)}; choose another place"


def test_a_folder_that_takes_no_file() -> None:
    """No file can be created in /proc; the error there is that it does not exist."""
    with pytest.raises(UsageError, match=r"^cannot write /proc/file\.bin: .*; choose another place$"):  # noqa: SIM117
        with atomic_file("/proc/file.bin"):
            pass


def test_another_file_that_is_missing_is_not_the_one_that_is_written(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_file(tmp_path / "file.bin"):
        (tmp_path / "elsewhere" / "source.bin").read_bytes()
    assert list(tmp_path.iterdir()) == []


def test_a_directory_replaces_the_old_one_whole(tmp_path: Path) -> None:
    target = tmp_path / "model"
    for content in ("first", "second"):
        with atomic_directory(target) as temporary:
            (temporary / content).write_text(content)
    assert [path.name for path in target.iterdir()] == ["second"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_interrupted_directory_keeps_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with atomic_directory(target) as temporary:
        (temporary / "weights").write_text("old")

    def write_half() -> None:
        with atomic_directory(target) as temporary:
            (temporary / "weights").write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert (target / "weights").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_json_round_trip_and_its_errors(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    write_json(path, {"é": [1, None]})
    assert read_json(path) == {"é": [1, None]}
    with pytest.raises(DataError, match=r"missing\.json does not exist"):
        read_json(tmp_path / "missing.json")
    path.write_text("{")
    with pytest.raises(DataError, match=r"value\.json is not valid JSON"):
        read_json(path)
