"""What `nptool doctor` looks at, as values: checks read them and never the machine."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True)
class Device:
    """A device that a library can compute on."""

    name: str
    description: str
    kind: str
    memory: int
    """Bytes."""
    free: int
    """Bytes."""

    @property
    def is_gpu(self) -> bool:
        return self.kind.endswith("GPU")


@dataclass(frozen=True)
class Build:
    """What llama.cpp was built with."""

    features: dict[str, dict[str, str]]
    """Backend to its features, as `llama_print_system_info` gives them: {"CPU": {"AVX2": "1"}}."""
    gpu_offload: bool
    mmap: bool
    mlock: bool
    rpc: bool
    devices: tuple[Device, ...] | None
    """None where the binding does not expose them."""

    @property
    def uses_gpu(self) -> bool:
        """Whether it sees a GPU; other machines (RPC) count for `gpu_offload` too."""
        return self.gpu_offload if self.devices is None else any(device.is_gpu for device in self.devices)


class Backend(StrEnum):
    """llama.cpp's backend for a kind of GPU."""

    CUDA = "CUDA"
    METAL = "Metal"
    VULKAN = "Vulkan"


@dataclass(frozen=True)
class Gpu:
    """A GPU of the machine, whatever software can use it."""

    name: str
    backend: Backend
    """The one that suits it."""


@dataclass(frozen=True)
class Package:
    name: str
    version: str | None
    """None if it is not installed."""
    minimum: str | None
    """The version that nptool needs."""
    measured: str | None
    """The version with which the project's figures were measured."""


@dataclass(frozen=True)
class Torch:
    cuda: str | None
    """Version of CUDA (or ROCm) that it was built with."""
    metal: bool
    gpus: tuple[Device, ...]
    threads: int


@dataclass(frozen=True)
class Machine:
    processor: str
    system: str
    python: str
    cores: int
    """Of the machine."""
    usable_cores: int
    memory: int | None
    """Bytes, as far as the container may use them; None if unknown."""
    free_memory: int | None
    flags: tuple[str, ...]
    """What the processor can do by Linux's names, sorted; empty if unknown."""
    gpus: tuple[Gpu, ...]


@dataclass(frozen=True)
class Folder:
    """A folder that nptool writes to. It may not exist yet."""

    path: str
    bytes: int
    """Of its files."""
    writable: bool
    free: int
    """Bytes left on its disk."""


class RunState(StrEnum):
    NONE = "none"
    """There is no run yet."""
    CONVERTED = "converted"
    UNCONVERTED = "not converted"
    DAMAGED = "damaged"


@dataclass(frozen=True)
class NewestRun:
    state: RunState
    path: str | None = None
    reason: str | None = None
    """What is damaged."""


@dataclass(frozen=True)
class Facts:
    packages: tuple[Package, ...]
    broken: dict[str, str]
    """Packages that are installed but cannot be loaded, with the reason."""
    llama: Build | None
    """None if llama.cpp cannot be loaded."""
    torch: Torch | None
    """None if torch cannot be loaded."""
    machine: Machine
    cache: Folder
    work: Folder
    """Where runs are written."""
    run: NewestRun
    visible_devices: str | None = None
    """`CUDA_VISIBLE_DEVICES`."""

    def version(self, name: str) -> str | None:
        """The version of a package; None if it is not installed."""
        return next((package.version for package in self.packages if package.name == name), None)
