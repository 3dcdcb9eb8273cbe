"""Heads that share one layer: from the checkpoint to llama.cpp, against transformers; exact texts; damaged files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import nn

import nptool
from nptool.checkpoints import load_model
from nptool.convert.conversion import convert
from nptool.convert.requantize import quantize
from nptool.decoding.answer import DecodeConfig
from nptool.decoding.loop.sampling import Sampling
from nptool.errors import CheckpointError, GgufError
from nptool.heads import COUNT_KEY, HEADS_WEIGHTS, KIND_KEY, SHARED, depth_tensor, layer_tensor
from nptool.llama.context import Context
from nptool.llama.gguf_parts import find_parts
from nptool.llama.gguf_summary import summarize
from nptool.llama.model import Model
from nptool.llama.shared_heads import SharedHeads

COUNT, RANK = 5, 3
ARCHITECTURES = {
    "LlamaForCausalLM": ("own", {}),
    "MistralForCausalLM": ("own", {"sliding_window": None}),
    "Qwen2ForCausalLM": ("qwen2", {"tie_word_embeddings": True}),
    "Qwen3ForCausalLM": ("qwen2", {"head_dim": 32}),
}
TOLERANCE = 1e-4
"""Of the spread of the logits, in F32."""
Make = Callable[..., Path]


@pytest.fixture
def checkpoint(make_checkpoint: Make, add_heads: Make) -> Path:
    return add_heads(make_checkpoint(), COUNT, rank=RANK)


def expected_drafts(directory: Path, ids: NDArray[np.int32]) -> NDArray[np.float32]:
    """Logits (T, K, V): after every position, each depth is the last row of transformers' one-layer model."""
    model: Any = load_model(directory)
    stored = {name: tensor.float() for name, tensor in load_file(directory / HEADS_WEIGHTS).items()}
    kept: list[torch.Tensor] = []
    model.model.layers[-1].register_forward_pre_hook(lambda layer, inputs: kept.append(inputs[0][0]))
    found = []
    with torch.inference_mode():
        model(torch.tensor([ids.tolist()]), use_cache=False)
        layer = model.model.layers[-1]
        layer.load_state_dict({name: stored[layer_tensor(name)] for name in layer.state_dict()})
        layer._forward_pre_hooks.clear()
        model.model.layers = nn.ModuleList([layer])
        model.config.num_hidden_layers = 1
        (z_TD,) = kept
        for seen in range(1, len(ids) + 1):
            for head in range(2, COUNT + 1):
                e_D, a_RD, b_DR = (stored[depth_tensor(head, name)] for name in "eab")
                x_D = z_TD[seen - 1] + e_D + b_DR @ (a_RD @ z_TD[seen - 1])
                rows = torch.stack([*z_TD[:seen], x_D])[None]
                found.append(model(inputs_embeds=rows, use_cache=False).logits[0, -1].numpy())
    return np.stack(found).reshape(len(ids), COUNT - 1, -1)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_drafts_are_those_of_transformers(
    architecture: str, make_checkpoint: Make, add_heads: Make, tmp_path: Path
) -> None:
    """Whatever the sizes of the batches before, and after a rollback."""
    tokenizer, settings = ARCHITECTURES[architecture]
    directory = add_heads(make_checkpoint(architecture, tokenizer, **settings), COUNT, rank=RANK)
    done = convert(directory, tmp_path / "model.gguf", type_name="f32", heads_type_name="f32")
    assert done.heads is not None
    assert (done.heads.count, done.heads.kind, len(done.heads.logits or ())) == (COUNT, SHARED, 1)
    ids = np.random.default_rng(5).integers(0, 400, 24).astype(np.int32)
    expected_TKV = expected_drafts(directory, ids)
    parts = find_parts(done.path)
    assert parts.depths is not None
    options: Any = {
        "width": 24,
        "batch": 64,
        "flash_attention": False,
        "cache_type_k": "f32",
        "cache_type_v": "f32",
        "threads": 1,
    }
    with Model.load(done.path) as model, Context(model, 64, **options) as context:
        context.choose_layer(parts.trunk_layer or 0)
        context.evaluate(ids, 0, show=True)
        z_TD = context.shown().copy()
        heads = SharedHeads(parts.heads[0], parts.depths, COUNT - 1, context)
        rng, compared = np.random.default_rng(1), 0
        for _ in range(3):
            heads.rollback(place := int(rng.integers(0, 6)) if compared else 0)
            while place < len(ids):
                end = min(len(ids), place + int(rng.integers(1, 6)))
                count = int(rng.integers(0, COUNT))
                if count == 0:
                    heads.read(z_TD[place:end], place, ids)
                else:
                    found_KV = heads.draft(z_TD[place:end], place, ids, count)
                    expected_KV = expected_TKV[end - 1, :count]
                    assert found_KV.shape == expected_KV.shape
                    assert np.abs(found_KV - expected_KV).max() < TOLERANCE * expected_KV.std()
                    compared += 1
                place = end
    assert compared > 8
    assert np.abs(expected_TKV[:, 0] - expected_TKV[:, 1]).max() > 0.1 * expected_TKV.std(), "depths are alike"


