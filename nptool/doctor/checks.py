"""The problems that facts show, each a line that ends with what to do. A check is one function."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from nptool.doctor.facts import Facts, Package, RunState
from nptool.doctor.rebuild import missing_backends, missing_instructions, rebuild_line

LITTLE_MEMORY, LITTLE_DISK = 2 << 30, 5 << 30
"""Bytes: what the embedded default needs to be trained, and what a run of it and its GGUF files take, with room."""
GIB = 1 << 30


def not_installed(facts: Facts) -> Iterator[str]:
    if facts.version("nptool") is None:
        yield "nptool runs from a folder, and what it needs is not known: in that folder, pip install -e ."


def missing_packages(facts: Facts) -> Iterator[str]:
    for package in facts.packages:
        wanted = f"{package.name}>={package.minimum}" if package.minimum else package.name
        if package.version is None and package.name != "nptool":
            yield f"{package.name} is not installed: pip install '{wanted}'"
        elif package.version and package.minimum and _numbers(package.version) < _numbers(package.minimum):
            yield (
                f"{package.name} {package.version} is too old, nptool needs {package.minimum}: "
                f"pip install --upgrade '{wanted}'"
            )


def broken_packages(facts: Facts) -> Iterator[str]:
    for name, reason in facts.broken.items():
        version = facts.version(name)
        if version is not None:
            yield (
                f"{name} {version} is installed but cannot be loaded ({reason}): pip install --force-reinstall "
                f"--no-cache-dir {name}=={version.partition('+')[0]}"
            )


def llama_without_gpu(facts: Facts) -> Iterator[str]:
    """An Intel GPU is none here: few are faster than the processor beside them."""
    if facts.llama is None or facts.llama.uses_gpu or not facts.machine.gpus:
        return
    names = ", ".join(gpu.name for gpu in facts.machine.gpus)
    missing = missing_backends(facts)
    if missing:
        built = " and ".join(missing)
        yield f"this machine has {names}, and llama.cpp was built without {built}: {rebuild_line(facts)}"
    else:
        yield f"this machine has {names}, and llama.cpp, built for it, sees none: check {_visibility(facts)}"


def torch_without_gpu(facts: Facts) -> Iterator[str]:
    names = [gpu.name for gpu in facts.machine.gpus if gpu.backend == "CUDA"]
    if facts.torch is None or facts.torch.gpus or not names:
        return
    if facts.torch.cuda is None:
        yield (
            f"this machine has {names[0]}, and torch was built without CUDA, so training runs on the processor: "
            "install the CUDA build that https://pytorch.org/get-started/locally names"
        )
    else:
        yield (
            f"this machine has {names[0]}, and torch, built for CUDA {facts.torch.cuda}, sees none: check "
            f"{_visibility(facts)}"
        )


def slow_build(facts: Facts) -> Iterator[str]:
    missing = missing_instructions(facts)
    if missing:
        yield (
            f"the processor has {', '.join(missing)}, and llama.cpp was built without, which makes it slower: "
            f"{rebuild_line(facts)}"
        )


def too_many_threads(facts: Facts) -> Iterator[str]:
    usable = facts.machine.usable_cores
    if facts.torch is not None and facts.torch.threads > usable:
        yield (
            f"torch uses {facts.torch.threads} threads on {usable} usable cores, which slows training down: "
            f"export OMP_NUM_THREADS={usable}"
        )


def cache_not_writable(facts: Facts) -> Iterator[str]:
    if not facts.cache.writable:
        yield (
            f"the cache folder {facts.cache.path} cannot be written, so every start measures the model again: set "
            "NPTOOL_CACHE to a folder that can"
        )


def work_not_writable(facts: Facts) -> Iterator[str]:
    if not facts.work.writable:
        yield f"this folder, {facts.work.path}, cannot be written, and runs are written here: change to another one"


def little_memory(facts: Facts) -> Iterator[str]:
    free = facts.machine.free_memory
    if free is not None and free < LITTLE_MEMORY:
        yield (
            f"{free / GIB:.1f} GiB of memory are free, and training the default takes {LITTLE_MEMORY / GIB:.0f}: end "
            "other programs"
        )


def little_disk(facts: Facts) -> Iterator[str]:
    if facts.work.free < LITTLE_DISK:
        yield (
            f"{facts.work.free / GIB:.1f} GiB are left on the disk of {facts.work.path}, and a run and its files take "
            f"{LITTLE_DISK / GIB:.0f}: free some"
        )


def newest_run(facts: Facts) -> Iterator[str]:
    if facts.run.state is RunState.DAMAGED:
        yield f"the newest run is damaged: {facts.run.reason}"
    elif facts.run.state is RunState.UNCONVERTED:
        yield f"the newest run, {facts.run.path}, is not converted: nptool convert"


CHECKS: tuple[Callable[[Facts], Iterator[str]], ...] = (
    not_installed,
    missing_packages,
    broken_packages,
    llama_without_gpu,
    torch_without_gpu,
    slow_build,
    too_many_threads,
    cache_not_writable,
    work_not_writable,
    little_memory,
    little_disk,
    newest_run,
)


def find_problems(facts: Facts) -> list[str]:
    """A line for each problem."""
    return [line for check in CHECKS for line in check(facts)]


def find_remarks(facts: Facts) -> list[str]:
    """Versions other than those with which the project's figures were measured."""
    return [
        f"{package.name} is {package.version}, and the figures were measured with {package.measured}"
        for package in facts.packages
        if _differs(package)
    ]


def _differs(package: Package) -> bool:
    versions = package.version, package.measured
    return None not in versions and len({_numbers(version or "") for version in versions}) > 1


def _visibility(facts: Facts) -> str:
    hidden = facts.visible_devices
    return "the driver" if hidden is None else f"CUDA_VISIBLE_DEVICES, which is {hidden!r}, and the driver"


def _numbers(version: str) -> tuple[int, ...]:
    """`2.13.0+cpu` -> (2, 13); zeros at the end say nothing."""
    found = re.match(r"\d+(\.\d+)*", version)
    numbers = [int(number) for number in found[0].split(".")] if found else []
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)
