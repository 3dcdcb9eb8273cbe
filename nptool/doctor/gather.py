"""Gathers the facts of this process and machine. A package that cannot be loaded is a fact, not an error."""

from __future__ import annotations

import importlib
import os
import platform
import re
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from nptool.cache_folder import cache_folder
from nptool.checkpoints import check_files
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
from nptool.errors import CheckpointError, DataError, GgufError
from nptool.llama.gguf_parts import find_parts
from nptool.provenance import machine, package_version
from nptool.resources import free_memory, total_memory, usable_cores
from nptool.runs import LATEST, latest_run
from nptool.runs import ROOT as RUNS

ROOT = Path("/")
SOURCE = Path(__file__).resolve().parents[2]
PINS = SOURCE / "constraints.txt"
"""Of a checkout; an installed wheel has none."""
_AMD = "0x1002"
"""The number of the vendor on the PCI bus."""
_LOADING = (ImportError, OSError, RuntimeError)
"""What a package raises whose libraries are missing or do not fit."""


def gather() -> Facts:
    """All facts; takes some seconds, as torch and llama.cpp are loaded."""
    broken: dict[str, str] = {}
    llama, torch = _read_llama(broken), _read_torch(broken)
    return Facts(
        packages=tuple(read_packages(PINS)),
        broken=broken,
        llama=llama,
        torch=torch,
        machine=read_machine(torch),
        cache=read_folder(cache_folder()),
        work=read_folder(RUNS.resolve()),
        run=read_newest_run(),
        visible_devices=os.environ.get("CUDA_VISIBLE_DEVICES"),
    )


def read_packages(pins: Path) -> Iterator[Package]:
    """nptool and what it requires, by the metadata of its installation.

    Args:
        pins: a file of lines `name==version`; it may be missing.
    """
    lines = pins.read_text(encoding="utf-8").split() if pins.is_file() else []
    measured = {name: version for name, _, version in (line.partition("==") for line in lines)}
    yield Package("nptool", package_version("nptool"), None, None)
    try:
        wanted = requires("nptool") or []
    except PackageNotFoundError:
        wanted = []
    for requirement in wanted:
        found = re.match(r"([\w.-]+)(?:>=([\d.]+))?$", requirement.replace(" ", ""))
        # What only an extra needs has a condition after a semicolon.
        if found:
            yield Package(found[1], package_version(found[1]), found[2], measured.get(found[1]))


def read_machine(torch: Torch | None, root: Path = ROOT) -> Machine:
    """
    Args:
        torch: whose GPUs count where the system itself shows none.
        root: of the file system.
    """
    described, text = machine(), _read(root / "proc/cpuinfo")
    flags = re.search(r"^(?:flags|Features)\s*: (.*)", text, re.M)
    gpus = list(_gpus(root))
    if not gpus and torch is not None:
        gpus = [Gpu(device.name, Backend.CUDA) for device in torch.gpus]
    return Machine(
        processor=described["processor"],
        system=described["system"],
        python=described["python"],
        cores=os.cpu_count() or 1,
        usable_cores=usable_cores(),
        memory=total_memory(),
        free_memory=free_memory(),
        flags=tuple(sorted(flags[1].split())) if flags else (),
        gpus=tuple(gpus),
    )


def _gpus(root: Path) -> Iterator[Gpu]:
    """GPUs that the system shows, whatever software is installed."""
    for file in sorted(root.glob("proc/driver/nvidia/gpus/*/information")):
        name = re.search(r"^Model:\s*(.+)", _read(file), re.M)
        yield Gpu(name[1].strip() if name else "an NVIDIA GPU", Backend.CUDA)
    for file in sorted(root.glob("sys/class/drm/card[0-9]/device/vendor")):
        if _read(file).strip() == _AMD:
            yield Gpu("an AMD GPU", Backend.VULKAN)
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        yield Gpu("Apple silicon", Backend.METAL)


def read_folder(path: Path) -> Folder:
    """A folder that may not exist yet: then its nearest parent is looked at."""
    place = next((folder for folder in (path, *path.parents) if folder.exists()), Path())
    used = sum(map(_size, path.rglob("*")))
    return Folder(str(path), used, _is_writable(place), shutil.disk_usage(place).free)


def _is_writable(folder: Path) -> bool:
    """By a file without a name: permissions do not tell of a read-only disk, nor of what root may do."""
    try:
        with TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def read_newest_run(root: Path = RUNS) -> NewestRun:
    """Whether the newest run's model is whole, and converted. Reads no weights."""
    if not (root / LATEST).is_file():
        return NewestRun(RunState.NONE)
    path = None
    try:
        run = latest_run(root)
        path = str(run.path)
        check_files(run.model)
        if not run.gguf.is_file():
            return NewestRun(RunState.UNCONVERTED, path)
        find_parts(run.gguf)
    except GgufError as error:
        return NewestRun(RunState.DAMAGED, path, f"{error}; make it again with `nptool convert`")
    except (DataError, CheckpointError) as error:
        return NewestRun(RunState.DAMAGED, path, str(error))
    return NewestRun(RunState.CONVERTED, path)


def _read_llama(broken: dict[str, str]) -> Build | None:
    module = _load("nptool.doctor.llama_build", "llama-cpp-python", broken)
    build: Build | None = None if module is None else module.read_build()
    return build


def _read_torch(broken: dict[str, str]) -> Torch | None:
    torch = _load("torch", "torch", broken)
    if torch is None:
        return None
    gpus = []
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(number)
        gpus.append(Device(torch.cuda.get_device_name(number), f"cuda:{number}", "GPU", total, free))
    built = torch.version.cuda or torch.version.hip
    return Torch(built, torch.backends.mps.is_available(), tuple(gpus), torch.get_num_threads())


def _load(module: str, package: str, broken: dict[str, str]) -> Any:
    """A module, or None, and then the reason in `broken`."""
    try:
        return importlib.import_module(module)
    except _LOADING as error:
        broken[package] = " ".join(str(error).split())
        return None


def _size(path: Path) -> int:
    """Bytes of a file; 0 of a folder, and of a file that another process has just removed."""
    try:
        return path.stat().st_size if path.is_file() else 0
    except FileNotFoundError:
        return 0


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
