"""The command that builds llama.cpp again for this machine."""

from __future__ import annotations

from collections.abc import Iterator

from nptool.doctor.facts import Backend, Facts

LLAMA = "llama-cpp-python"
NATIVE = "GGML_NATIVE"
OPTIONS = {Backend.CUDA: "GGML_CUDA", Backend.METAL: "GGML_METAL", Backend.VULKAN: "GGML_VULKAN"}
INSTRUCTIONS = {
    "avx": "AVX",
    "avx2": "AVX2",
    "fma": "FMA",
    "f16c": "F16C",
    "avx_vnni": "AVX_VNNI",
    "avx512f": "AVX512",
    "avx512_vnni": "AVX512_VNNI",
    "avx512_bf16": "AVX512_BF16",
    "asimd": "NEON",
    "asimddp": "DOTPROD",
    "i8mm": "MATMUL_INT8",
}
"""Linux's name of an instruction set to llama.cpp's, for those that its matrix products gain by."""


def rebuild_line(facts: Facts) -> str | None:
    """The command, or None where the build already suits the machine."""
    options = [*_backends(facts), *([NATIVE] if missing_instructions(facts) else [])]
    return _command(options, facts.version(LLAMA)) if options else None


def missing_backends(facts: Facts) -> list[Backend]:
    """Backends for GPUs of the machine that llama.cpp was built without."""
    if facts.llama is None or facts.llama.uses_gpu:
        return []
    built = {name.lower() for name in facts.llama.features}
    # Metal's features are listed as MTL in newer versions.
    built |= {"metal"} & {name.replace("mtl", "metal") for name in built}
    wanted = dict.fromkeys(gpu.backend for gpu in facts.machine.gpus)
    return [backend for backend in wanted if backend.lower() not in built]


def missing_instructions(facts: Facts) -> list[str]:
    """Instruction sets of the processor that llama.cpp was built without."""
    built = facts.llama.features.get("CPU") if facts.llama is not None else None
    if not built:
        return []
    here = (name for flag, name in INSTRUCTIONS.items() if flag in facts.machine.flags)
    return [name for name in here if built.get(name, "0") == "0"]


def _backends(facts: Facts) -> Iterator[str]:
    return (OPTIONS[backend] for backend in missing_backends(facts))


def _command(options: list[str], version: str | None) -> str:
    flags = " ".join(f"-D{option}=on" for option in options)
    quoted = f'"{flags}"' if len(options) > 1 else flags
    package = LLAMA if version is None else f"{LLAMA}=={version}"
    return f"CMAKE_ARGS={quoted} pip install --force-reinstall --no-deps --no-cache-dir {package}"
