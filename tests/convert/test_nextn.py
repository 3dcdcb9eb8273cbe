"""A model with a NextN block becomes a file with which llama.cpp itself speculates.

References: the plain GGUF, the block written out in torch one operation after the other, and plain greedy decoding.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fixtures.stock_speculation import DRAFTS, Array, greedy, opened, speculate
from safetensors.torch import load_file, save_file

from nptool.checkpoints import load_model
from nptool.convert.conversion import convert
from nptool.errors import CheckpointError, UsageError
from nptool.heads import HEADS_WEIGHTS, read_heads_info, trunk_digest, write_heads_info
from nptool.llama.gguf_check import read_header
from nptool.training.heads.checkpoint import load_heads

LLAMA, MISTRAL, QWEN2, QWEN3 = (f"{name}ForCausalLM" for name in ("Llama", "Mistral", "Qwen2", "Qwen3"))
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 100000.0, "factor": 4.0}
YARN_ROPE = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama 2": (LLAMA, "own", {}),
    "llama 3": (LLAMA, "llama-bpe", {"rope_parameters": LLAMA3_ROPE, "tie_word_embeddings": True}),
    "llama, linear": (LLAMA, "own", {"rope_parameters": LINEAR_ROPE, "head_dim": 32}),
    "llama, yarn": (LLAMA, "own", {"rope_parameters": YARN_ROPE}),
    "mistral": (MISTRAL, "metaspace+json", {"sliding_window": None, "dtype": torch.bfloat16}),
    "qwen 2": (QWEN2, "qwen2", {"tie_word_embeddings": True}),
    "qwen 3": (QWEN3, "qwen2", {"head_dim": 32, "tie_word_embeddings": True}),
    "qwen 3, yarn": (QWEN3, "qwen2", {"head_dim": 32, "rope_parameters": YARN_ROPE}),
}
TOKENS = 48


@pytest.mark.parametrize("case", CASES)
def test_model_and_block_are_the_checkpoints(
    case: str, make_checkpoint: Callable[..., Path], add_nextn: Callable[..., Path], tmp_path: Path
) -> None:
    architecture, tokenizer, settings = CASES[case]
    directory = make_checkpoint(architecture, tokenizer, **dict(settings))
    plain = convert(directory, tmp_path / "plain.gguf", type_name="f32").path
    done = convert(add_nextn(directory), tmp_path / "model-nextn.gguf", type_name="f32", nextn=True)
    assert done.architecture == ("hy_v3" if architecture == QWEN3 else "step35")
    assert done.nextn is not None
    assert done.nextn.logits is not None
    assert done.nextn.logits.relative < 1e-3
    ids = np.random.default_rng(5).integers(0, 400, TOKENS).tolist()
    with opened(plain) as alone, opened(done.path) as both, opened(done.path, block=True) as block:
        expected, logits = alone.read(ids, 0), both.read(ids, 0)
        assert np.abs(logits - expected).max() <= (0 if architecture == QWEN3 else 1e-4)
        hidden = naive_hidden(directory, ids)
        assert np.abs(both.hidden(TOKENS) - hidden).max() < 1e-3 * hidden.std()
        shifted = np.vstack([np.zeros_like(hidden[:1]), hidden[:-1]])
        wanted, handed_on = naive_block(directory, ids, shifted)
        found = block.read(ids, 0, shifted)
        assert np.abs(found - wanted).max() < 1e-3 * wanted.std()
        assert np.abs(block.hidden(TOKENS) - handed_on).max() < 1e-3 * handed_on.std()


@pytest.mark.parametrize("case", ["llama 3", "qwen 2", "qwen 3"])
@pytest.mark.parametrize("apart", [False, True])
def test_stock_speculation_gives_the_plain_text(
    case: str, apart: bool, make_checkpoint: Callable[..., Path], add_nextn: Callable[..., Path], tmp_path: Path
) -> None:
    """Drafts come from the block in the model's file, or from the block's own file."""
    architecture, tokenizer, settings = CASES[case]
    directory = add_nextn(make_checkpoint(architecture, tokenizer, **dict(settings)))
    done = convert(directory, tmp_path / "model-nextn.gguf", type_name="f32", nextn=True)
    assert done.nextn is not None
    assert done.nextn.draft == tmp_path / "mtp-model.gguf"
    prompt = [5, 17, 42, 3, 99]
    with opened(done.path) as model, opened(done.path) as again:
        plain = greedy(again, prompt, 40)
        with opened(done.nextn.draft if apart else done.path, block=True) as block:
            text, drafted = speculate(model, block, prompt, 40)
        assert text == plain
    read = (prompt + plain)[: len(prompt) + 1]
    assert drafted[0] == naive_drafts(directory, read) == trained_drafts(directory, [*read, *drafted[0]])
    assert {len(drafts) for drafts in drafted} == {DRAFTS}


def test_trained_alike_drafts_are_accepted(
    make_checkpoint: Callable[..., Path], add_nextn: Callable[..., Path], tmp_path: Path
) -> None:
    """A block that hands on its token's embedding drafts what a model of embedding and unembedding alone says."""
    directory = add_nextn(make_checkpoint(tie_word_embeddings=False))
    silence(directory)
    done = convert(directory, tmp_path / "model-nextn.gguf", type_name="f32", nextn=True)
    with opened(done.path) as model, opened(done.path) as again, opened(done.path, block=True) as block:
        text, drafted = speculate(model, block, [5, 17, 42], 40)
        assert text == greedy(again, [5, 17, 42], 40)
    assert len(drafted) == 40 // (DRAFTS + 1)


