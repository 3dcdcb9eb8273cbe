"""Llama, and models of its architecture such as TinyLlama, SmolLM and DeepSeek-Coder."""

from __future__ import annotations

from nptool.convert.layers.decoder_layer import attention, gated_feed_forward, pre_norm_decoder, read_sizes
from nptool.convert.layers.model_spec import Config, ModelSpec
from nptool.convert.layers.rope import read_rope

ARCHITECTURE = "LlamaForCausalLM"


def read(config: Config) -> ModelSpec:
    sizes = read_sizes(config, context=2048)
    bias = bool(config.get("attention_bias"))
    body = [
        *attention(sizes, rotates_pairs=True, qkv_bias=bias, output_bias=bias),
        *gated_feed_forward(sizes, bias=bool(config.get("mlp_bias"))),
    ]
    return pre_norm_decoder(config, ARCHITECTURE, "llama", sizes, read_rope(config, sizes.context), body)
