"""Multi-head checkpoints become one GGUF: each head is the checkpoint's, and the model is the plain model."""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers.masking_utils import create_causal_mask

import nptool
from nptool.checkpoints import load_model, load_tokenizer
from nptool.convert.conversion import convert
from nptool.decoding.answer import DecodeConfig
from nptool.decoding.loop.sampling import Sampling
from nptool.errors import UsageError
from nptool.heads import (
    ACCURACY_KEY,
    ACCURACY_RANKS_KEY,
    COUNT_KEY,
    HEADS_WEIGHTS,
    INDEX_KEY,
    TRUNK_DIGEST_KEY,
    TRUNK_LAYER_KEY,
    head_tensor,
    read_heads_info,
)
from nptool.llama.context import Context
from nptool.llama.gguf_parts import find_parts
from nptool.llama.model import Model
from nptool.training.heads.checkpoint import load_heads, save_heads
from nptool.training.heads.losses import IGNORE, heads_loss

F32_TOLERANCE = 1e-3
"""Of the logits' spread."""
TRUNK_TOLERANCE = 5e-3
"""The same after a trunk of random weights, which amplifies its own rounding."""
EXAMPLES = int(os.environ.get("NPTOOL_EXAMPLES", "20"))
"""Random configurations; more by hand: NPTOOL_EXAMPLES=500."""
LLAMA, MISTRAL, QWEN2, QWEN3 = (f"{name}ForCausalLM" for name in ("Llama", "Mistral", "Qwen2", "Qwen3"))
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 512,
}
YARN_ROPE = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 1024}
CASES: dict[str, tuple[str, str, int, dict[str, Any]]] = {
    "llama": (LLAMA, "own", 4, {}),
    "llama 3": (LLAMA, "llama-bpe", 3, {"rope_parameters": LLAMA3_ROPE, "tie_word_embeddings": True}),
    "llama with biases": (LLAMA, "own", 2, {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 4}),
    "mistral": (MISTRAL, "metaspace+json", 2, {"sliding_window": None, "dtype": torch.bfloat16}),
    "qwen 2": (QWEN2, "qwen2", 3, {"tie_word_embeddings": True, "shards": 2}),
    "qwen 3": (QWEN3, "qwen2", 3, {"head_dim": 32, "rope_parameters": YARN_ROPE}),
}


@pytest.mark.parametrize("case", CASES)
def test_heads_are_equal_to_the_checkpoints(
    case: str, make_checkpoint: Callable[..., Path], add_heads: Callable[..., Path], tmp_path: Path
) -> None:
    architecture, tokenizer, count, settings = CASES[case]
    directory = add_heads(make_checkpoint(architecture, tokenizer, **settings), count)
    done = convert(directory, tmp_path / "model.gguf", type_name="f32", heads_type_name="f32")
    assert done.heads is not None
    assert done.heads.logits is not None
    assert (done.heads.count, len(done.heads.logits)) == (count, count - 1)
    assert max(logits.relative for logits in done.heads.logits) < F32_TOLERANCE
    assert min(logits.same_choice for logits in done.heads.logits) == 1.0
    ids = np.random.default_rng(5).integers(0, 400, 48).astype(np.int32)
    expected, found = expected_logits(directory, count, ids), found_logits(done.path, ids)
    assert len(found) == len(expected) == count - 1
    for number, (one, other) in enumerate(zip(found, expected, strict=True), start=2):
        assert np.abs(one - other).max() < F32_TOLERANCE * other.std(), f"head {number}"
    # Heads that are all alike would be equal to the wrong one as well.
    assert all(np.abs(expected[0] - other).max() > other.std() for other in expected[1:])


