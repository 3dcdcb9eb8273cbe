"""Every checkpoint that cannot be converted is refused in one line, before anything is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from nptool.convert.checkpoint import open_checkpoint
from nptool.convert.conversion import convert
from nptool.convert.file_types import FILE_TYPES
from nptool.convert.quantize import quantize_gguf
from nptool.errors import CheckpointError, DiskFullError, GgufError, NptoolError, UsageError
from nptool.progress import silent


@pytest.fixture
def checkpoint(make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint()


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(directory: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    weights = load_file(directory / "model.safetensors")
    change(weights)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


def refusal(directory: Path, expected: type[NptoolError] = CheckpointError, **options: Any) -> str:
    """The message of the refusal; nothing is left beside the file that was asked for."""
    out = directory.parent / "out" / "model.gguf"
    shutil.rmtree(out.parent, ignore_errors=True)
    with pytest.raises(expected) as caught:
        convert(directory, out, **({"verified": False} | options))
    assert not out.parent.exists() or not list(out.parent.iterdir())
    return str(caught.value).replace(str(directory), "DIR")


CONFIG_CASES: dict[str, tuple[dict[str, Any], str]] = {
    "architecture": (
        {"architectures": ["GemmaForCausalLM"]},
        "DIR: architecture GemmaForCausalLM is not supported; nptool converts LlamaForCausalLM, "
        "MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM",
    ),
    "no architecture": (
        {"architectures": None},
        "DIR: config.json names no architecture (`architectures`); nptool converts LlamaForCausalLM, "
        "MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM",
    ),
    "quantized": (
        {"quantization_config": {"quant_method": "gptq"}},
        "DIR: the weights are already quantized (quantization_config: gptq); convert the unquantized checkpoint and "
        "choose the type with --type",
    ),
    "activation": ({"hidden_act": "gelu"}, "DIR: hidden_act is gelu; llama.cpp's llama graph has silu only"),
    "sliding window": (
        {"use_sliding_window": True},
        "DIR: use_sliding_window is on; llama.cpp's llama graph attends to the whole context",
    ),
    "size": ({"hidden_size": "64"}, "DIR: config.json has hidden_size = '64'; expected a number above 0"),
    "rope type": (
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}},
        "DIR: RoPE scaling 'dynamic' is not supported; expected one of default, linear, llama3, yarn",
    ),
    "partial rotation": (
        {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
        "DIR: partial_rotary_factor is 0.5; nptool converts models that rotate whole heads",
    ),
    "yarn": (
        {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "mscale": 0.7, "attention_factor": 1.5}},
        "DIR: RoPE scaling 'yarn' with its own mscale, attention_factor is not supported",
    ),
    "other sizes": (
        {"intermediate_size": 128},
        "DIR: model.layers.0.mlp.gate_proj.weight has shape (96, 64), config.json asks for (128, 64); the weights "
        "belong to another configuration",
    ),
}


@pytest.mark.parametrize("case", CONFIG_CASES)
def test_configurations(case: str, checkpoint: Path) -> None:
    changes, message = CONFIG_CASES[case]
    edit(checkpoint / "config.json", **changes)
    assert refusal(checkpoint) == message


def test_missing_tensors(checkpoint: Path) -> None:
    edit_weights(checkpoint, lambda weights: weights.pop("lm_head.weight"))
    assert refusal(checkpoint) == (
        "DIR lacks lm_head.weight, which LlamaForCausalLM has; if the embedding serves as unembedding, config.json "
        "must say tie_word_embeddings: true"
    )
    edit_weights(
        checkpoint, lambda weights: [weights.pop(name) for name in list(weights) if "layers.1" in name] and None
    )
    assert refusal(checkpoint) == (
        "DIR lacks model.layers.1.input_layernorm.weight, model.layers.1.self_attn.q_proj.weight, "
        "model.layers.1.self_attn.k_proj.weight, model.layers.1.self_attn.v_proj.weight and 6 more, which "
        "LlamaForCausalLM has; config.json describes another model than the weights, or a shard belongs to "
        "another checkpoint"
    )


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        (
            "model.layers.0.self_attn.q_proj.lora_A.weight",
            "these are LoRA weights: merge them into the base model first",
        ),
        (
            "model.layers.0.mlp.up_proj.weight_scale",
            "these are quantized weights: convert the unquantized checkpoint",
        ),
        ("visual.patch_embed.weight", "this is a multimodal model: nptool converts text models"),
        (
            "model.layers.0.self_attn.q_proj.bias",
            "if the model has biases, config.json must say attention_bias or mlp_bias: true",
        ),
        (
            "model.layers.0.mlp.experts.0.weight",
            "config.json describes another model than the weights, or a shard belongs to another checkpoint",
        ),
    ],
)
def test_unexpected_tensors(name: str, cause: str, checkpoint: Path) -> None:
    edit_weights(checkpoint, lambda weights: weights.update({name: torch.zeros(4)}))
    assert refusal(checkpoint) == f"DIR has {name}, for which LlamaForCausalLM has no place; {cause}"


def test_buffers_of_old_checkpoints_are_ignored(checkpoint: Path, tmp_path: Path) -> None:
    buffer = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit_weights(checkpoint, lambda weights: weights.update({buffer: torch.zeros(8)}))
    assert convert(checkpoint, tmp_path / "model.gguf", verified=False).path.is_file()


def test_pickle_weights(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")
    assert refusal(checkpoint).startswith("DIR has its weights in pytorch_model.bin, a pickle, which can run code")


def test_missing_shard(make_checkpoint: Callable[..., Path]) -> None:
    directory = make_checkpoint(shards=3)
    (directory / "model-00002-of-00003.safetensors").unlink()
    assert refusal(directory).startswith("DIR lacks the shard model-00002-of-00003.safetensors")


def test_missing_directory(tmp_path: Path) -> None:
    assert "does not exist; expected a Hugging Face directory or Hub id" in refusal(tmp_path / "none")


def test_integer_weights(checkpoint: Path) -> None:
    def to_integers(weights: dict[str, torch.Tensor]) -> None:
        weights["model.norm.weight"] = torch.ones(64, dtype=torch.int8)

    edit_weights(checkpoint, to_integers)
    assert refusal(checkpoint) == (
        "DIR/model.safetensors: model.norm.weight is stored as I8; nptool converts F64, F32, F16, BF16: use the "
        "unquantized checkpoint"
    )


def test_values_that_are_not_finite(checkpoint: Path) -> None:
    edit_weights(checkpoint, lambda weights: weights["model.norm.weight"].fill_(float("nan")))
    assert refusal(checkpoint) == "model.norm.weight has values that are not finite; the training diverged"


def test_values_beyond_f16(checkpoint: Path) -> None:
    edit_weights(checkpoint, lambda weights: weights["lm_head.weight"].fill_(1e5))
    assert refusal(checkpoint) == "lm_head.weight has a value of 1e+05, beyond F16's 65504; use --type bf16 or f32"


def test_more_tokens_than_rows(make_checkpoint: Callable[..., Path]) -> None:
    directory = make_checkpoint(vocab_size=300)
    assert refusal(directory) == (
        "DIR: the tokenizer has tokens up to id 397, the embedding 300 rows; they belong to different models"
    )


def test_no_tokenizer(checkpoint: Path) -> None:
    (checkpoint / "tokenizer.json").unlink()
    expected = "DIR has neither tokenizer.json nor tokenizer.model; "
    assert refusal(checkpoint) == expected + "expected the tokenizer of a Hugging Face checkpoint"
    (checkpoint / "vocab.json").write_text("{}")
    assert refusal(checkpoint) == (
        expected + "load and save it once with transformers' AutoTokenizer, which writes tokenizer.json"
    )


def test_damaged_tokenizers(make_checkpoint: Callable[..., Path]) -> None:
    directory = make_checkpoint(tokenizer="prepend+both")
    model = (directory / "tokenizer.model").read_bytes()
    (directory / "tokenizer.model").write_bytes(b"\xff\xff" + model)
    assert refusal(directory) == "DIR/tokenizer.model is no SentencePiece model; copy it again"
    (directory / "tokenizer.json").write_text("{")
    assert refusal(directory).startswith("DIR/tokenizer.json is not valid JSON: ")
    (directory / "tokenizer.json").write_text("[]")
    assert refusal(directory) == "DIR/tokenizer.json is not a JSON object; the checkpoint is damaged"


def test_other_kinds_of_tokenizers(make_checkpoint: Callable[..., Path]) -> None:
    directory = make_checkpoint()
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer | {"model": {"type": "Unigram", "vocab": []}}))
    assert refusal(directory) == (
        "DIR: the tokenizer is a Unigram model; nptool converts byte-level and SentencePiece BPE"
    )
    suffixed = tokenizer["model"] | {"end_of_word_suffix": "</w>"}
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer | {"model": suffixed}))
    assert refusal(directory) == (
        "DIR: the tokenizer uses end_of_word_suffix, which llama.cpp does not; nptool converts byte-level BPE"
    )


def test_missing_byte_tokens(make_checkpoint: Callable[..., Path]) -> None:
    directory = make_checkpoint(tokenizer="prepend+json")
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["<0xFE>x"] = tokenizer["model"]["vocab"].pop("<0xFE>")
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert refusal(directory) == (
        "DIR/tokenizer.json has 255 of the 256 byte tokens (<0x00> to <0xFF>); llama.cpp needs them all"
    )


def test_special_tokens_that_are_not_there(checkpoint: Path) -> None:
    edit(checkpoint / "tokenizer_config.json", eos_token="<eos>")
    assert refusal(checkpoint) == "DIR: eos_token is '<eos>', which is not in the vocabulary"
    edit(checkpoint / "tokenizer_config.json", eos_token=None)
    assert refusal(checkpoint) == "DIR: the tokenizer has no eos_token; generation would never end"


def test_a_token_named_twice(checkpoint: Path) -> None:
    edit(checkpoint / "tokenizer_config.json", added_tokens_decoder={"450": {"content": "<|end|>", "special": True}})
    ids = json.loads((checkpoint / "tokenizer.json").read_text())["model"]["vocab"]
    assert refusal(checkpoint) == (
        f"DIR: tokens [{ids['<|end|>']}, 450] are all '<|end|>'; llama.cpp needs every token once"
    )


def test_a_method_file_that_says_something_else(checkpoint: Path) -> None:
    (checkpoint / "nptool.json").write_text('{"method": "cllm", "block_size": 0}')
    assert refusal(checkpoint) == (
        'DIR/nptool.json should read like {"method": "cllm", "block_size": 16}; it says '
        "{'method': 'cllm', 'block_size': 0}"
    )


def test_measured_figures_that_cannot_be(checkpoint: Path) -> None:
    figures = '{"tokens_per_forward": 20, "block_size": 16}'
    (checkpoint / "nptool.json").write_text(f'{{"method": "cllm", "block_size": 16, "measured": {figures}}}')
    assert refusal(checkpoint) == (
        'DIR/nptool.json should say "measured": {"tokens_per_forward": 3.8, "block_size": 16} or nothing of it; '
        "it says {'tokens_per_forward': 20, 'block_size': 16}"
    )


def test_unknown_type(checkpoint: Path) -> None:
    assert refusal(checkpoint, UsageError, type_name="q9").startswith(
        "--type q9 is not known; choose one of f32, f16, bf16, q8_0, q6_k, "
    )


def test_output_that_is_a_directory(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        convert(checkpoint, tmp_path, verified=False)
    assert str(caught.value) == (
        f"cannot write {tmp_path}: it is a directory; name the file, for example {tmp_path}/model.gguf"
    )


def test_too_little_memory_to_verify(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nptool.convert.conversion.free_memory", lambda: 2**29)
    assert refusal(checkpoint, UsageError, verified=True) == (
        "verifying loads the model in transformers, which takes 1 GiB of memory, and 0 are free; add --no-verify, or "
        "convert on a larger machine"
    )


@pytest.mark.parametrize("type_name", ["f16", "q4_k_m"])
def test_full_disk(type_name: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """/dev/full is a disk without space: the tensors' rows go there."""

    def to_full_disk(self: Any, stream: Any) -> None:
        with Path("/dev/full").open("wb") as full:
            full.write(bytes(self.nbytes))

    monkeypatch.setattr("nptool.convert.gguf_file._Encoded.tofile", to_full_disk)
    message = refusal(checkpoint, DiskFullError, type_name=type_name)
    assert message == (
        f"no space left on the disk while writing {checkpoint.parent}/out/model.gguf; free some and run again"
    )


