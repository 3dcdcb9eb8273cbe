"""What is in the file: values by type, metadata, memory while writing."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from nptool.convert.conversion import convert
from nptool.convert.file_types import FILE_TYPES
from nptool.convert.layers.rope import Rope, pair_order
from nptool.convert.layers.weights import read_index, same_values


def contents(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Metadata and tensors as gguf's own reader sees them."""
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    return fields, {tensor.name: tensor for tensor in reader.tensors}


def values(tensor: Any) -> np.ndarray[Any, Any]:
    return np.asarray(gguf.dequantize(tensor.data, tensor.tensor_type), np.float32)


def test_numbers_are_llama_cpps() -> None:
    for name, chosen in FILE_TYPES.items():
        member = "ALL_F32" if name == "f32" else f"MOSTLY_{name.upper()}"
        assert chosen.number == gguf.LlamaFileType[member]


@pytest.mark.parametrize(
    ("type_name", "kind", "rounding"),
    [("f32", "F32", 0.0), ("f16", "F16", 5e-4), ("bf16", "BF16", 4e-3), ("q8_0", "Q8_0", 2e-2)],
)
def test_values_of_a_type(
    type_name: str, kind: str, rounding: float, make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    directory = make_checkpoint("Qwen3ForCausalLM", "qwen2")
    done = convert(directory, tmp_path / "model.gguf", type_name=type_name)
    assert done.remarks == ()
    metadata, tensors = contents(done.path)
    stored = load_file(directory / "model.safetensors")
    assert metadata["general.file_type"] == FILE_TYPES[type_name].number
    assert done.parameters == sum(weight.numel() for weight in stored.values())
    assert done.bytes == done.path.stat().st_size
    for name, source in {
        "token_embd.weight": "model.embed_tokens.weight",
        "blk.1.attn_q.weight": "model.layers.1.self_attn.q_proj.weight",
        "blk.0.ffn_down.weight": "model.layers.0.mlp.down_proj.weight",
        "output.weight": "lm_head.weight",
    }.items():
        assert tensors[name].tensor_type.name == kind
        expected = stored[source].numpy()
        assert np.abs(values(tensors[name]) - expected).max() <= rounding * np.abs(expected).max()
    for name in ("blk.0.attn_norm.weight", "blk.1.attn_k_norm.weight", "output_norm.weight"):
        assert tensors[name].tensor_type.name == "F32"
    assert np.array_equal(values(tensors["output_norm.weight"]), stored["model.norm.weight"].numpy())


def test_rows_that_no_block_divides_stay_f16(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    directory = make_checkpoint(intermediate_size=80)
    done = convert(directory, tmp_path / "model.gguf", type_name="q8_0")
    _, tensors = contents(done.path)
    assert tensors["blk.0.ffn_down.weight"].tensor_type.name == "F16"
    assert tensors["blk.0.ffn_up.weight"].tensor_type.name == "Q8_0"
    assert done.remarks == (
        "2 tensors, whose rows do not divide into blocks of q8_0, are f16 instead (the first: blk.0.ffn_down.weight)",
    )


def test_types_of_the_quantizer(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    directory = make_checkpoint(hidden_size=256, intermediate_size=288, head_dim=64, dtype=torch.bfloat16)
    steps: list[str] = []
    done = convert(directory, tmp_path / "model.gguf", type_name="Q4_K_M", progress=lambda step, *_: steps.append(step))
    metadata, tensors = contents(done.path)
    assert done.file_type == "q4_k_m"
    assert metadata["general.file_type"] == 15
    assert tensors["blk.0.attn_q.weight"].tensor_type.name == "Q4_K"
    assert tensors["blk.0.ffn_down.weight"].tensor_type.name in ("Q5_0", "Q8_0")
    assert tensors["blk.0.attn_norm.weight"].tensor_type.name == "F32"
    assert len(done.remarks) == 1
    assert done.remarks[0].startswith("2 tensors, whose rows do not divide into blocks of q4_k_m, are q5_0")
    assert done.remarks[0].endswith(" instead (the first: blk.0.ffn_down.weight)")
    assert list(dict.fromkeys(steps)) == ["writing tensors", "verifying bf16", "quantizing", "verifying q4_k_m"]
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


def test_metadata(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    rope = {"rope_type": "linear", "rope_theta": 100000.0, "factor": 4.0}
    directory = make_checkpoint(rope_parameters=rope, head_dim=32)
    (directory / "nptool.json").write_text(
        '{"method": "cllm", "block_size": 16, "measured": {"tokens_per_forward": 3.75, "block_size": 8}}'
    )
    metadata, _ = contents(convert(directory, tmp_path / "model.gguf", verified=False).path)
    expected = {
        "general.architecture": "llama",
        "general.type": "model",
        "general.name": directory.name,
        "general.quantization_version": 2,
        "nptool.method": "cllm",
        "nptool.block_size": 16,
        "nptool.measured.tokens_per_forward": 3.75,
        "nptool.measured.block_size": 8,
        "llama.vocab_size": 512,
        "llama.context_length": 4096,
        "llama.embedding_length": 64,
        "llama.block_count": 2,
        "llama.feed_forward_length": 96,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 32,
        "llama.attention.value_length": 32,
        "llama.rope.dimension_count": 32,
        "llama.rope.freq_base": 100000.0,
        "llama.rope.scaling.type": "linear",
        "llama.rope.scaling.factor": 4.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.add_bos_token": False,
    }
    assert {key: metadata.get(key) for key in expected} == expected
    assert metadata["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-5)


def test_older_spellings_of_the_configuration(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    """transformers 4 wrote `rope_theta` and `rope_scaling` with `type`."""
    import json

    directory = make_checkpoint()
    config = json.loads((directory / "config.json").read_text())
    del config["rope_parameters"]
    config |= {"rope_theta": 20000.0, "rope_scaling": {"type": "linear", "factor": 2.0}, "torch_dtype": "float32"}
    (directory / "config.json").write_text(json.dumps(config))
    done = convert(directory, tmp_path / "model.gguf", type_name="f32")
    assert done.verification is not None
    metadata, _ = contents(done.path)
    assert (metadata["llama.rope.freq_base"], metadata["llama.rope.scaling.factor"]) == (20000.0, 2.0)


def test_names_that_change_llama_cpps_tokenizer_are_left_out(
    make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    directory = make_checkpoint().rename(tmp_path / "my-Phi-3-llama")
    metadata, _ = contents(convert(directory, tmp_path / "model.gguf").path)
    assert metadata["general.name"] == "model"


def test_tied_embeddings_are_stored_once(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    directory = make_checkpoint(tie_word_embeddings=True)
    _, tensors = contents(convert(directory, tmp_path / "model.gguf").path)
    assert "output.weight" not in tensors
    weights = load_file(directory / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    _, tensors = contents(convert(directory, tmp_path / "model.gguf").path)
    assert "output.weight" not in tensors
    # transformers goes by the weights, too, when they contradict the configuration.
    weights["lm_head.weight"] += 1.0
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    _, tensors = contents(convert(directory, tmp_path / "model.gguf").path)
    assert "output.weight" in tensors


@given(heads=st.integers(1, 5), pairs=st.integers(1, 8))
def test_row_order_undoes_the_halves(heads: int, pairs: int) -> None:
    """In llama's order, rows 2i and 2i + 1 are the ones transformers rotates together, i and i + pairs."""
    order = pair_order(heads * 2 * pairs, 2 * pairs).reshape(heads, pairs, 2)
    for head in range(heads):
        for pair in range(pairs):
            assert order[head, pair].tolist() == [head * 2 * pairs + pair, head * 2 * pairs + pair + pairs]


def test_frequency_factors_are_transformers() -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    settings = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0}
    settings |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    config = LlamaConfig(hidden_size=512, num_attention_heads=4, rope_parameters=settings)
    expected, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    factors = Rope(500000.0, "llama3", 32.0, 8192).frequency_factors(128)
    plain = 500000.0 ** (-np.arange(0, 128, 2) / 128)
    assert np.allclose(plain / np.asarray(factors), expected.numpy(), rtol=1e-5)
    assert Rope(500000.0, "default").frequency_factors(128) is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_weights_are_read_without_torch(dtype: torch.dtype, tmp_path: Path) -> None:
    weights = {"a": torch.randn(7, 5).to(dtype), "b": torch.randn(3).to(dtype), "empty": torch.zeros(0, 4).to(dtype)}
    save_file(weights, tmp_path / "model.safetensors")
    stored = read_index([tmp_path / "model.safetensors"])
    order = np.array([6, 0, 3, 1, 2, 5, 4])
    assert np.array_equal(np.concatenate(list(stored["a"].chunks(order))), weights["a"].float().numpy()[order])
    assert np.array_equal(np.concatenate(list(stored["b"].chunks())), weights["b"].float().numpy())
    assert list(stored["empty"].chunks()) == []
    assert same_values(stored["a"], stored["a"])
    assert not same_values(stored["a"], stored["b"])


@pytest.mark.parametrize("type_name", ["f32", "f16", "q8_0"])
def test_memory_while_writing(
    type_name: str,
    make_checkpoint: Callable[..., Path],
    add_heads: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two tensors of 64 chunks, and one more in the head: less than half of one is ever held, so memory does not grow
    with the model."""
    rows, hidden = 2048, 512
    directory = make_checkpoint(num_hidden_layers=1, intermediate_size=1024, hidden_size=hidden, vocab_size=rows)
    add_heads(directory, 2)
    monkeypatch.setattr("nptool.convert.layers.weights.CHUNK_VALUES", rows * hidden // 64)
    convert(directory, tmp_path / "first.gguf", verified=False)
    tracemalloc.start()
    try:
        done = convert(directory, tmp_path / "model.gguf", type_name=type_name, verified=False)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert done.bytes > rows * hidden * 2
    assert peak < rows * hidden * 4 / 2
