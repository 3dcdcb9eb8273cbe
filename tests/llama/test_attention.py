"""When llama.cpp's fused attention is the default, and that loading a model uses this default."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import nptool
from nptool.llama.attention import prefers_fused
from nptool.llama.loading import LoadOptions

# Sizes of Llama 3.2 1B.
BILLION = {"layers": 16, "hidden_size": 2048, "attention_heads": 32, "parameters": 1_235_814_400}
# Of the embedded default.
SMALL = {"layers": 6, "hidden_size": 256, "attention_heads": 4, "parameters": 5_400_000}


@pytest.mark.parametrize(
    ("sizes", "capacity", "settings", "fused"),
    [
        (BILLION, 4096, {}, False),
        (BILLION, 4096, {"gpu_layers": -1}, True),
        (BILLION, 4096, {"gpu_layers": 4}, True),
        (BILLION, 4096, {"cache_type_v": "q8_0"}, True),
        (BILLION, 4096, {"cache_type_k": "bf16"}, False),
        # 32 heads, 512 rows, 4 bytes: 64 KiB for each token.
        (BILLION, 16384, {}, False),
        (BILLION, 16385, {}, True),
        (SMALL, 1024, {}, True),
        # 2 * 256 * 6 * 256 products in attention are a tenth of 7,864,320.
        (SMALL | {"parameters": 7_864_319}, 1024, {}, True),
        (SMALL | {"parameters": 7_864_321}, 1024, {}, False),
    ],
)
def test_where_the_fused_kernel_is_used(
    monkeypatch: pytest.MonkeyPatch, sizes: dict[str, int], capacity: int, settings: dict[str, Any], fused: bool
) -> None:
    monkeypatch.setattr("nptool.llama.attention.supports_gpu", lambda: True)
    model: Any = SimpleNamespace(**sizes)
    assert prefers_fused(model, LoadOptions(context_length=capacity, **settings)) is fused


def test_a_model_is_loaded_with_it_unless_told_otherwise(tiny_gguf: Callable[..., Path]) -> None:
    path = tiny_gguf(heads=2)
    for told, used in ((None, True), (True, True), (False, False)):
        with nptool.load(path, threads=1, flash_attention=told) as model:
            assert model.contexts.trunk(1).settings.flash_attention is used


@pytest.mark.parametrize("gpu_layers", [0, -1])
def test_a_large_model_is_loaded_without_it(
    tiny_gguf: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, gpu_layers: int
) -> None:
    """On a CPU, also if `-ngl` has no effect."""
    monkeypatch.setattr("nptool.llama.attention._LARGE_SHARE", 1.0)
    monkeypatch.setattr("nptool.llama.attention.supports_gpu", lambda: False)
    with nptool.load(tiny_gguf(heads=2), threads=1, gpu_layers=gpu_layers) as model:
        assert model.contexts.trunk(1).settings.flash_attention is False
        model.contexts.open(4, 2)
