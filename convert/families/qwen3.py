"""Qwen 3, dense: queries and keys are normalized per head before RoPE."""

from __future__ import annotations

from nptool.convert.layers.decoder_layer import attention, gated_feed_forward, norm, pre_norm_decoder, read_sizes
from nptool.convert.layers.model_spec import Config, ModelSpec
from nptool.convert.layers.rope import DEFAULT, LINEAR, YARN, read_rope

ARCHITECTURE = "Qwen3ForCausalLM"
GRAPH = "qwen3"


def read(config: Config) -> ModelSpec:
    if config.get("attention_bias"):
        raise config.error(f"attention_bias is on; llama.cpp's {GRAPH} graph has no biases")
    sizes = read_sizes(config, context=32768, head_dim=128)
    # The graph reads no frequency factors, which llama3 scaling needs.
    rope = read_rope(config, sizes.context, (DEFAULT, LINEAR, YARN))
    body = [
        *attention(sizes, rotates_pairs=False),
        *gated_feed_forward(sizes),
        norm("self_attn.q_norm", "attn_q_norm", sizes.head_dim),
        norm("self_attn.k_norm", "attn_k_norm", sizes.head_dim),
    ]
    return pre_norm_decoder(config, ARCHITECTURE, GRAPH, sizes, rope, body)