def test_quantizer_on_a_full_disk(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = convert(checkpoint, tmp_path / "model.gguf", type_name="f32", verified=False).path
    with pytest.raises(GgufError, match=r"^llama.cpp's quantizer failed on type q4_0: .*iostream error$"):
        quantize_gguf(source, Path("/dev/full"), FILE_TYPES["q4_0"], silent)
    monkeypatch.setattr("nptool.convert.quantize.FULL_BELOW", 2**60)
    with pytest.raises(DiskFullError) as caught:
        quantize_gguf(source, Path("/dev/full"), FILE_TYPES["q4_0"], silent)
    assert str(caught.value) == "no space left on the disk while quantizing to q4_0; free some first"


def test_quantizer_of_a_damaged_file(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF and no more")
    with pytest.raises(GgufError, match=r"^llama.cpp's quantizer failed on type q4_0: "):
        quantize_gguf(tmp_path / "model.gguf", tmp_path / "out.gguf", FILE_TYPES["q4_0"], silent)


def test_hub_that_breaks_off(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    def broken(ref: str, allow_patterns: list[str]) -> str:
        raise LocalEntryNotFoundError("the connection broke\nmore")

    monkeypatch.setattr("nptool.convert.checkpoint.load_config", lambda ref: None)
    monkeypatch.setattr("huggingface_hub.snapshot_download", broken)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint("someone/model")
    assert str(caught.value) == "someone/model could not be fetched from the Hub: the connection broke"


@pytest.mark.parametrize(
    ("type_name", "interrupted"),
    [("f16", "writing tensors"), ("f16", "verifying f16"), ("q4_k_m", "writing tensors"), ("q4_k_m", "quantizing")],
)
def test_interrupted(type_name: str, interrupted: str, checkpoint: Path, tmp_path: Path) -> None:
    """Ctrl-C leaves an older file as it was and nothing else."""
    out = tmp_path / "model.gguf"
    out.write_bytes(b"older")

    def interrupt(step: str, done: float, total: float, note: str = "") -> None:
        if step == interrupted and done > 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(checkpoint, out, type_name=type_name, progress=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]
    assert out.read_bytes() == b"older"


def test_weights_are_not_changed_by_reading(checkpoint: Path, tmp_path: Path) -> None:
    before = (checkpoint / "model.safetensors").read_bytes()
    convert(checkpoint, tmp_path / "model.gguf", verified=False)
    assert np.array_equal(
        np.frombuffer(before, np.uint8), np.frombuffer((checkpoint / "model.safetensors").read_bytes(), np.uint8)
    )
