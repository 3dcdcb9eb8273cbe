"""How a GGUF is loaded. Does not import llama_cpp."""

from __future__ import annotations

from dataclasses import dataclass

from nptool.options import option


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    gpu_layers: int = option(0, "layers on the GPU; -1 is all", "-ngl")
    context_length: int | None = option(
        None, "context in tokens", "-c", "--ctx-size", shown="the model's, at most 4096"
    )
    threads: int | None = option(None, "threads", "-t", shown="usable cores")
    flash_attention: bool | None = option(
        None, "llama.cpp's fused attention", shown="on a GPU, and for very small models"
    )
    """None is the default of `nptool.llama.attention`."""