@pytest.mark.parametrize("type_name", ["f16", "q8_0", "q4_k_m"])
def test_types(
    type_name: str, make_checkpoint: Callable[..., Path], add_nextn: Callable[..., Path], tmp_path: Path
) -> None:
    directory = add_nextn(make_checkpoint(hidden_size=256, intermediate_size=256, head_dim=64))
    done = convert(directory, tmp_path / "model-nextn.gguf", type_name=type_name, nextn=True)
    assert done.nextn is not None
    assert done.nextn.logits is not None
    assert done.nextn.logits.relative < {"f16": 0.25, "q8_0": 1, "q4_k_m": 4}[type_name]
    whole, alone = read_header(done.path).tensors, read_header(done.nextn.draft).tensors
    assert alone == {name: tensor for name, tensor in whole.items() if not name.startswith(("blk.0.", "blk.1."))}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model-nextn.gguf", "mtp-model.gguf"]


def test_the_plain_file_stays_what_it_is(
    make_checkpoint: Callable[..., Path], add_nextn: Callable[..., Path], tmp_path: Path
) -> None:
    directory = make_checkpoint()
    plain = convert(directory, tmp_path / "model.gguf")
    before = plain.path.read_bytes()
    done = convert(add_nextn(directory), tmp_path / "model.gguf")
    assert plain.path.read_bytes() == before
    assert done.remarks == (
        "the checkpoint's NextN block is not in this file; `nptool convert --nextn` writes a file with it",
    )


def test_bad_input(make_checkpoint: Callable[..., Path], add_nextn: Callable[..., Path], tmp_path: Path) -> None:
    directory = make_checkpoint()
    with pytest.raises(CheckpointError, match=r"has no heads, and --nextn needs a NextN block; train one with"):
        convert(directory, tmp_path / "model.gguf", nextn=True)
    with pytest.raises(UsageError, match="omit one"):
        convert(directory, tmp_path / "model.gguf", nextn=True, heads_type_name="f16")
    biased = add_nextn(make_checkpoint(attention_bias=True))
    with pytest.raises(CheckpointError, match=r"step35 graph, .*, has no place for self_attn\.o_proj\.bias"):
        convert(biased, tmp_path / "model.gguf", nextn=True)
    weights = load_file(add_nextn(directory) / HEADS_WEIGHTS)
    del weights["nextn.hnorm.weight"]
    save_file(weights, directory / HEADS_WEIGHTS)
    with pytest.raises(CheckpointError, match=r"lacks nextn\.hnorm\.weight, which"):
        convert(directory, tmp_path / "model.gguf", nextn=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["mtp.layers.0.mlp.up_proj.weight", "model.layers.2.eh_proj.weight"])
