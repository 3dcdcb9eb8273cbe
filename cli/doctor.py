"""`nptool doctor`: what is installed and what the machine has, with a line for each problem."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from nptool.cli.options import AsJson

if TYPE_CHECKING:
    from nptool.doctor.facts import Device, Facts, Folder, Machine

SHOWN = ("nptool", "torch", "transformers", "llama-cpp-python", "gguf")
LABEL = 11
"""Columns."""


def doctor(as_json: AsJson = False) -> None:
    """Show versions, build of llama.cpp, devices and folders; exit with 1 if there is a problem, else with 0."""
    from nptool.doctor.checks import find_problems, find_remarks
    from nptool.doctor.gather import gather
    from nptool.doctor.rebuild import rebuild_line

    facts = gather()
    problems, remarks, rebuild = find_problems(facts), find_remarks(facts), rebuild_line(facts)
    if as_json:
        print(json.dumps(asdict(facts) | {"rebuild": rebuild, "problems": problems, "remarks": remarks}, indent=2))
    else:
        for label, text in _rows(facts):
            print(f"{label:<{LABEL}}{text}")
        print(*(f"problem: {line}" for line in problems), sep="\n", end="\n" if problems else "")
        print(*(f"note: {line}" for line in remarks), sep="\n", end="\n" if remarks else "")
        print(
            "no problem found" if not problems else f"{len(problems)} problem{'s' if len(problems) > 1 else ''} found"
        )
    raise typer.Exit(1 if problems else 0)


def _rows(facts: Facts) -> Iterator[tuple[str, str]]:
    machine, llama, torch = facts.machine, facts.llama, facts.torch
    versions = (f"{name} {facts.version(name) or '-'}" for name in SHOWN)
    yield "versions", ", ".join((*versions, f"Python {machine.python}"))
    yield "machine", _machine(machine)
    yield "GPUs", ", ".join(gpu.name for gpu in machine.gpus) or "none seen"
    if llama is not None:
        answers = {"GPU offload": llama.gpu_offload, "mmap": llama.mmap, "mlock": llama.mlock, "RPC": llama.rpc}
        yield "llama.cpp", ", ".join(f"{name} {'yes' if answer else 'no'}" for name, answer in answers.items())
        for backend, features in llama.features.items():
            named = (name if value == "1" else f"{name} {value}" for name, value in features.items() if value != "0")
            yield "", f"built for {backend}: {', '.join(named)}"
        yield "devices", "; ".join(map(_device, llama.devices or ())) or "not told by this llama-cpp-python"
    if torch is not None:
        built = f"CUDA {torch.cuda}" if torch.cuda else "Metal" if torch.metal else "no GPU support"
        yield "torch", "; ".join((f"{built}, {torch.threads} threads", *map(_device, torch.gpus)))
    yield "cache", _folder(facts.cache)
    yield "runs", _folder(facts.work)
    where = f"{facts.run.path}: {facts.run.state}" if facts.run.path else f"{facts.run.state} (nptool train makes one)"
    yield "newest run", where


def _machine(machine: Machine) -> str:
    known = machine.memory is not None and machine.free_memory is not None
    memory = f", {_size(machine.free_memory or 0)} of {_size(machine.memory or 0)} memory free" if known else ""
    return f"{machine.processor}, {machine.system}, {machine.usable_cores} of {machine.cores} cores usable{memory}"


def _device(device: Device) -> str:
    return f"{device.name} ({device.kind}): {device.description}, {_size(device.free)} of {_size(device.memory)} free"


def _folder(folder: Folder) -> str:
    state = "" if folder.writable else ", not writable"
    return f"{folder.path}, {_size(folder.bytes)}, {_size(folder.free)} left on its disk{state}"


def _size(count: int) -> str:
    return next((f"{count / unit:.1f} {name}" for unit, name in _UNITS if count >= unit), f"{count} bytes")


_UNITS = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))
