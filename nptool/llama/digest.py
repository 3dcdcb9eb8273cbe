"""What a measurement of llama.cpp depends on: the model, the build, the machine and the settings."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import llama_cpp

from nptool.llama.context import Context
from nptool.llama.gguf_check import Header
from nptool.llama.library import initialize
from nptool.provenance import machine

# Bytes of a sample, and number of samples spread over the tensor data.
_SAMPLE = 4096
_SAMPLES = 8


def file_digest(header: Header) -> str:
    """Sixteen hexadecimal digits from the file's size, both ends of its header and a few samples of its tensors."""
    digest = blake2b(digest_size=8)
    with header.path.open("rb") as stream:
        size = stream.seek(0, 2)
        digest.update(str(size).encode())
        begin, end = header.data_start, max(header.data_start, header.data_end - _SAMPLE)
        samples = {begin + (end - begin) * number // _SAMPLES for number in range(_SAMPLES + 1)}
        for place in sorted({0, max(0, begin - _SAMPLE)} | samples):
            stream.seek(place)
            digest.update(place.to_bytes(8, "little") + stream.read(_SAMPLE))
    return digest.hexdigest()


def identity(context: Context) -> dict[str, Any]:
    """Everything that the time and the bits of a step depend on, as JSON values."""
    initialize()
    options = context.model.options
    return {
        "model": file_digest(context.model.header),
        "llama_cpp": llama_cpp.__version__,
        "build": llama_cpp.llama_print_system_info().decode("utf-8", errors="replace"),
        "processor": machine()["processor"],
        "cores": machine()["cores"],
        "threads": context.threads,
        "devices": [options.gpu_layers, options.split_mode, options.tensor_split, options.main_gpu, options.rpc],
        "adapters": [blake2b(path.read_bytes(), digest_size=8).hexdigest() for path in options.lora],
        "cache": [context.settings.cache_type_k, context.settings.cache_type_v],
        "flash_attention": context.settings.flash_attention,
    }
