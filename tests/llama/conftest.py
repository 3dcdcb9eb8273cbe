"""Random two-layer GGUFs, written once for each test session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from random_model import Shape, write_random_model


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Path of a random GGUF with the given type and options; one file for each combination."""
    folder = tmp_path_factory.mktemp("gguf")
    written: dict[str, Path] = {}

    def make(kind: str = "f32", **options: object) -> Path:
        key = f"{kind}{sorted(options.items())}"
        if key not in written:
            written[key] = write_random_model(folder / f"{len(written)}.gguf", Shape(), kind=kind, **options)
        return written[key]

    return make
