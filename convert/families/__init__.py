"""One module per model family of transformers; a module put here is found without being registered.

It has `ARCHITECTURE`, the class that `architectures` in config.json names, and `read(config)`, which returns the
`ModelSpec` or refuses what llama.cpp's graph does not compute: `TensorSpec.read` is for values that the graph reads in
another form, `metadata` for entries of the graph's own. What families share is in `decoder_layer` and `rope`.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pkgutil import iter_modules

from nptool.convert.layers.model_spec import Config, ModelSpec

_MODULES = [import_module(f"{__name__}.{found.name}") for found in iter_modules(__path__)]
FAMILIES: dict[str, Callable[[Config], ModelSpec]] = {module.ARCHITECTURE: module.read for module in _MODULES}


def read_model_spec(config: Config) -> ModelSpec:
    """Read a `config.json`.

    Raises:
        CheckpointError: unknown architecture, quantized weights, missing size, or what the family refuses.
    """
    architecture = next(iter(config.get("architectures") or ()), None)
    known = f"nptool converts {', '.join(FAMILIES)}"
    if architecture is None:
        raise config.error(f"config.json names no architecture (`architectures`); {known}")
    if architecture not in FAMILIES:
        raise config.error(f"architecture {architecture} is not supported; {known}")
    if quantized := config.get("quantization_config"):
        method = quantized.get("quant_method", "unknown") if isinstance(quantized, dict) else quantized
        raise config.error(
            f"the weights are already quantized (quantization_config: {method}); convert the unquantized checkpoint "
            "and choose the type with --type"
        )
    return FAMILIES[architecture](config)
