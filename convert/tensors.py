"""From a checkpoint's tensors to a GGUF's: names, shapes, order of rows.

A table pairs the names; the sizes say which tensors must be there and in which shape, so that a checkpoint that is not
what its configuration says is found out before anything is written. Values are never held here: a `Tensor` reads its
rows when they are asked for. Knows no file format.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from nptool.convert.hyperparameters import Hyperparameters
from nptool.convert.weights import StoredTensor, same_values
from nptool.errors import CheckpointError

EMBEDDING = "model.embed_tokens.weight"
UNEMBEDDING = "lm_head.weight"
ROPE_FREQUENCIES = "rope_freqs.weight"
LAYER_PREFIX = "model.layers."
SHOWN = 4
"""Names listed in a message before it says how many more there are."""

NAMES = {EMBEDDING: "token_embd.weight", "model.norm.weight": "output_norm.weight", UNEMBEDDING: "output.weight"}
LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
# Buffers that old checkpoints carry along; they follow from the configuration.
IGNORED_SUFFIXES = (".rotary_emb.inv_freq", ".rotary_emb.cos_cached", ".rotary_emb.sin_cached")


@dataclass(frozen=True)
class Tensor:
    """One tensor of the GGUF, its rows still on disk (or computed, where `stored` is None)."""

    name: str
    shape: tuple[int, ...]
    stored: StoredTensor | None
    order: NDArray[np.intp] | None = None
    """Numbers of the stored rows in the order the GGUF has them; None where they are the same."""
    values: NDArray[np.float32] | None = None

    @property
    def size(self) -> int:
        return prod(self.shape)

    def chunks(self) -> Iterator[NDArray[np.float32]]:
        """Rows as float32, some at a time."""
        if self.stored is not None:
            yield from self.stored.chunks(self.order)
        elif self.values is not None:
            yield self.values


def gguf_tensors(sizes: Hyperparameters, stored: Mapping[str, StoredTensor], source: str) -> Iterator[Tensor]:
    """The GGUF's tensors in the order they are written: embedding, RoPE factors, layers, norm, unembedding.

    Args:
        stored: the checkpoint's tensors by transformers' name.
        source: what the messages call the checkpoint.

    Raises:
        CheckpointError: tensors are missing, not expected, or of another shape than the sizes say.
    """
    expected = expected_shapes(sizes)
    if sizes.tied and UNEMBEDDING in stored and not _is_tied(stored):
        # transformers keeps the two apart as well, whatever the configuration says.
        expected[UNEMBEDDING] = expected[EMBEDDING]
    _check(expected, stored, sizes, source)
    for name, shape in expected.items():
        yield Tensor(gguf_name(name), shape, stored[name], _row_order(name, sizes))
        if name == EMBEDDING and (factors := sizes.rope.frequency_factors(sizes.head_dim)):
            values = np.asarray(factors, np.float32)
            yield Tensor(ROPE_FREQUENCIES, values.shape, None, values=values)


def expected_shapes(sizes: Hyperparameters) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor the sizes ask for, by transformers' name."""
    hidden, inner = sizes.hidden, sizes.feed_forward
    queries, keys = sizes.heads * sizes.head_dim, sizes.key_value_heads * sizes.head_dim
    matrices = {
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (sizes.vocabulary, hidden)}
    for layer in range(sizes.layers):
        prefix = f"{LAYER_PREFIX}{layer}."
        shapes[f"{prefix}input_layernorm.weight"] = (hidden,)
        for part, shape in matrices.items():
            shapes[f"{prefix}{part}.weight"] = shape
            if _has_bias(part, sizes):
                shapes[f"{prefix}{part}.bias"] = shape[:1]
        if sizes.family.query_key_norm:
            shapes[f"{prefix}self_attn.q_norm.weight"] = (sizes.head_dim,)
            shapes[f"{prefix}self_attn.k_norm.weight"] = (sizes.head_dim,)
        shapes[f"{prefix}post_attention_layernorm.weight"] = (hidden,)
    shapes["model.norm.weight"] = (hidden,)
    if not sizes.tied:
        shapes[UNEMBEDDING] = (sizes.vocabulary, hidden)
    return shapes


