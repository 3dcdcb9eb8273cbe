"""`nptool inspect`: the parts and tensors of a GGUF file, extra heads included."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nptool.cli.console import chain_figures
from nptool.cli.options import AsJson, ModelOptions

if TYPE_CHECKING:
    from nptool.llama.gguf_summary import FileSummary, PartSummary

FILE = Annotated[Path | None, typer.Argument(metavar="[GGUF]", help="file to read [newest run's]")]


def inspect(file: FILE = None, as_json: AsJson = False) -> None:
    """Show the parts of a GGUF file, their tensors, types and sizes."""
    from nptool.cli.decoding_options import model_path
    from nptool.llama.gguf_summary import summarize

    summary = summarize(model_path(ModelOptions(file)))
    if as_json:
        print(json.dumps(asdict(summary), indent=2))
        return
    print(f"{summary.path}: {_size(summary.bytes)}{_trained(summary)}")
    for part in summary.parts:
        print(_part_line(part))
    if summary.measured is not None:
        found = summary.measured
        print(f"held out: {found.tokens_per_forward:.2f} tokens per forward in blocks of {found.block_size}")
    if summary.figures is not None:
        print(f"heads, at conversion: {chain_figures(summary.figures)}")
    for number, row in enumerate(summary.accuracy, start=2):
        print(f"head {number} held out: top-1 {row[0]:.1%}, top-{len(row)} {sum(row):.1%}")
    for part in summary.parts:
        print(f"\ntensors of {part.part}:")
        for tensor in part.tensors:
            shape = " x ".join(map(str, tensor.shape))
            print(f"  {tensor.name:<28} {shape:>16}  {tensor.type:<6} {_size(tensor.bytes):>11}")
    for remark in summary.remarks:
        print(f"\nnote: {remark}")


def _trained(summary: FileSummary) -> str:
    place = "in a NextN block" if summary.trunk_layer is None else f"on the input of layer {summary.trunk_layer}"
    heads = f", {summary.heads} heads {place}" if summary.heads > 1 else ""
    block = f", blocks of {summary.block_size} tokens" if summary.block_size is not None else ""
    return (f", {summary.method}" if summary.method else "") + block + heads


def _part_line(part: PartSummary) -> str:
    types = ", ".join(f"{count / part.parameters:.1%} {kind}" for kind, count in part.parameters_by_type.items())
    layers = f", {part.layers} layer{'' if part.layers == 1 else 's'}" if part.layers is not None else ""
    return (
        f"{part.part}: byte {part.offset}, {_size(part.bytes)}, architecture {part.architecture}{layers}, "
        f"{part.parameters / 1e6:.1f}M parameters ({types})"
    )


def _size(count: int) -> str:
    return f"{count / 2**20:.1f} MiB" if count >= 1 << 20 else f"{count / 2**10:.1f} KiB"
