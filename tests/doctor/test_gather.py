"""Facts of this machine against other sources, and of folders and files made here."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import llama_cpp
import pytest
import torch

from nptool.doctor.facts import Backend, Device, RunState, Torch
from nptool.doctor.gather import gather, read_folder, read_machine, read_newest_run, read_packages
from nptool.doctor.llama_build import parse_features, read_build
from nptool.runs import Run


def test_the_build_is_what_llama_cpp_says() -> None:
    build = read_build()
    text = llama_cpp.llama_print_system_info().decode()
    for backend, features in build.features.items():
        assert f"{backend} : " in text
        assert all(f"{name} = {value} |" in text for name, value in features.items())
    assert sum(map(len, build.features.values())) == text.count(" = ")
    assert build.mmap == llama_cpp.llama_supports_mmap()
    assert build.gpu_offload == llama_cpp.llama_supports_gpu_offload()
    # Tests run without a GPU.
    assert build.devices is None or [device.is_gpu for device in build.devices] == [False] * len(build.devices)


def test_features_of_several_backends() -> None:
    text = "CUDA : ARCHS = 500,900 | USE_GRAPHS = 1 | CPU : SSE3 = 1 | AVX512 = 0 | "
    expected = {"CUDA": {"ARCHS": "500,900", "USE_GRAPHS": "1"}, "CPU": {"SSE3": "1", "AVX512": "0"}}
    assert parse_features(text) == expected
    assert parse_features("") == {}


def test_packages_and_pins(tmp_path: Path) -> None:
    pins = tmp_path / "constraints.txt"
    pins.write_text("torch==2.13.0\n")
    packages = {package.name: package for package in read_packages(pins)}
    assert packages["torch"].version == version("torch")
    assert packages["torch"].measured == "2.13.0"
    assert packages["llama-cpp-python"].minimum == "0.3.36"
    assert "pytest" not in packages
    assert {package.measured for package in read_packages(tmp_path / "none")} == {None}


def test_gpus_that_the_system_shows(tmp_path: Path) -> None:
    for name, text in {
        "proc/cpuinfo": "processor : 0\nflags\t\t: sse2 avx2\n",
        "proc/driver/nvidia/gpus/0000:01:00.0/information": "Model: \t\t NVIDIA H200\nIRQ: 1\n",
        "sys/class/drm/card0/device/vendor": "0x8086\n",
        "sys/class/drm/card1/device/vendor": "0x1002\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)
    found = read_machine(None, tmp_path)
    gpus = [(gpu.name, gpu.backend) for gpu in found.gpus if gpu.backend is not Backend.METAL]
    assert gpus == [("NVIDIA H200", Backend.CUDA), ("an AMD GPU", Backend.VULKAN)]
    assert found.flags == ("avx2", "sse2")


def test_a_gpu_that_only_torch_sees(tmp_path: Path) -> None:
    seen = Torch("13.0", False, (Device("NVIDIA H200", "cuda:0", "GPU", 2, 1),), 1)
    if sys.platform != "darwin":
        assert [(gpu.name, gpu.backend) for gpu in read_machine(seen, tmp_path).gpus] == [("NVIDIA H200", Backend.CUDA)]


def test_folders(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "file").write_bytes(b"12345")
    folder = read_folder(tmp_path)
    assert (folder.bytes, folder.writable) == (5, True)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    missing = read_folder(tmp_path / "not" / "yet")
    assert (missing.bytes, missing.writable, missing.free > 0) == (0, True, True)
    assert not read_folder(tmp_path / "in" / "file" / "below").writable


class TestNewestRun:
    def test_none(self, tmp_path: Path) -> None:
        assert read_newest_run(tmp_path).state is RunState.NONE

    def test_states(self, tmp_path: Path, make_checkpoint: Callable[..., Path], tiny_gguf: Callable[..., Path]) -> None:
        run = Run.create("one", tmp_path)
        run.publish()
        assert read_newest_run(tmp_path).state is RunState.DAMAGED
        make_checkpoint().rename(run.model)
        unconverted = read_newest_run(tmp_path)
        assert (unconverted.state, unconverted.path) == (RunState.UNCONVERTED, str(run.path))
        content = tiny_gguf().read_bytes()
        run.gguf.write_bytes(content)
        assert read_newest_run(tmp_path).state is RunState.CONVERTED
        run.gguf.write_bytes(content[:-100])
        cut = read_newest_run(tmp_path)
        assert cut.state is RunState.DAMAGED
        assert cut.reason is not None
        assert cut.reason.startswith(f"{run.gguf} is truncated")
        assert cut.reason.endswith("; make it again with `nptool convert`")

    def test_a_run_that_is_gone(self, tmp_path: Path) -> None:
        (tmp_path / "latest").write_text("two\n")
        gone = read_newest_run(tmp_path)
        assert (gone.state, gone.path) == (RunState.DAMAGED, None)
        assert gone.reason is not None
        assert "which is gone" in gone.reason


def test_packages_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "nptool.doctor.llama_build", None)
    facts = gather()
    assert (facts.torch, facts.llama) == (None, None)
    assert set(facts.broken) == {"torch", "llama-cpp-python"}


def test_this_machine() -> None:
    facts = gather()
    assert facts.broken == {}
    assert facts.torch is not None
    assert facts.torch.threads == torch.get_num_threads()
    assert facts.version("llama-cpp-python") == llama_cpp.__version__
    assert facts.version("none") is None
    assert facts.machine.cores == os.cpu_count()
    assert 1 <= facts.machine.usable_cores <= facts.machine.cores
    assert facts.visible_devices == ""
