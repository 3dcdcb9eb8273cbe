"""Options of loading: what they refuse, and that what llama.cpp computes is what they say."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from fixtures.random_models import save_byte_model
from numpy.typing import NDArray
from random_model import Shape
from safetensors.torch import load_file, save_file

import nptool
from nptool.convert.conversion import convert
from nptool.errors import GgufError, UsageError
from nptool.llama.loading import LoadKeywords, LoadOptions

FULL_PRECISION: dict[str, Any] = {"threads": 1, "cache_type_k": "f32", "cache_type_v": "f32", "flash_attention": False}
SHAPE = Shape(heads=2, key_value_heads=1)
"""Heads of 32 values, a block of llama.cpp's quantized types."""
LONG = "abcdefghi jklmnop " * 14


def test_the_keywords_are_the_options() -> None:
    hints = typing.get_type_hints(LoadOptions)
    fields = [field.name for field in dataclasses.fields(LoadOptions)]
    assert typing.get_type_hints(LoadKeywords) == {name: hints[name] for name in fields}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cache_type_k": "q9"}, "-ctk is 'q9'; expected one of f32, f16"),
        ({"split_mode": "column"}, "-sm is 'column'; expected one of none, layer, row"),
        ({"batch_size": 32}, "-b is 32; it must be at least 64"),
        ({"batch_size": 128, "ubatch_size": 256}, "-ub is at most -b"),
        ({"main_gpu": -1}, "-mg is -1; it must be at least 0"),
        ({"rpc": ("localhost:50052",)}, "--rpc needs layers to put on its servers; add -ngl"),
        ({"chat_template": "chatml", "chat_template_file": Path("t")}, "two templates; give one of them"),
    ],
)
def test_mistakes(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        LoadOptions(**values)


def test_a_quantized_cache_needs_flash_attention_and_gets_it(tiny_gguf: Callable[..., Path]) -> None:
    with nptool.load(tiny_gguf(shape=SHAPE), threads=1, cache_type_v="q8_0") as model:
        settings = model.contexts.trunk(1).settings
    assert (settings.cache_type_k, settings.cache_type_v, settings.flash_attention) == ("f16", "q8_0", True)
    with (
        nptool.load(tiny_gguf(shape=SHAPE), threads=1, cache_type_v="q8_0", flash_attention=False) as model,
        pytest.raises(UsageError, match="a cache of type q8_0 needs flash attention"),
    ):
        model.contexts.trunk(1)


def test_more_shares_than_devices(tiny_gguf: Callable[..., Path]) -> None:
    with pytest.raises(UsageError, match=r"--tensor-split has 99 shares; llama.cpp has \d+ devices"):
        nptool.load(tiny_gguf(), tensor_split=(1.0,) * 99)


def test_without_rpc_in_llama_cpp_the_rebuild_is_named(
    tiny_gguf: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llama_cpp.llama_supports_rpc", lambda: False)
    with pytest.raises(UsageError, match=r"has no RPC.*rebuild it with CMAKE_ARGS=\"-DGGML_RPC=on\""):
        nptool.load(tiny_gguf(), gpu_layers=-1, rpc=("localhost:50052",))


@pytest.mark.parametrize("server", ["127.0.0.1:1", "localhost", "127.0.0.1:99999"])
def test_an_rpc_server_that_does_not_answer(
    tiny_gguf: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, server: str
) -> None:
    monkeypatch.setattr("llama_cpp.llama_supports_rpc", lambda: True)
    with pytest.raises(UsageError, match=f"no RPC server of llama.cpp answers at '{server}'"):
        nptool.load(tiny_gguf(), gpu_layers=-1, rpc=(server,))


@pytest.mark.parametrize("method", ["jacobi", "heads"])
@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 128},
        {"batch_size": 128, "ubatch_size": 64},
        {"cache_type_k": "q8_0", "cache_type_v": "q4_0"},
        {"cache_type_k": "f32", "cache_type_v": "bf16", "flash_attention": False},
    ],
)
def test_the_text_equals_autoregressive_decoding(
    tiny_gguf: Callable[..., Path], options: dict[str, Any], method: str
) -> None:
    with nptool.load(tiny_gguf(shape=SHAPE, heads=4), threads=1, **options) as model:
        assert len(model.encode(LONG)) > 200
        single = model.generate(LONG, method="ar", n=4, exact=True, max_tokens=30)
        parallel = model.generate(LONG, method=method, n=4, fixed=True, max_tokens=30)
    assert parallel.tokens == single.tokens


