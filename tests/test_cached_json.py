"""Where the user's cache folder is, and what becomes of a value in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from nptool.cache_folder import OVERRIDE, cache_folder
from nptool.cached_json import CachedJson


@pytest.mark.parametrize(
    ("variables", "platform", "expected"),
    [
        ({OVERRIDE: "/x", "XDG_CACHE_HOME": "/y"}, "linux", "/x"),
        ({"XDG_CACHE_HOME": "/y"}, "darwin", "/y/nptool"),
        ({"HOME": "/h"}, "linux", "/h/.cache/nptool"),
        ({"HOME": "/h"}, "darwin", "/h/Library/Caches/nptool"),
        ({"HOME": "/h", "LOCALAPPDATA": "/l"}, "win32", "/l/nptool/cache"),
    ],
)
def test_the_folder_is_the_systems(
    variables: dict[str, str], platform: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (OVERRIDE, "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.platform", platform)
    assert cache_folder() == Path(expected)


def test_a_value_is_found_under_its_key_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OVERRIDE, str(tmp_path))
    first = CachedJson("kind", {"model": "a"})
    assert first.load() is None
    first.store([1, {"two": [3.5]}])
    assert CachedJson("kind", {"model": "a"}).load() == [1, {"two": [3.5]}]
    assert CachedJson("kind", {"model": "b"}).load() is None
    assert CachedJson("other", {"model": "a"}).load() is None
    first.forget()
    first.forget()
    assert first.load() is None


def test_a_file_under_another_key_has_no_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OVERRIDE, str(tmp_path))
    first, second = CachedJson("kind", {"model": "a"}), CachedJson("kind", {"model": "b"})
    first.store(1)
    first.path.rename(second.path)
    assert second.load() is None