def gguf_name(name: str) -> str:
    """The GGUF's name of one of the tensors of `expected_shapes`."""
    if name in NAMES:
        return NAMES[name]
    layer, _, rest = name.removeprefix(LAYER_PREFIX).partition(".")
    part, _, kind = rest.rpartition(".")
    return f"blk.{layer}.{LAYER_NAMES[part]}.{kind}"


def rope_row_order(rows: int, head_dim: int) -> NDArray[np.intp]:
    """Numbers of Q's or K's rows in llama's order.

    transformers rotates row i of a head with row i + head_dim / 2, llama's graph rotates rows 2i and 2i + 1.
    """
    halves = np.arange(rows).reshape(rows // head_dim, 2, head_dim // 2)
    return halves.swapaxes(1, 2).reshape(rows)


def _row_order(name: str, sizes: Hyperparameters) -> NDArray[np.intp] | None:
    if not sizes.family.rope_pairs:
        return None
    for part, heads in (("self_attn.q_proj", sizes.heads), ("self_attn.k_proj", sizes.key_value_heads)):
        if part in name:
            return rope_row_order(heads * sizes.head_dim, sizes.head_dim)
    return None


def _has_bias(part: str, sizes: Hyperparameters) -> bool:
    if part == "self_attn.o_proj":
        return sizes.output_bias
    return sizes.feed_forward_bias if part.startswith("mlp.") else sizes.qkv_bias


def _is_tied(stored: Mapping[str, StoredTensor]) -> bool:
    return EMBEDDING in stored and same_values(stored[EMBEDDING], stored[UNEMBEDDING])


def _check(
    expected: Mapping[str, tuple[int, ...]], stored: Mapping[str, StoredTensor], sizes: Hyperparameters, source: str
) -> None:
    missing = [name for name in expected if name not in stored]
    unexpected = [
        name
        for name in stored
        if name not in expected and not name.endswith(IGNORED_SUFFIXES) and not (sizes.tied and name == UNEMBEDDING)
    ]
    if missing:
        raise CheckpointError(
            f"{source} lacks {listed(missing)}, which {sizes.family.architecture} has; {_cause(missing, unexpected)}"
        )
    if unexpected:
        raise CheckpointError(
            f"{source} has {listed(unexpected)}, for which {sizes.family.architecture} has no place; "
            f"{_cause(missing, unexpected)}"
        )
    for name, shape in expected.items():
        if stored[name].shape != shape:
            raise CheckpointError(
                f"{source}: {name} has shape {stored[name].shape}, config.json asks for {shape}; "
                "the weights belong to another configuration"
            )


def listed(names: list[str]) -> str:
    """Some names and how many more there are, for a message."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}"


def _cause(missing: list[str], unexpected: list[str]) -> str:
    if missing == [UNEMBEDDING]:
        return "if the embedding serves as unembedding, config.json must say tie_word_embeddings: true"
    if any("lora_" in name or name.startswith("base_model.") for name in unexpected):
        return "these are LoRA weights: merge them into the base model first"
    if any(name.endswith((".qweight", ".qzeros", ".scales", ".weight_scale", ".absmax")) for name in unexpected):
        return "these are quantised weights: convert the unquantised checkpoint"
    if any(name.startswith(("visual.", "vision_", "model.vision", "audio_")) for name in unexpected):
        return "this is a multimodal model: nptool converts text models"
    if unexpected and not missing and all(name.endswith(".bias") for name in unexpected):
        return "if the model has biases, config.json must say attention_bias or mlp_bias: true"
    return "config.json describes another model than the weights, or a shard is of another checkpoint"