def expected_logits(directory: Path, count: int, ids: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    """Logits (T, V) of heads 2..count, each applied as a layer of its own to the last layer's input."""
    model: Any = load_model(directory)
    stored = load_file(directory / HEADS_WEIGHTS)
    kept: list[torch.Tensor] = []
    model.model.layers[-1].register_forward_pre_hook(lambda layer, inputs: kept.append(inputs[0]))
    found = []
    with torch.inference_mode():
        model(torch.tensor([ids.tolist()]), use_cache=False)
        positions = torch.arange(len(ids))[None]
        mask = create_causal_mask(
            config=model.config,
            inputs_embeds=kept[0],
            attention_mask=None,
            past_key_values=None,
            position_ids=positions,
        )
        rotation = model.model.rotary_emb(kept[0], positions)
        for number in range(2, count + 1):
            layer = type(model.model.layers[-1])(model.config, model.config.num_hidden_layers - 1).eval()
            layer.load_state_dict({name: stored[head_tensor(number, name)].float() for name in layer.state_dict()})
            output = layer(kept[0], attention_mask=mask, position_ids=positions, position_embeddings=rotation)
            output = output[0] if isinstance(output, tuple) else output
            found.append(model.lm_head(model.model.norm(output))[0].numpy())
    return found


def found_logits(path: Path, ids: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    """Logits (T, V) of the file's heads, given what llama.cpp's own trunk puts out."""
    parts = find_parts(path)
    assert parts.trunk_layer is not None
    options: Any = {"width": 48, "batch": 64, "flash_attention": False, "cache_type_k": "f32", "cache_type_v": "f32"}
    found = []
    with Model.load(path) as model, Context(model, 128, **options) as context:
        z_TD = trunk_output(context, parts.trunk_layer, ids)
    for part in parts.heads:
        with Model.load_part(part.header) as head, Context(head, 128, **options) as context:
            batch = llama_cpp.llama_batch_init(len(ids), z_TD.shape[1], 1)
            batch.n_tokens = len(ids)
            np.ctypeslib.as_array(batch.embd, (z_TD.size,))[:] = z_TD.ravel()
            for row in range(len(ids)):
                batch.pos[row], batch.n_seq_id[row], batch.logits[row] = row, 1, 1
                batch.seq_id[row][0] = 0
            assert llama_cpp.llama_decode(context.pointer, batch) == 0
            logits = llama_cpp.llama_get_logits(context.pointer)
            found.append(np.ctypeslib.as_array(logits, (len(ids), head.vocabulary_size)).copy())
            llama_cpp.llama_batch_free(batch)
    return found


def trunk_output(context: Context, layer: int, ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The input (T, D) of a layer, by the functions of llama-ext.h."""
    library = llama_cpp.llama_cpp._lib
    switch = library["_Z30llama_set_embeddings_layer_inpP13llama_contextjb"]
    switch.argtypes, switch.restype = [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_bool], None
    get = library["_Z30llama_get_embeddings_layer_inpP13llama_contextj"]
    get.argtypes, get.restype = [ctypes.c_void_p, ctypes.c_uint32], ctypes.POINTER(ctypes.c_float)
    switch(context.pointer, layer, True)
    context.evaluate(ids, 0)
    width = llama_cpp.llama_model_n_embd(context.model.pointer)
    return np.ctypeslib.as_array(get(context.pointer, layer), (len(ids), width)).copy()


def test_the_model_is_the_plain_model(
    make_checkpoint: Callable[..., Path], add_heads: Callable[..., Path], tmp_path: Path
) -> None:
    """In `llama_cpp.Llama`, which knows nothing of heads: the same text as from the file without them."""
    directory = make_checkpoint()
    plain = convert(directory, tmp_path / "plain.gguf").path
    path = convert(add_heads(directory, 4), tmp_path / "model.gguf").path
    assert path.stat().st_size > plain.stat().st_size
    texts = []
    for file in (plain, path):
        llama = llama_cpp.Llama(str(file), n_ctx=256, n_threads=1, verbose=False, seed=3)
        answer: Any = llama("the cat", max_tokens=48, temperature=0.0)
        sampled: Any = llama("the cat", max_tokens=48, temperature=0.8, seed=3)
        texts.append((answer["choices"][0]["text"], sampled["choices"][0]["text"]))
        llama.close()
    assert texts[0] == texts[1]
    assert len(set(texts[0])) == 2
    assert plain.read_bytes()[-4096:] in path.read_bytes()


def test_what_the_parts_say(
    make_checkpoint: Callable[..., Path], add_heads: Callable[..., Path], tmp_path: Path
) -> None:
    directory = add_heads(make_checkpoint(), 3, ((0.5, 0.125), (0.25, 0.0625)))
    done = convert(directory, tmp_path / "model.gguf", type_name="q8_0", verified=False)
    parts = find_parts(done.path)
    metadata = gguf.GGUFReader(done.path).fields
    info = read_heads_info(directory)
    assert info is not None
    expected = {
        COUNT_KEY: 3,
        TRUNK_LAYER_KEY: 1,
        TRUNK_DIGEST_KEY: info.trunk_digest,
        ACCURACY_KEY: [0.5, 0.125, 0.25, 0.0625],
        ACCURACY_RANKS_KEY: 2,
    }
    assert {key: metadata[key].contents() for key in expected} == expected
    assert {key: parts.base.header.metadata[key] for key in expected} == expected
    assert done.heads is not None
    assert (done.heads.file_type, done.heads.logits) == ("q8_0", None)
    assert done.heads.bytes == done.path.stat().st_size - parts.heads[0].offset
    for number, part in enumerate(parts.heads, start=2):
        header = part.header
        sizes = {key.partition(".")[2] for key in parts.base.header.metadata if key.startswith("llama.")}
        assert {key.partition(".")[2] for key in header.metadata if key.startswith("llama.")} == sizes
        assert (header.metadata[INDEX_KEY], header.metadata["llama.block_count"]) == (number, 1)
        assert header.metadata["tokenizer.ggml.model"] == "none"
        assert header.metadata[TRUNK_DIGEST_KEY] == info.trunk_digest
        names = {name for name in parts.base.header.tensors if name.startswith("blk.1.")}
        assert set(header.tensors) == {name.replace("blk.1.", "blk.0.") for name in names} | {
            "token_embd.weight",
            "output_norm.weight",
        }
        assert header.tensors["token_embd.weight"] == parts.base.header.tensors["output.weight"]
    assert done.heads.parameters == 2 * (parameters(parts.heads[0].header.tensors))


def test_a_type_that_heads_are_not_written_in(make_checkpoint: Callable[..., Path]) -> None:
    with pytest.raises(UsageError) as caught:
        convert(make_checkpoint(), heads_type_name="q4_k_m")
    assert str(caught.value) == (
        "heads are written in one of f32, f16, bf16, q8_0, q4_0, and q4_k_m was asked for; `nptool quantize` makes the "
        "others"
    )


def parameters(tensors: dict[str, tuple[tuple[int, ...], int]]) -> int:
    return sum(int(np.prod(shape)) for shape, _ in tensors.values())


@pytest.mark.parametrize(
    ("type_name", "heads_type", "expected"),
    [
        ("f32", None, "q8_0"),
        ("q4_k_m", None, "q8_0"),
        ("q8_0", "bf16", "bf16"),
        ("q4_k_m", "f16", "f16"),
        ("f32", "q4_0", "q4_0"),
    ],
)
def test_types_of_the_heads(
    type_name: str,
    heads_type: str | None,
    expected: str,
    make_checkpoint: Callable[..., Path],
    add_heads: Callable[..., Path],
    tmp_path: Path,
) -> None:
    directory = add_heads(make_checkpoint(hidden_size=256, intermediate_size=256, head_dim=64), 3)
    done = convert(directory, tmp_path / "model.gguf", type_name=type_name, heads_type_name=heads_type)
    assert done.heads is not None
    assert done.heads.file_type == expected
    parts = find_parts(done.path)
    kinds = {gguf.GGMLQuantizationType(kind).name for part in parts.heads for _, kind in part.header.tensors.values()}
    assert kinds == {"F32", expected.upper()}
    assert done.remarks == ()
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


@st.composite
def configurations(draw: st.DrawFn) -> tuple[str, int, dict[str, Any], bool]:
    """Architecture, heads in all, sizes, whether the trunk is trained too."""
    architecture = draw(st.sampled_from(["Llama", "Mistral", "Qwen2", "Qwen3"]))
    key_value_heads = draw(st.integers(1, 3))
    heads = key_value_heads * draw(st.integers(1, 3))
    head_dim = draw(st.sampled_from([8, 16, 32]))
    sizes = {
        "hidden_size": heads * head_dim,
        "head_dim": head_dim,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
        "num_hidden_layers": draw(st.integers(2, 3)),
        "intermediate_size": draw(st.integers(2, 40)) * 4,
        "vocab_size": draw(st.integers(490, 700)),
        "tie_word_embeddings": draw(st.booleans()),
        "max_position_embeddings": draw(st.sampled_from([128, 2048])),
    }
    return f"{architecture}ForCausalLM", draw(st.integers(2, 5)), sizes, draw(st.booleans())


def train_a_step(directory: Path, target: Path, *, joint: bool) -> Path:
    """A checkpoint after one step of its heads, or of everything; the weights are those of a plain loop over the heads.

    A step of plain gradient descent, so that the plain loop need not know an optimizer.
    """
    ids_BT = torch.randint(0, 480, (3, 9), generator=torch.Generator().manual_seed(6))
    positions_N = torch.arange(ids_BT.numel()).view_as(ids_BT)[:, 2:-1].flatten()
    row_N, place_N = positions_N // 9, positions_N % 9
    models = load_heads(directory), load_heads(directory)
    for model in models:
        model.requires_grad_(True) if joint else model.freeze_trunk()
    model, plain = models
    ahead_NK = place_N[:, None] + torch.arange(1, model.count + 1)
    labels_NK = torch.where(ahead_NK < 9, ids_BT[row_N[:, None], ahead_NK.clamp(max=8)], IGNORE)
    heads_loss(model, ids_BT, positions_N, labels_NK, (labels_NK != IGNORE).sum(0)).loss.backward()
    trunk = plain.run_trunk(ids_BT)
    losses = []
    layers: Any = [plain.last, *plain.extra.layers]
    for number, head in enumerate(layers):
        hidden_BTD = plain.norm(head(trunk.z_BTD, **trunk.arguments))
        logits_NV = torch.nn.functional.linear(hidden_BTD.flatten(0, 1)[positions_N], plain.unembedding_VD)
        # With few tokens and many heads, the last ones may have none to say.
        if (labels_NK[:, number] != IGNORE).any():
            losses.append(torch.nn.functional.cross_entropy(logits_NV, labels_NK[:, number], ignore_index=IGNORE))
    torch.stack(losses).sum().backward()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    with torch.no_grad():
        for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True):
            if mine.requires_grad:
                assert mine.grad is not None
                assert theirs.grad is not None
                scale = float(theirs.grad.abs().max())
                assert (mine.grad - theirs.grad).abs().max() <= 1e-3 * scale + 1e-7
                mine -= 1e-3 / (scale + 1e-9) * mine.grad
    moved = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    assert all(joint or name.startswith("extra.") for name in moved)
    assert any(name.startswith("extra.layers.0.") for name in moved)
    save_heads(model, load_tokenizer(directory), target)
    return target


def decoded(path: Path, count: int) -> dict[tuple[str, float], list[int]]:
    """What a chain of a file's heads says, and plain decoding of equal width; greedy and sampled."""
    found = {}
    with nptool.load(path, threads=1, context_length=64) as model:
        prompt = model.encode("the cat sat", raw=True)
        for temperature in (0.0, 0.8):
            sampling = Sampling(temperature, seed=7)
            for name in ("ar", "heads"):
                config = DecodeConfig(name, count, exact=True, max_tokens=20, sampling=sampling)
                answer = model.answer(prompt, config)
                for _ in answer:
                    pass
                found[name, temperature] = answer.tokens
    return found


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=EXAMPLES == 20,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(drawn=configurations())
def test_random_configurations(
    drawn: tuple[str, int, dict[str, Any], bool], make_checkpoint: Callable[..., Path], add_heads: Callable[..., Path]
) -> None:
    """A step of training, the checkpoint, the GGUF, and decoding: each agrees with the one before."""
    architecture, count, sizes, joint = drawn
    tokenizer = "qwen2" if architecture.startswith("Qwen") else "own"
    directory = add_heads(make_checkpoint(architecture, tokenizer, **dict(sizes)), count)
    with tempfile.TemporaryDirectory() as folder:
        trained = train_a_step(directory, Path(folder) / "model", joint=joint)
        done = convert(trained, Path(folder) / "model.gguf", type_name="f32", heads_type_name="f32")
        ids = np.random.default_rng(5).integers(0, 480, 48).astype(np.int32)
        expected, found = expected_logits(trained, count, ids), found_logits(done.path, ids)
        texts = decoded(done.path, count)
    shutil.rmtree(directory)
    for method, text in texts.items():
        assert text == texts["ar", *method[1:]], method
    assert done.heads is not None
    assert done.heads.logits is not None
    assert len(found) == len(expected) == len(done.heads.logits) == count - 1
    assert max(logits.relative for logits in done.heads.logits) < F32_TOLERANCE
    for one, other in zip(found, expected, strict=True):
        assert np.abs(one - other).max() < TRUNK_TOLERANCE * other.std()
