"""What this process may use of the machine: cores and memory, less what its container grants (Linux cgroups)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from math import ceil
from pathlib import Path

ROOT = Path("/")


def usable_cores() -> int:
    """Cores that this process may use; a container may grant fewer than the machine has."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    granted = granted_cores()
    return available if granted is None else max(1, min(available, ceil(granted)))


def granted_cores(root: Path = ROOT) -> float | None:
    """Processor time that the cgroups grant, in cores; None without a limit.

    Args:
        root: of the file system.
    """
    quotas = [_read(folder / "cpu.max") for folder in _cgroups(root, "")]
    for folder in _cgroups(root, "cpu"):
        quotas.append(f"{_read(folder / 'cpu.cfs_quota_us')} {_read(folder / 'cpu.cfs_period_us')}")
    found = [re.fullmatch(r"(\d+)\s+(\d+)\s*", quota) for quota in quotas]
    return min((int(pair[1]) / int(pair[2]) for pair in found if pair), default=None)


def total_memory(root: Path = ROOT) -> int | None:
    """Bytes of memory that this process may use; None if the system does not say."""
    return min((*_meminfo(root, "MemTotal"), *(limit for limit, _ in _memory(root))), default=None)


def free_memory(root: Path = ROOT) -> int | None:
    """Bytes that this process can still allocate; None if the system does not say."""
    left = (max(0, limit - used) for limit, used in _memory(root))
    return min((*_meminfo(root, "MemAvailable"), *left), default=None)


def _meminfo(root: Path, name: str) -> list[int]:
    """Bytes by one line of /proc/meminfo, if there is one."""
    found = re.search(rf"^{name}: +(\d+) kB", _read(root / "proc/meminfo"), re.M)
    return [int(found[1]) * 1024] if found else []


def _memory(root: Path) -> Iterator[tuple[int, int]]:
    """Limit and use of each cgroup that limits memory, in bytes. Cached files are not in use."""
    for controller, limit, used, prefix in (
        ("", "memory.max", "memory.current", ""),
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    ):
        for folder in _cgroups(root, controller):
            most, taken = _read(folder / limit).strip(), _read(folder / used).strip()
            files = re.findall(rf"^{prefix}(?:in)?active_file (\d+)", _read(folder / "memory.stat"), re.M)
            if most.isdecimal() and taken.isdecimal():
                yield int(most), int(taken) - sum(map(int, files))


def _cgroups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's cgroup and those above it, as far as they can be seen.

    Args:
        controller: of version 1 of cgroups, whose hierarchy is mounted under its name; empty for version 2.
    """
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            top = root / "sys/fs/cgroup" / controller
            place = top / path.strip("/")
            # A container may see its own cgroup as the top.
            yield from (folder for folder in (place, *place.parents) if folder.is_relative_to(top))


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""
