"""Cores and memory of a process, in file systems of both versions of cgroups."""

from __future__ import annotations

from pathlib import Path

import pytest

from nptool import resources
from nptool.resources import free_memory, granted_cores, total_memory, usable_cores

MEMINFO = "MemTotal:       8000 kB\nMemFree:        1000 kB\nMemAvailable:   4000 kB\n"


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in {"proc/meminfo": MEMINFO, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_without_cgroups_they_are_the_machines(tmp_path: Path) -> None:
    assert granted_cores(write(tmp_path, {})) is None
    assert (total_memory(tmp_path), free_memory(tmp_path)) == (8000 * 1024, 4000 * 1024)
    assert (total_memory(tmp_path / "none"), free_memory(tmp_path / "none")) == (None, None)


def test_the_second_version(tmp_path: Path) -> None:
    """The narrowest limit on the way up holds; cached files count as free."""
    group = "sys/fs/cgroup/outer/inner"
    files = {
        "proc/self/cgroup": "0::/outer/inner\n",
        f"{group}/cpu.max": "max 100000\n",
        "sys/fs/cgroup/outer/cpu.max": "150000 100000\n",
        f"{group}/memory.max": "1000000\n",
        f"{group}/memory.current": "700000\n",
        f"{group}/memory.stat": "anon 300000\nactive_file 100000\ninactive_file 400000\n",
        "sys/fs/cgroup/outer/memory.max": "max\n",
    }
    assert granted_cores(write(tmp_path, files)) == 1.5
    assert (total_memory(tmp_path), free_memory(tmp_path)) == (1_000_000, 800_000)


def test_the_first_version(tmp_path: Path) -> None:
    """A container sees its cgroup at the top, under the path that the host knows."""
    files = {
        "proc/self/cgroup": "3:cpu,cpuacct:/docker/one\n2:memory:/docker/one\n",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000\n",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "2000000\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "2000000\n",
        "sys/fs/cgroup/memory/memory.stat": "cache 5\ntotal_inactive_file 500000\n",
    }
    assert granted_cores(write(tmp_path, files)) == 2.0
    assert (total_memory(tmp_path), free_memory(tmp_path)) == (2_000_000, 500_000)
    (tmp_path / "sys/fs/cgroup/cpu/cpu.cfs_quota_us").write_text("-1\n")
    assert granted_cores(tmp_path) is None


@pytest.mark.parametrize(("granted", "expected"), [(None, 8), (0.5, 1), (1.5, 2), (64.0, 8)])
def test_usable_cores(granted: float | None, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources.os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.setattr(resources, "granted_cores", lambda: granted)
    assert usable_cores() == expected
