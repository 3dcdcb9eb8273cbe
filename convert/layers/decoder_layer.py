"""Building blocks of model families: norms, linear maps, attention, gated feed-forward networks, pre-norm decoders.

Names are transformers' and those of the GGUF format (`gguf.constants`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from nptool.convert.layers.model_spec import Config, ModelSpec, Reader, Seam, Sizes, TensorSpec
from nptool.convert.layers.rope import Rope, read_as_pairs
from nptool.convert.layers.weights import StoredTensor

PRE_NORM_SEAMS = (
    Seam("attn_norm", "input_layernorm", "the attention norm of layer {0} (blk.{0}.attn_norm.weight)"),
    Seam(
        "ffn_inp",
        "post_attention_layernorm",
        "the attention of layer {0}: values or output projection (blk.{0}.attn_v, attn_output)",
        of_input=True,
        later_part="the attention of layer {0}: rotation, order or bias of queries and keys "
        "(blk.{0}.attn_q, attn_k, RoPE)",
    ),
    Seam("ffn_norm", "post_attention_layernorm", "the feed-forward norm of layer {0} (blk.{0}.ffn_norm.weight)"),
    Seam("l_out", "", "the feed-forward network of layer {0} (blk.{0}.ffn_gate, ffn_up, ffn_down)"),
)


def read_sizes(config: Config, *, context: int, head_dim: int | None = None) -> Sizes:
    """The sizes, or CheckpointError if one is missing.

    Args:
        context: the family's default of `max_position_embeddings`.
        head_dim: the family's default; None is hidden size / heads.
    """
    heads, hidden = config.size("num_attention_heads"), config.size("hidden_size")
    return Sizes(
        vocabulary=config.size("vocab_size"),
        context=int(config.get("max_position_embeddings") or context),
        hidden=hidden,
        feed_forward=config.size("intermediate_size"),
        layers=config.size("num_hidden_layers"),
        heads=heads,
        key_value_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=int(config.get("head_dim") or head_dim or hidden // heads),
        tied=bool(config.get("tie_word_embeddings", False)),
    )


def norm(module: str, name: str, size: int) -> TensorSpec:
    return TensorSpec(f"{module}.weight", f"{name}.weight", (size,))


def linear(
    module: str, name: str, shape: tuple[int, int], bias: bool, read: Reader = StoredTensor.chunks
) -> list[TensorSpec]:
    """A matrix (out, in), and its bias if it has one."""
    weight = TensorSpec(f"{module}.weight", f"{name}.weight", shape, read)
    return [weight, TensorSpec(f"{module}.bias", f"{name}.bias", shape[:1], read)] if bias else [weight]


def attention(
    sizes: Sizes, *, rotates_pairs: bool, qkv_bias: bool = False, output_bias: bool = False
) -> list[TensorSpec]:
    """Grouped-query attention with RoPE.

    Args:
        rotates_pairs: the graph rotates neighbouring rows (2i, 2i + 1) of Q and K, instead of transformers' halves.
    """
    hidden, queries, keys = sizes.hidden, sizes.heads * sizes.head_dim, sizes.key_value_heads * sizes.head_dim
    read = partial(read_as_pairs, head_dim=sizes.head_dim) if rotates_pairs else StoredTensor.chunks
    return [
        *linear("self_attn.q_proj", "attn_q", (queries, hidden), qkv_bias, read),
        *linear("self_attn.k_proj", "attn_k", (keys, hidden), qkv_bias, read),
        *linear("self_attn.v_proj", "attn_v", (keys, hidden), qkv_bias),
        *linear("self_attn.o_proj", "attn_output", (hidden, queries), output_bias),
    ]


def gated_feed_forward(sizes: Sizes, *, bias: bool = False) -> list[TensorSpec]:
    """down(act(gate(x)) * up(x)); the graph says which activation."""
    hidden, inner = sizes.hidden, sizes.feed_forward
    return [
        *linear("mlp.gate_proj", "ffn_gate", (inner, hidden), bias),
        *linear("mlp.up_proj", "ffn_up", (inner, hidden), bias),
        *linear("mlp.down_proj", "ffn_down", (hidden, inner), bias),
    ]


def pre_norm_decoder(
    config: Config,
    architecture: str,
    graph: str,
    sizes: Sizes,
    rope: Rope,
    body: Sequence[TensorSpec],
    remarks: tuple[str, ...] = (),
) -> ModelSpec:
    """A decoder whose layers add attention(norm(x)), then a SiLU-gated feed_forward(norm(x)); attention is full.

    Args:
        body: a layer's tensors between the two norms.

    Raises:
        CheckpointError: another activation, or `use_sliding_window` is on.
    """
    activation = config.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise config.error(f"hidden_act is {activation}; llama.cpp's {graph} graph has silu only")
    if config.get("use_sliding_window"):
        raise config.error(f"use_sliding_window is on; llama.cpp's {graph} graph attends to the whole context")
    attention_norm = norm("input_layernorm", "attn_norm", sizes.hidden)
    feed_forward_norm = norm("post_attention_layernorm", "ffn_norm", sizes.hidden)
    return ModelSpec(
        architecture=architecture,
        graph=graph,
        sizes=sizes,
        layer=(attention_norm, *body, feed_forward_norm),
        final_norm=norm("model.norm", "output_norm", sizes.hidden),
        metadata={
            "feed_forward_length": sizes.feed_forward,
            "attention.head_count": sizes.heads,
            "attention.head_count_kv": sizes.key_value_heads,
            "attention.key_length": sizes.head_dim,
            "attention.value_length": sizes.head_dim,
            "attention.layer_norm_rms_epsilon": float(config.get("rms_norm_eps", 1e-6)),
            **rope.metadata(sizes.head_dim),
        },
        seams=PRE_NORM_SEAMS,
        frequency_factors=rope.frequency_factors(sizes.head_dim),
        remarks=remarks,
    )
