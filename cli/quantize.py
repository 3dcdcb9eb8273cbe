"""`nptool quantize`: a GGUF in another type, extra heads included."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from nptool.cli.console import print_choice, progress_bars
from nptool.cli.options import AsJson
from nptool.convert.file_types import AUTO, FILE_TYPES

SOURCE = Annotated[Path, typer.Argument(metavar="IN", help="GGUF in f32, f16 or bf16")]
TARGET = Annotated[Path, typer.Argument(metavar="OUT", help="file to write")]
TYPE = Annotated[str, typer.Argument(metavar="TYPE", help=f"{', '.join(FILE_TYPES)}; or auto: the fastest here")]
HEADS_TYPE = Annotated[str | None, typer.Option(metavar="TYPE", help="type of the heads [q8_0]")]


def quantize(
    source: SOURCE, target: TARGET, type_name: TYPE, heads_type: HEADS_TYPE = None, as_json: AsJson = False
) -> None:
    """Write a GGUF in another type; extra heads are kept."""
    from nptool.convert.requantize import quantize as quantize_file

    choice = None
    with progress_bars() as progress:
        if type_name.lower() == AUTO:
            from nptool.pipeline.type_choice import choose_for_file

            choice = choose_for_file(source, target, heads_type_name=heads_type, progress=progress)
            type_name = choice.type
        done = quantize_file(source, target, type_name, heads_type_name=heads_type, progress=progress)
    if as_json:
        print(json.dumps(asdict(done) | {"path": str(done.path), "choice": choice and asdict(choice)}, indent=2))
        return
    if choice is not None:
        print_choice(choice)
    heads = f", {done.heads} extra heads in {done.heads_type}" if done.heads else ""
    print(
        f"{done.path}: {done.file_type}{heads}, {done.bytes / 2**20:.1f} MiB of {done.source_bytes / 2**20:.1f} MiB, "
        f"{done.seconds:.0f} s"
    )
    for remark in done.remarks:
        print(f"note: {remark}")
