"""What every test gets: a cache folder of its own session, so that nothing is measured into the user's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nptool.cache_folder import OVERRIDE


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv(OVERRIDE, str(folder))
        yield folder
