"""Mistral. Its sliding window is left out, because llama.cpp's `llama` graph attends to the whole context."""

from __future__ import annotations

from nptool.convert.layers.decoder_layer import attention, gated_feed_forward, pre_norm_decoder, read_sizes
from nptool.convert.layers.model_spec import Config, ModelSpec
from nptool.convert.layers.rope import read_rope

ARCHITECTURE = "MistralForCausalLM"


def read(config: Config) -> ModelSpec:
    sizes = read_sizes(config, context=131072)
    window = config.get("sliding_window", 4096)
    remarks: tuple[str, ...] = ()
    if window and int(window) < sizes.context:
        remarks = (
            f"the model attends to the last {int(window)} tokens; llama.cpp's graph attends to the whole context, so "
            "beyond that length it differs",
        )
    body = [*attention(sizes, rotates_pairs=True), *gated_feed_forward(sizes)]
    return pre_norm_decoder(config, ARCHITECTURE, "llama", sizes, read_rope(config, sizes.context), body, remarks)
