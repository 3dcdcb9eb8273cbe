"""Each check on facts of machines that are not at hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nptool.doctor import checks
from nptool.doctor.checks import CHECKS, find_problems, find_remarks
from nptool.doctor.facts import (
    Backend,
    Build,
    Device,
    Facts,
    Folder,
    Gpu,
    Machine,
    NewestRun,
    Package,
    RunState,
    Torch,
)
from nptool.doctor.rebuild import rebuild_line

GIB = 1 << 30
H200 = Device("CUDA0", "NVIDIA H200", "GPU", 140 * GIB, 139 * GIB)
PROCESSOR = Device("CPU", "one", "CPU", 16 * GIB, 8 * GIB)
HEALTHY = Facts(
    packages=(
        Package("nptool", "0.1.0", None, None),
        Package("torch", "2.13.0+cpu", "2.9", "2.13.0"),
        Package("llama-cpp-python", "0.3.36", "0.3.36", "0.3.36"),
    ),
    broken={},
    llama=Build({"CPU": {"AVX2": "1", "AVX512": "1"}}, False, True, True, False, (PROCESSOR,)),
    torch=Torch(None, False, (), 4),
    machine=Machine("one", "Linux x86_64", "3.11.7", 8, 4, 16 * GIB, 8 * GIB, ("avx2", "avx512f", "sse2"), ()),
    cache=Folder("/cache", 10, True, 50 * GIB),
    work=Folder("/here/runs", 10, True, 50 * GIB),
    run=NewestRun(RunState.CONVERTED, "runs/one"),
)
REBUILD = "pip install --force-reinstall --no-deps --no-cache-dir llama-cpp-python==0.3.36"


def llama(**changes: Any) -> Facts:
    assert HEALTHY.llama is not None
    return replace(HEALTHY, llama=replace(HEALTHY.llama, **changes))


def machine(facts: Facts = HEALTHY, **changes: Any) -> Facts:
    return replace(facts, machine=replace(facts.machine, **changes))


NVIDIA = (Gpu("NVIDIA H200", Backend.CUDA),)
AMD = (Gpu("an AMD GPU", Backend.VULKAN),)
APPLE = (Gpu("Apple silicon", Backend.METAL),)
CUDA_BUILD = {"CUDA": {"ARCHS": "900"}, "CPU": {"AVX2": "1", "AVX512": "1"}}
CUDA_TORCH = Torch("13.0", False, (H200,), 4)


def test_a_healthy_machine_has_no_problem() -> None:
    assert (find_problems(HEALTHY), find_remarks(HEALTHY), rebuild_line(HEALTHY)) == ([], [], None)
    whole = replace(
        machine(llama(features=CUDA_BUILD, gpu_offload=True, devices=(H200,)), gpus=NVIDIA), torch=CUDA_TORCH
    )
    assert (find_problems(whole), rebuild_line(whole)) == ([], None)


def test_every_check_is_in_the_list() -> None:
    written = {value for value in vars(checks).values() if callable(value) and value.__module__ == checks.__name__}
    public = {value for value in written if not value.__name__.startswith(("_", "find_"))}
    assert public == set(CHECKS)


@pytest.mark.parametrize(
    ("facts", "check", "problem"),
    [
        (
            replace(HEALTHY, packages=(Package("nptool", None, None, None),)),
            checks.not_installed,
            "nptool runs from a folder, and what it needs is not known: in that folder, pip install -e .",
        ),
        (
            replace(HEALTHY, packages=(*HEALTHY.packages, Package("peft", None, "0.18", "0.21.2"))),
            checks.missing_packages,
            "peft is not installed: pip install 'peft>=0.18'",
        ),
        (
            replace(HEALTHY, packages=(*HEALTHY.packages, Package("gguf", "0.9.1", "0.19", "0.19.0"))),
            checks.missing_packages,
            "gguf 0.9.1 is too old, nptool needs 0.19: pip install --upgrade 'gguf>=0.19'",
        ),
        (
            replace(HEALTHY, torch=None, broken={"torch": "libcudart.so.13: cannot open"}),
            checks.broken_packages,
            "torch 2.13.0+cpu is installed but cannot be loaded (libcudart.so.13: cannot open): pip install "
            "--force-reinstall --no-cache-dir torch==2.13.0",
        ),
        (
            machine(gpus=NVIDIA),
            checks.llama_without_gpu,
            f"this machine has NVIDIA H200, and llama.cpp was built without CUDA: CMAKE_ARGS=-DGGML_CUDA=on {REBUILD}",
        ),
        (
            machine(gpus=AMD),
            checks.llama_without_gpu,
            "this machine has an AMD GPU, and llama.cpp was built without Vulkan: CMAKE_ARGS=-DGGML_VULKAN=on "
            f"{REBUILD}",
        ),
        (
            machine(gpus=APPLE),
            checks.llama_without_gpu,
            "this machine has Apple silicon, and llama.cpp was built without Metal: CMAKE_ARGS=-DGGML_METAL=on "
            f"{REBUILD}",
        ),
        (
            # Of other machines that RPC would reach there is none.
            machine(llama(gpu_offload=True, rpc=True), gpus=NVIDIA),
            checks.llama_without_gpu,
            f"this machine has NVIDIA H200, and llama.cpp was built without CUDA: CMAKE_ARGS=-DGGML_CUDA=on {REBUILD}",
        ),
        (
            replace(machine(llama(features=CUDA_BUILD), gpus=NVIDIA), visible_devices=""),
            checks.llama_without_gpu,
            "this machine has NVIDIA H200, and llama.cpp, built for it, sees none: check CUDA_VISIBLE_DEVICES, which "
            "is '', and the driver",
        ),
        (
            machine(gpus=NVIDIA),
            checks.torch_without_gpu,
            "this machine has NVIDIA H200, and torch was built without CUDA, so training runs on the processor: "
            "install the CUDA build that https://pytorch.org/get-started/locally names",
        ),
        (
            replace(machine(gpus=NVIDIA), torch=replace(CUDA_TORCH, gpus=())),
            checks.torch_without_gpu,
            "this machine has NVIDIA H200, and torch, built for CUDA 13.0, sees none: check the driver",
        ),
        (
            llama(features={"CPU": {"AVX2": "1", "AVX512": "0"}}),
            checks.slow_build,
            "the processor has AVX512, and llama.cpp was built without, which makes it slower: "
            f"CMAKE_ARGS=-DGGML_NATIVE=on {REBUILD}",
        ),
        (
            replace(HEALTHY, torch=Torch(None, False, (), 64)),
            checks.too_many_threads,
            "torch uses 64 threads on 4 usable cores, which slows training down: export OMP_NUM_THREADS=4",
        ),
        (
            replace(HEALTHY, cache=replace(HEALTHY.cache, writable=False)),
            checks.cache_not_writable,
            "the cache folder /cache cannot be written, so every start measures the model again: set NPTOOL_CACHE to "
            "a folder that can",
        ),
        (
            replace(HEALTHY, work=replace(HEALTHY.work, writable=False)),
            checks.work_not_writable,
            "this folder, /here/runs, cannot be written, and runs are written here: change to another one",
        ),
        (
            machine(free_memory=GIB),
            checks.little_memory,
            "1.0 GiB of memory are free, and training the default takes 2: end other programs",
        ),
        (
            replace(HEALTHY, work=replace(HEALTHY.work, free=GIB)),
            checks.little_disk,
            "1.0 GiB are left on the disk of /here/runs, and a run and its files take 5: free some",
        ),
        (
            replace(HEALTHY, run=NewestRun(RunState.UNCONVERTED, "runs/one")),
            checks.newest_run,
            "the newest run, runs/one, is not converted: nptool convert",
        ),
        (
            replace(HEALTHY, run=NewestRun(RunState.DAMAGED, "runs/one", "model.gguf is truncated")),
            checks.newest_run,
            "the newest run is damaged: model.gguf is truncated",
        ),
    ],
)
def test_a_problem_is_one_line_of_one_check(facts: Facts, check: Any, problem: str) -> None:
    assert list(check(facts)) == [problem]
    assert problem in find_problems(facts)
    assert list(check(HEALTHY)) == []


def test_two_reasons_to_rebuild_are_one_command() -> None:
    facts = machine(llama(features={"CPU": {"AVX2": "1"}}), gpus=NVIDIA)
    assert rebuild_line(facts) == f'CMAKE_ARGS="-DGGML_CUDA=on -DGGML_NATIVE=on" {REBUILD}'


def test_what_is_unknown_is_no_problem() -> None:
    facts = replace(machine(flags=(), free_memory=None, memory=None), llama=None, torch=None)
    assert find_problems(facts) == []


def test_other_versions_are_a_remark() -> None:
    packages = (Package("torch", "2.12.1", "2.9", "2.13.0"), Package("rich", "15.0", "14.0", None))
    facts = replace(HEALTHY, packages=packages)
    assert find_remarks(facts) == ["torch is 2.12.1, and the figures were measured with 2.13.0"]