@pytest.mark.parametrize("kind", ["f32", "q8_0"])
def test_texts_are_those_of_autoregressive_decoding(kind: str, checkpoint: Path, tmp_path: Path) -> None:
    done = convert(checkpoint, tmp_path / "model.gguf", type_name=kind)
    with nptool.load(done.path, threads=1, context_length=96) as model:
        prompt = model.encode("the cat sat", raw=True)
        for sampling in (Sampling(), Sampling(0.8, seed=7)):
            for n in (COUNT, 3, 1):
                texts = []
                for name in ("ar", "heads"):
                    answer = model.answer(prompt, DecodeConfig(name, n, exact=True, max_tokens=40, sampling=sampling))
                    texts.append([token.id for token in answer])
                assert texts[0] == texts[1], n


def test_the_depths_keep_their_values_and_the_layer_its_type(checkpoint: Path, tmp_path: Path) -> None:
    done = convert(checkpoint, tmp_path / "model.gguf", type_name="f32", heads_type_name="f16")
    quantized = quantize(done.path, tmp_path / "small.gguf", "q8_0", heads_type_name="q8_0")
    assert (quantized.heads, quantized.heads_type) == (COUNT - 1, "q8_0")
    stored = load_file(checkpoint / HEADS_WEIGHTS)
    for path in (done.path, quantized.path):
        parts = find_parts(path)
        assert (parts.count, parts.kind, len(parts.heads)) == (COUNT, SHARED, 1)
        assert parts.depths is not None
        assert {COUNT_KEY: COUNT, KIND_KEY: SHARED}.items() <= parts.base.header.metadata.items()
        data = path.read_bytes()
        for name in "eab":
            expected = np.stack([stored[depth_tensor(head, name)].float().numpy() for head in range(2, COUNT + 1)])
            start = parts.depths.header.starts[name]
            assert data[start : start + expected.nbytes] == expected.tobytes()
    labels = [part.part for part in summarize(done.path).parts]
    assert labels == ["model", "layer of the heads", "depths of the heads"]


def test_heads_without_rank(make_checkpoint: Make, add_heads: Make, tmp_path: Path) -> None:
    directory = add_heads(make_checkpoint(), 3, rank=0)
    done = convert(directory, tmp_path / "model.gguf", type_name="f32")
    with nptool.load(done.path, threads=1, context_length=64) as model:
        prompt, options = model.encode("the cat", raw=True), {"n": 3, "exact": True, "max_tokens": 20}
        texts = [
            [token.id for token in model.answer(prompt, DecodeConfig(name, **options))] for name in ("ar", "heads")
        ]
    assert texts[0] == texts[1]
    depths = find_parts(done.path).depths
    assert depths is not None
    assert set(depths.header.tensors) == {"e"}


def test_damaged_heads_are_one_clear_error(checkpoint: Path, tmp_path: Path) -> None:
    path = convert(checkpoint, tmp_path / "model.gguf", type_name="f32").path
    data, parts = path.read_bytes(), find_parts(path)
    assert parts.depths is not None
    for end, text in (
        (parts.depths.offset + 100, "the depths of its heads: .* is truncated"),
        (parts.depths.offset, "is truncated: it ends before the depths of its heads"),
        (parts.heads[0].offset + 100, "the layer of its heads: .* is truncated"),
    ):
        path.write_bytes(data[:end])
        with pytest.raises(GgufError, match=text):
            find_parts(path)
    path.write_bytes(data.replace(b"shared", b"sharde"))
    with pytest.raises(GgufError, match="has heads of the kind 'sharde', which this nptool does not know"):
        find_parts(path)
    stored = load_file(checkpoint / HEADS_WEIGHTS)
    for change, text in (
        ({depth_tensor(3, "a"): torch.zeros(RANK + 1, 64)}, "depths.3.a has shape"),
        ({depth_tensor(9, "e"): torch.zeros(64)}, "has depths.9.e, for which"),
    ):
        save_file(stored | change, checkpoint / HEADS_WEIGHTS)
        with pytest.raises(CheckpointError, match=text):
            convert(checkpoint, tmp_path / "other.gguf")
    del stored[depth_tensor(3, "b")]
    save_file(stored, checkpoint / HEADS_WEIGHTS)
    with pytest.raises(CheckpointError, match=r"lacks depths\.3\.b, which .* with 5 shared heads has"):
        convert(checkpoint, tmp_path / "other.gguf")
