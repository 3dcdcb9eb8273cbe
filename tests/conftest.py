"""What every test gets: no CUDA GPU, and a cache folder of its session, so that nothing is measured into the user's.

Tests compare with references on the CPU, to the last bit where there are no other bits. What a GPU does,
`benchmarks/cuda.py` measures.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from nptool.cache_folder import OVERRIDE

# Fixtures that tests of several folders use; those of one folder are in its conftest.py.
pytest_plugins = ["fixtures.base_models", "fixtures.checkpoints", "fixtures.gguf_files", "fixtures.trajectories"]

# Before torch or llama.cpp looks for one, and for the processes that tests start.
os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv(OVERRIDE, str(folder))
        yield folder