def test_batches_do_not_change_the_logits(tiny_gguf: Callable[..., Path]) -> None:
    """But for rounding: the rows of a batch are grouped in another way."""
    found = [_logits(tiny_gguf(), LONG, **options) for options in ({}, {"batch_size": 128, "ubatch_size": 64})]
    np.testing.assert_allclose(*found, atol=1e-4)


def test_an_adapter_equals_merged_weights(tmp_path: Path) -> None:
    """Against the checkpoint with W + (alpha / rank) B A, converted."""
    checkpoint = save_byte_model(tmp_path / "base", 2, hidden_size=32, intermediate_size=64)
    weights = load_file(checkpoint / "model.safetensors")
    adapter = gguf.GGUFWriter(tmp_path / "adapter.gguf", "llama")
    adapter.add_type("adapter")
    adapter.add_string("adapter.type", "lora")
    adapter.add_float32("adapter.lora.alpha", 6.0)
    generator = torch.Generator().manual_seed(0)
    for name, place in (("mlp.down_proj", "ffn_down"), ("self_attn.o_proj", "attn_output")):
        weight = weights[f"model.layers.1.{name}.weight"]
        a = torch.randn(3, weight.shape[1], generator=generator) / 8
        b = torch.randn(weight.shape[0], 3, generator=generator) / 8
        weights[f"model.layers.1.{name}.weight"] = weight + (6.0 / 3) * (b @ a)
        adapter.add_tensor(f"blk.1.{place}.weight.lora_a", a.numpy())
        adapter.add_tensor(f"blk.1.{place}.weight.lora_b", b.numpy())
    adapter.write_header_to_file()
    adapter.write_kv_data_to_file()
    adapter.write_tensors_to_file()
    adapter.close()
    base = convert(checkpoint, tmp_path / "base.gguf", type_name="f32").path
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    merged = convert(checkpoint, tmp_path / "merged.gguf", type_name="f32").path
    adapted = _logits(base, "select", lora=(tmp_path / "adapter.gguf",))
    np.testing.assert_allclose(adapted, _logits(merged, "select"), atol=1e-4)
    assert not np.allclose(adapted, _logits(base, "select"), atol=1e-2)


def test_an_adapter_that_cannot_be_used(tiny_gguf: Callable[..., Path], tmp_path: Path) -> None:
    names: Any = ("no.gguf",)
    with pytest.raises(GgufError, match=r"the LoRA adapter no.gguf is not a file"):
        nptool.load(tiny_gguf(), lora=names)
    with pytest.raises(GgufError, match=r"llama.cpp cannot add the LoRA adapter .*\.gguf to .*\.gguf: "):
        nptool.load(tiny_gguf(), lora=(tiny_gguf(),))


def _logits(path: Path, text: str, **options: Any) -> NDArray[np.float32]:
    """Of the last token of a text."""
    with nptool.load(path, **(FULL_PRECISION | options)) as model:
        ids = model.encode(text, raw=True)
        context = model.contexts.trunk(1)
        for start in range(0, len(ids) - 1, context.batch_limit):
            end = min(start + context.batch_limit, len(ids) - 1)
            context.evaluate(ids[start:end], start, outputs=False)
        return context.evaluate(ids[-1:], len(ids) - 1)[0].copy()
