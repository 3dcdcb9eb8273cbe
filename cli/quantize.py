"""`nptool quantize`: a GGUF in another type, with the heads behind it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nptool.cli.options import AsJson
from nptool.convert.file_types import FILE_TYPES

if TYPE_CHECKING:
    from nptool.convert.requantize import Quantization

SOURCE = Annotated[Path, typer.Argument(metavar="IN", help="GGUF in f32, f16 or bf16", show_default=False)]
TARGET = Annotated[Path, typer.Argument(metavar="OUT", help="file to write", show_default=False)]
TYPE = Annotated[str, typer.Argument(metavar="TYPE", help=", ".join(FILE_TYPES), show_default=False)]
HEADS_TYPE = Annotated[
    str | None,
    typer.Option(
        "--heads-type",
        metavar="TYPE",
        help="type of the heads [q8_0]",
        show_default=False,
    ),
]


def quantize(
    source: SOURCE, target: TARGET, type_name: TYPE, heads_type: HEADS_TYPE = None, as_json: AsJson = False
) -> None:
    """Write a GGUF in another type; heads behind the model are kept."""
    from nptool.cli.console import progress_bars
    from nptool.convert.requantize import quantize as quantize_file

    with progress_bars() as progress:
        done = quantize_file(source, target, type_name, heads_type_name=heads_type, progress=progress)
    _print_json(done) if as_json else _print_text(done)


def _print_json(done: Quantization) -> None:
    import json

    typer.echo(json.dumps(asdict(done) | {"path": str(done.path)}, indent=2))


def _print_text(done: Quantization) -> None:
    heads = f", {done.heads} extra heads in {done.heads_type}" if done.heads else ""
    typer.echo(
        f"{done.path}: {done.file_type}{heads}, {done.bytes / 2**20:.1f} MiB of {done.source_bytes / 2**20:.1f} MiB, "
        f"{done.seconds:.0f} s"
    )
    for remark in done.remarks:
        typer.echo(f"note: {remark}")
