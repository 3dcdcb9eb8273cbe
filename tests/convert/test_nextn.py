"""A model with a NextN block becomes a file with which llama.cpp itself speculates.

References: the plain GGUF, the block written out in torch one operation after the other, and plain greedy decoding.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fixtures.nextn_references import naive_block, naive_drafts, naive_hidden, silence
from fixtures.stock_speculation import DRAFTS, greedy, opened, speculate
from safetensors.torch import load_file, save_file

from nptool.convert.conversion import convert
from nptool.errors import CheckpointError, UsageError
from nptool.heads import HEADS_WEIGHTS
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


@torch.no_grad()
def trained_drafts(directory: Path, ids: list[int]) -> list[int]:
    """What training takes for the last three drafts in `ids`, given those before."""
    model = load_heads(directory)
    trunk, position = model.run_trunk(torch.tensor([ids])), torch.tensor([len(ids) - 2 - DRAFTS])
    states = [model.hidden_states(depth, trunk, position) for depth in range(1, DRAFTS + 1)]
    return [int(F.linear(state, model.unembedding_VD).argmax()) for state in states]