def test_foreign_blocks_are_not_imported(name: str, make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    directory = Path(shutil.copytree(make_checkpoint(), tmp_path / "model"))
    weights = load_file(directory / "model.safetensors")
    save_file(weights | {name: torch.zeros(4, 8)}, directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="weights of multi-token prediction, which nptool does not import"):
        convert(directory, tmp_path / "model.gguf")


def naive_hidden(directory: Path, ids: list[int]) -> Array:
    """The model's hidden states (T, D) as its carrier hands them on."""
    model: Any = load_model(directory)
    kept: list[torch.Tensor] = []
    model.model.norm.register_forward_hook(lambda _, inputs, output: kept.extend((inputs[0][0], output[0])))
    with torch.inference_mode():
        model(torch.tensor([ids]), use_cache=False)
    before, after = (states.numpy() for states in kept)
    return np.asarray(after if model.config.model_type == "qwen3" else before)


def naive_block(directory: Path, ids: list[int], hidden: Array) -> tuple[Array, Array]:
    """Logits (T, V) of a block, and the hidden states (T, D) that it hands on, one operation after the other."""
    model: Any = load_model(directory)
    weights = {name.removeprefix("nextn."): weight for name, weight in load_file(directory / HEADS_WEIGHTS).items()}
    config, qwen3 = model.config, model.config.model_type == "qwen3"

    def rms(x: torch.Tensor, name: str) -> torch.Tensor:
        return x * (x.square().mean(-1, keepdim=True) + config.rms_norm_eps).rsqrt() * weights[f"{name}.weight"]

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(x, weights[f"layer.{name}.weight"], weights.get(f"layer.{name}.bias"))

    def heads(x: torch.Tensor, norm: str | None) -> torch.Tensor:
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        x = x.view(len(ids), -1, size)
        if norm is not None and qwen3:
            x = rms(x, norm)
        return x.transpose(0, 1)

    def rotated(x: torch.Tensor) -> torch.Tensor:
        count, size = x.shape[1:]
        if qwen3:
            cos, sin = (part[0] for part in model.model.rotary_emb(x, torch.arange(count)[None]))
        else:
            rates = config.rope_parameters["rope_theta"] ** (-torch.arange(0, size, 2) / size)
            angles = torch.arange(count)[:, None] * torch.cat([rates, rates])
            cos, sin = angles.cos(), angles.sin()
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat([-second, first], -1) * sin

    with torch.inference_mode():
        embedding = model.model.embed_tokens(torch.tensor(ids))
        mixed = torch.cat([rms(embedding, "enorm"), rms(torch.from_numpy(hidden), "hnorm")], -1)
        x = F.linear(mixed, weights["eh_proj.weight"])
        inner = rms(x, "layer.input_layernorm")
        q = rotated(heads(linear(inner, "self_attn.q_proj"), "layer.self_attn.q_norm"))
        k = rotated(heads(linear(inner, "self_attn.k_proj"), "layer.self_attn.k_norm"))
        v = heads(linear(inner, "self_attn.v_proj"), None)
        k, v = (part.repeat_interleave(len(q) // len(k), 0) for part in (k, v))
        scores = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).masked_fill(
            torch.ones(len(ids), len(ids)).triu(1).bool(), -torch.inf
        )
        attended = (scores.softmax(-1) @ v).transpose(0, 1).reshape(len(ids), -1)
        x = x + linear(attended, "self_attn.o_proj")
        inner = rms(x, "layer.post_attention_layernorm")
        x = x + linear(F.silu(linear(inner, "mlp.gate_proj")) * linear(inner, "mlp.up_proj"), "mlp.down_proj")
        normed = rms(x, "norm")
        return model.lm_head(normed).numpy(), (normed if qwen3 else x).numpy()


def naive_drafts(directory: Path, ids: list[int]) -> list[int]:
    """Drafts after `ids`, the whole chain computed again for each of them."""
    hidden = naive_hidden(directory, ids)
    states = np.vstack([np.zeros_like(hidden[:1]), hidden[:-1]])
    for _ in range(DRAFTS):
        logits, handed_on = naive_block(directory, ids, states)
        ids = [*ids, int(logits[-1].argmax())]
        states = np.vstack([states, handed_on[-1:]])
    return ids[-DRAFTS:]


@torch.no_grad()
def trained_drafts(directory: Path, ids: list[int]) -> list[int]:
    """What training takes for the last three drafts in `ids`, given those before."""
    model = load_heads(directory)
    trunk, position = model.run_trunk(torch.tensor([ids])), torch.tensor([len(ids) - 2 - DRAFTS])
    states = [model.hidden_states(depth, trunk, position) for depth in range(1, DRAFTS + 1)]
    return [int(F.linear(state, model.unembedding_VD).argmax()) for state in states]


def silence(directory: Path) -> None:
    """Make layers and block add nothing, so that the text follows from each token alone, also for the block."""
    info = read_heads_info(directory)
    assert info is not None
    weights = load_file(directory / "model.safetensors")
    for name, weight in weights.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weight.zero_()
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    block = load_file(directory / HEADS_WEIGHTS)
    for name, weight in block.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weight.zero_()
    size = len(block["nextn.enorm.weight"])
    block["nextn.enorm.weight"] = torch.ones(size)
    block["nextn.eh_proj.weight"] = torch.cat([torch.eye(size), torch.zeros(size, size)], 1)
    block["nextn.norm.weight"] = weights["model.norm.weight"].float()
    save_file(block, directory / HEADS_WEIGHTS)
    write_heads_info(directory, replace(info, trunk_digest=trunk_digest(directory)))
