"""Every test runs without a CUDA GPU and with a cache folder of its own session.

Tests compare with references on the CPU, bit for bit where the arithmetic is the same. `benchmarks/cuda.py` measures
GPUs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from nptool.cache_folder import OVERRIDE

# Fixtures of several folders; those of one folder are in its conftest.py.
pytest_plugins = [
    "fixtures.base_models",
    "fixtures.checkpoints",
    "fixtures.gguf_files",
    "fixtures.scripted",
    "fixtures.trajectories",
]

# Set before torch and llama.cpp are loaded; processes that tests start inherit it.
os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv(OVERRIDE, str(folder))
        yield folder
