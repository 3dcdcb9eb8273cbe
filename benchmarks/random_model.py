"""Random-weight Llama GGUFs of any size with a working byte-level BPE tokenizer, for benchmarks and tests.

A `counting` model is predictable, so that its extra heads can be right.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from nptool.heads import COUNT_KEY, INDEX_KEY, TRUNK_LAYER_KEY
from nptool.llama.gguf_parts import part_start

SPECIAL_TOKENS = ("<|bos|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|pad|>")
BYTES = 256
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
ROPE_BASE = 10000.0
NORM_EPSILON = 1e-5


@dataclass(frozen=True)
class Shape:
    """Sizes of a random Llama."""

    hidden: int = 64
    layers: int = 2
    heads: int = 4
    key_value_heads: int = 2
    feed_forward: int = 128
    vocabulary: int = 320
    """Tokens: special ones, 256 bytes, then pairs of letters; at least 262."""
    context: int = 1024

    @property
    def head_size(self) -> int:
        return self.hidden // self.heads


def write_random_model(
    path: str | Path,
    shape: Shape,
    *,
    kind: str = "f32",
    seed: int = 0,
    sharpness: float = 2.0,
    chat_template: str | None = CHAT_TEMPLATE,
    add_bos: bool = False,
    metadata: Mapping[str, str | int | float] | None = None,
    heads: int = 1,
    counting: float = 0.0,
) -> Path:
    """Write a random model to `path` and return it.

    Args:
        kind: type of the matrices: f32, f16, bf16, q8_0 or another that gguf can write.
        sharpness: approximate standard deviation of the logits.
        add_bos: whether the tokenizer adds `<|bos|>` to a text.
        metadata: more entries.
        heads: number of heads; those from the second on are written after the model.
        counting: weight of the continuation t + 1, t + 2, ... of token t in the model and its heads. Large values make
            every head right; with 0 they are random.
    """
    path = Path(path)
    entries: dict[str, str | int | float] = dict(metadata or {})
    if heads > 1:
        entries |= {COUNT_KEY: heads, TRUNK_LAYER_KEY: shape.layers - 1}
    generator = np.random.default_rng(seed)
    tensors = dict(_tensors(shape, generator, sharpness))
    embedding = tensors["token_embd.weight"]
    _draw(tensors, "output.weight", embedding, 1, counting)
    writer = gguf.GGUFWriter(path, "llama")
    _add_sizes(writer, shape)
    _add_tokenizer(writer, shape.vocabulary, chat_template, add_bos)
    for key, value in entries.items():
        if isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_string(key, value)
    _finish(writer, tensors, kind)
    for head in range(2, heads + 1):
        _append_head(path, head, shape, dict(_tensors(shape, generator, sharpness)), embedding, kind, counting)
    return path


def _draw(
    tensors: dict[str, NDArray[np.float32]],
    name: str,
    embedding_VD: NDArray[np.float32],
    distance: int,
    weight: float,
) -> None:
    """Move an unembedding towards the token `distance` after the one that is read."""
    tensors[name] = tensors[name] + np.float32(weight) * np.roll(embedding_VD, distance, axis=0)


def _append_head(
    path: Path,
    head: int,
    shape: Shape,
    tensors: dict[str, NDArray[np.float32]],
    embedding_VD: NDArray[np.float32],
    kind: str,
    counting: float,
) -> None:
    """Append a head to a file, in the layout that `convert` writes."""
    one_layer = replace(shape, layers=1)
    part = path.with_suffix(".head")
    writer = gguf.GGUFWriter(part, "llama")
    _add_sizes(writer, one_layer)
    writer.add_tokenizer_model("none")
    writer.add_uint32(INDEX_KEY, head)
    unembedding = tensors.pop("output.weight")
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("blk.") or name[4] == "0"}
    tensors["token_embd.weight"] = unembedding
    _draw(tensors, "token_embd.weight", embedding_VD, head, counting)
    _finish(writer, tensors, kind)
    with path.open("ab") as stream:
        stream.write(bytes(part_start(stream.tell()) - stream.tell()))
        stream.write(part.read_bytes())
    part.unlink()


def _finish(writer: Any, tensors: Mapping[str, NDArray[np.float32]], kind: str) -> None:
    for name, tensor in tensors.items():
        _add_tensor(writer, name, tensor, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_sizes(writer: Any, shape: Shape) -> None:
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.key_value_heads)
    writer.add_layer_norm_rms_eps(NORM_EPSILON)
    writer.add_rope_dimension_count(shape.head_size)
    writer.add_rope_freq_base(ROPE_BASE)
    writer.add_vocab_size(shape.vocabulary)


def _add_tokenizer(writer: Any, size: int, chat_template: str | None, add_bos: bool) -> None:
    tokens, merges = byte_level_vocabulary(size)
    types = [gguf.TokenType.CONTROL] * len(SPECIAL_TOKENS)
    types += [gguf.TokenType.NORMAL] * (size - len(SPECIAL_TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(tokens.index("<|bos|>"))
    writer.add_eos_token_id(tokens.index("<|end|>"))
    writer.add_pad_token_id(tokens.index("<|pad|>"))
    writer.add_add_bos_token(add_bos)
    if chat_template is not None:
        writer.add_chat_template(chat_template)


def byte_level_vocabulary(size: int) -> tuple[list[str], list[str]]:
    """Tokens and merges of a byte-level BPE of `size` tokens: special ones, bytes, then pairs of common letters."""
    alphabet = byte_alphabet()
    pairs = product("Ġabcdefghijklmnopqrstuvwxyz0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ", repeat=2)
    wanted = size - len(SPECIAL_TOKENS) - BYTES
    if wanted < 0:
        raise ValueError(f"a byte-level vocabulary has at least {len(SPECIAL_TOKENS) + BYTES} tokens, not {size}")
    chosen = [(left, right) for (left, right), _ in zip(pairs, range(wanted), strict=False)]
    fillers = [f"<|unused{index}|>" for index in range(wanted - len(chosen))]
    tokens = [*SPECIAL_TOKENS, *alphabet, *(left + right for left, right in chosen), *fillers]
    return tokens, [f"{left} {right}" for left, right in chosen] or ["a b"]


def byte_alphabet() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes: themselves where printable, else the next free code points."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    stand_ins = {byte: chr(byte) for byte in printable}
    for byte in range(BYTES):
        if byte not in stand_ins:
            stand_ins[byte] = chr(BYTES + len(stand_ins) - len(printable))
    return [stand_ins[byte] for byte in range(BYTES)]


def _tensors(
    shape: Shape, generator: np.random.Generator, sharpness: float
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Weights that keep activations at about 1 in all layers."""

    def matrix(rows: int, columns: int, scale: float = 1.0) -> NDArray[np.float32]:
        values = generator.standard_normal((rows, columns), dtype=np.float32)
        return values * np.float32(scale / np.sqrt(columns))

    hidden, inner = shape.hidden, shape.feed_forward
    key_value = shape.key_value_heads * shape.head_size
    yield "token_embd.weight", matrix(shape.vocabulary, hidden, float(np.sqrt(hidden)))
    yield "output.weight", matrix(shape.vocabulary, hidden, sharpness)
    yield "output_norm.weight", np.ones(hidden, dtype=np.float32)
    for layer in range(shape.layers):
        prefix = f"blk.{layer}."
        yield prefix + "attn_norm.weight", np.ones(hidden, dtype=np.float32)
        yield prefix + "attn_q.weight", matrix(hidden, hidden)
        yield prefix + "attn_k.weight", matrix(key_value, hidden)
        yield prefix + "attn_v.weight", matrix(key_value, hidden)
        yield prefix + "attn_output.weight", matrix(hidden, hidden)
        yield prefix + "ffn_norm.weight", np.ones(hidden, dtype=np.float32)
        yield prefix + "ffn_gate.weight", matrix(inner, hidden)
        yield prefix + "ffn_up.weight", matrix(inner, hidden)
        yield prefix + "ffn_down.weight", matrix(hidden, inner)


def _add_tensor(writer: Any, name: str, tensor: NDArray[np.float32], kind: str) -> None:
    if tensor.ndim == 1 or kind == "f32":
        writer.add_tensor(name, tensor)
        return
    number = gguf.GGMLQuantizationType[kind.upper()]
    writer.add_tensor(name, gguf.quants.quantize(tensor, number), raw_dtype=number)
