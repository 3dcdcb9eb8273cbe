"""What the installed llama.cpp was built with, and the devices that it sees. Importing this loads it."""

from __future__ import annotations

import ctypes
from typing import Any

import llama_cpp

from nptool.doctor.facts import Build, Device
from nptool.llama.library import initialize, supports_gpu

_KINDS = ("CPU", "GPU", "integrated GPU", "accelerator")
"""Of `ggml_backend_dev_type`."""


def read_build() -> Build:
    """Ask the loaded library."""
    initialize()
    return Build(
        features=parse_features(llama_cpp.llama_print_system_info().decode("utf-8", errors="replace")),
        gpu_offload=supports_gpu(),
        mmap=bool(llama_cpp.llama_supports_mmap()),
        mlock=bool(llama_cpp.llama_supports_mlock()),
        rpc=bool(llama_cpp.llama_supports_rpc()),
        devices=_devices(llama_cpp.llama_cpp._lib),
    )


def parse_features(text: str) -> dict[str, dict[str, str]]:
    """`CUDA : ARCHS = 900 | CPU : AVX2 = 1 | FMA = 1 | ` as a mapping."""
    found: dict[str, dict[str, str]] = {}
    backend = ""
    for part in text.split("|"):
        before, colon, feature = part.rpartition(" : ")
        backend = before.strip() if colon else backend
        name, equals, value = feature.partition("=")
        if equals:
            found.setdefault(backend, {})[name.strip()] = value.strip()
    return found


def _devices(library: Any) -> tuple[Device, ...] | None:
    # llama_cpp binds none of these functions.
    try:
        count = _function(library, "count", ctypes.c_size_t)
        get = _function(library, "get", ctypes.c_void_p, ctypes.c_size_t)
        name, text = (_function(library, what, ctypes.c_char_p, ctypes.c_void_p) for what in ("name", "description"))
        kind = _function(library, "type", ctypes.c_int, ctypes.c_void_p)
        size = ctypes.POINTER(ctypes.c_size_t)
        memory = _function(library, "memory", None, ctypes.c_void_p, size, size)
    except AttributeError:
        return None
    found = []
    for number in range(count()):
        device, free, total = get(number), ctypes.c_size_t(), ctypes.c_size_t()
        memory(device, ctypes.byref(free), ctypes.byref(total))
        code = kind(device)
        label = _KINDS[code] if code < len(_KINDS) else f"type {code}"
        found.append(Device(name(device).decode(), text(device).decode(), label, total.value, free.value))
    return tuple(found)


def _function(library: Any, what: str, result: Any, *arguments: Any) -> Any:
    return ctypes.CFUNCTYPE(result, *arguments)((f"ggml_backend_dev_{what}", library))
