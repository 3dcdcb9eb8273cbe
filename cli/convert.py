"""`nptool convert`: a Hugging Face checkpoint becomes a verified GGUF."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nptool.cli.options import AsJson
from nptool.convert.file_types import DEFAULT_TYPE, FILE_TYPES

if TYPE_CHECKING:
    from nptool.convert.conversion import Conversion, ConvertedHeads

CHECKPOINT = Annotated[
    str | None,
    typer.Argument(
        metavar="[DIR|ID]",
        help="Hugging Face directory or Hub id, or Meta's directory of a multi-token model [newest run's model]",
        show_default=False,
    ),
]
OUTPUT = Annotated[
    Path | None,
    typer.Option(
        "-o",
        "--output",
        metavar="GGUF",
        help="file to write [the run's model.gguf, else NAME-TYPE.gguf here]",
        show_default=False,
    ),
]
TYPE = Annotated[str, typer.Option("--type", metavar="TYPE", help=f"type of the matrices: {', '.join(FILE_TYPES)}")]
HEADS_TYPE = Annotated[
    str | None,
    typer.Option(
        "--heads-type",
        metavar="TYPE",
        help="type of the extra heads: f32, f16, bf16, q8_0, q4_0 [q8_0]",
        show_default=False,
    ),
]
NO_VERIFY = Annotated[bool, typer.Option("--no-verify", help="do not compare the result with transformers")]
PRE = Annotated[
    str | None,
    typer.Option(
        "--pre",
        metavar="NAME",
        help="llama.cpp's name for the tokenizer's splitting rules [found from the tokenizer]",
        show_default=False,
    ),
]


def convert(
    checkpoint: CHECKPOINT = None,
    output: OUTPUT = None,
    type_name: TYPE = DEFAULT_TYPE,
    heads_type: HEADS_TYPE = None,
    no_verify: NO_VERIFY = False,
    pre: PRE = None,
    as_json: AsJson = False,
) -> None:
    """Convert a Hugging Face checkpoint to GGUF, and verify it against transformers."""
    from nptool.cli.console import progress_bars
    from nptool.convert.conversion import convert as convert_checkpoint

    source = checkpoint if checkpoint is not None else _newest_model()
    with progress_bars() as progress:
        done = convert_checkpoint(
            source,
            output,
            type_name=type_name,
            heads_type_name=heads_type,
            verified=not no_verify,
            pre=pre,
            progress=progress,
        )
    _print_json(done) if as_json else _print_text(done, newest=checkpoint is None and output is None)


def _newest_model() -> str:
    from nptool.errors import DataError
    from nptool.runs import latest_run

    try:
        return str(latest_run().model)
    except DataError as error:
        raise DataError(
            "no checkpoint was named and there is no run to take it from; write `nptool convert DIR`, or train one "
            "with `nptool train`"
        ) from error


def _print_json(done: Conversion) -> None:
    import json

    result: dict[str, Any] = asdict(done) | {"path": str(done.path)}
    if done.verification is not None:
        result["verification"]["logits"]["relative"] = done.verification.logits.relative
    if done.heads is not None and done.heads.logits is not None:
        for entry, logits in zip(result["heads"]["logits"], done.heads.logits, strict=True):
            entry["relative"] = logits.relative
    typer.echo(json.dumps(result, indent=2))


def _print_text(done: Conversion, newest: bool) -> None:
    size = f"{done.bytes / 2**20:.1f} MiB"
    typer.echo(
        f"{done.path}: {done.file_type}, {size}, {done.parameters / 1e6:.1f}M parameters, "
        f"architecture {done.architecture}, {done.seconds:.0f} s"
    )
    if done.verification is None:
        typer.echo("not verified")
    else:
        logits = done.verification.logits
        typer.echo(
            f"verified against transformers: {done.verification.texts} texts tokenized alike; {logits.tokens} tokens: "
            f"logits differ by at most {logits.largest:.2g} ({logits.relative:.1e} of their spread), "
            f"{logits.same_choice:.0%} with the same most likely token"
        )
        for remark in done.verification.remarks:
            typer.echo(f"note: {remark}")
    if done.heads is not None:
        _print_heads(done.heads)
    for remark in done.remarks:
        typer.echo(f"note: {remark}")
    parallel = f" --jacobi -n {done.block_size}" if done.block_size is not None else ""
    if done.heads is not None:
        parallel = " --heads"
    model = "" if newest else f" -m {done.path}"
    typer.echo(f"next: nptool chat{parallel}{model}")


def _print_heads(heads: ConvertedHeads) -> None:
    typer.echo(
        f"{heads.count - 1} extra heads behind it: {heads.file_type}, {heads.bytes / 2**20:.1f} MiB, "
        f"{heads.parameters / 1e6:.1f}M parameters"
    )
    for number, logits in enumerate(heads.logits or (), start=2):
        typer.echo(
            f"head {number}: {logits.tokens} tokens: logits differ by at most {logits.largest:.2g} "
            f"({logits.relative:.1e} of their spread), {logits.same_choice:.0%} with the same most likely token"
        )
