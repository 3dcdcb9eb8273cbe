"""Qwen 2 and 2.5, whose queries, keys and values always have biases.

Uses llama.cpp's `llama` graph, which computes the same: its `qwen2` graph does not expose the layer inputs that
parallel heads read.
"""

from __future__ import annotations

from nptool.convert.layers.decoder_layer import attention, gated_feed_forward, pre_norm_decoder, read_sizes
from nptool.convert.layers.model_spec import Config, ModelSpec
from nptool.convert.layers.rope import read_rope

ARCHITECTURE = "Qwen2ForCausalLM"


def read(config: Config) -> ModelSpec:
    sizes = read_sizes(config, context=32768)
    body = [*attention(sizes, rotates_pairs=True, qkv_bias=True), *gated_feed_forward(sizes)]
    return pre_norm_decoder(config, ARCHITECTURE, "llama", sizes, read_rope(config, sizes.context), body)
