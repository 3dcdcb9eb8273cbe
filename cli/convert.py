"""`nptool convert`: a Hugging Face checkpoint to a verified GGUF."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nptool.cli.console import chain_figures, print_choice, progress_bars
from nptool.cli.options import AsJson
from nptool.cli.signatures import options
from nptool.convert.file_types import AUTO, DEFAULT_TYPE, FILE_TYPES
from nptool.errors import DataError
from nptool.heads import SEPARATE
from nptool.options import option
from nptool.runs import latest_run

if TYPE_CHECKING:
    from nptool.convert.conversion import Conversion, ConvertedHeads
    from nptool.convert.verification import LogitComparison
    from nptool.pipeline.type_choice import TypeChoice

CHECKPOINT = Annotated[
    str | None,
    typer.Argument(
        metavar="[DIR|ID]",
        help="Hugging Face directory or Hub id, or the directory of Meta's multi-token model [newest run's model]",
    ),
]


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    output: Path | None = option(
        None, "file to write", "-o", metavar="GGUF", shown="the run's model.gguf, else NAME-TYPE.gguf here"
    )
    type: str = option(
        DEFAULT_TYPE, f"type of the matrices: {', '.join(FILE_TYPES)}; or auto: the fastest here", metavar="TYPE"
    )
    heads_type: str | None = option(
        None, "type of the extra heads: f32, f16, bf16, q8_0, q4_0", metavar="TYPE", shown="q8_0"
    )
    no_verify: bool = option(False, "do not compare the result with transformers and training", "--no-verify")
    pre: str | None = option(
        None, "llama.cpp's name of the tokenizer's splitting rules", metavar="NAME", shown="detected"
    )
    nextn: bool = option(False, "write NAME-nextn.gguf, with which llama.cpp itself speculates (draft-mtp)", "--nextn")


@options
def convert(given: ConvertOptions, checkpoint: CHECKPOINT = None, as_json: AsJson = False) -> None:
    """Convert a Hugging Face checkpoint to GGUF, and verify it against transformers."""
    from nptool.pipeline.library import convert_checkpoint

    source = checkpoint if checkpoint is not None else _newest_model()
    choice, type_name, output = None, given.type, given.output
    with progress_bars() as progress:
        if type_name.lower() == AUTO:
            from nptool.pipeline.type_choice import choose_for_checkpoint

            choice = choose_for_checkpoint(
                source, output, heads_type_name=given.heads_type, pre=given.pre, progress=progress
            )
            type_name = choice.type
        done = convert_checkpoint(
            source,
            output,
            type_name=type_name,
            heads_type_name=given.heads_type,
            verified=not given.no_verify,
            pre=given.pre,
            nextn=given.nextn,
            progress=progress,
        )
    if as_json:
        _print_json(done, choice)
    else:
        if choice is not None:
            print_choice(choice)
        _print_text(done, newest=checkpoint is None and output is None)


def _newest_model() -> str:
    try:
        return str(latest_run().model)
    except DataError as error:
        raise DataError(
            "no checkpoint is given and there is no run to take it from; name one with `nptool convert DIR`, or train "
            "one with `nptool train`"
        ) from error


def _print_json(done: Conversion, choice: TypeChoice | None) -> None:
    result: dict[str, Any] = asdict(done) | {"path": str(done.path), "choice": choice and asdict(choice)}
    if done.verification is not None:
        result["verification"]["logits"]["relative"] = done.verification.logits.relative
    if done.heads is not None and done.heads.logits is not None:
        for entry, logits in zip(result["heads"]["logits"], done.heads.logits, strict=True):
            entry["relative"] = logits.relative
    if done.nextn is not None:
        result["nextn"]["draft"] = str(done.nextn.draft)
        if done.nextn.logits is not None:
            result["nextn"]["logits"]["relative"] = done.nextn.logits.relative
    print(json.dumps(result, indent=2))


def _print_text(done: Conversion, newest: bool) -> None:
    print(
        f"{done.path}: {done.file_type}, {done.bytes / 2**20:.1f} MiB, {done.parameters / 1e6:.1f}M parameters, "
        f"architecture {done.architecture}, {done.seconds:.0f} s"
    )
    remarks = [*done.remarks]
    if done.verification is None:
        print("not verified")
    else:
        texts = done.verification.texts
        print(f"verified against transformers: {texts} texts tokenized alike; {_difference(done.verification.logits)}")
        remarks = [*done.verification.remarks, *remarks]
    if done.heads is not None:
        _print_heads(done.heads)
    for remark in remarks:
        print(f"note: {remark}")
    if done.nextn is not None:
        _print_block(done)
        return
    model = "" if newest else f" -m {done.path}"
    print(f"next: nptool chat{model}")


def _print_block(done: Conversion) -> None:
    assert done.nextn is not None
    if done.nextn.logits is not None:
        print(f"NextN block: {_difference(done.nextn.logits)}")
    print(f"{done.nextn.draft}: the block alone")
    print(f"next: llama-server -m {done.path} --spec-type draft-mtp --spec-draft-n-max 3")


def _print_heads(heads: ConvertedHeads) -> None:
    print(
        f"{heads.count - 1} extra heads after the model: {heads.file_type}, {heads.bytes / 2**20:.1f} MiB, "
        f"{heads.parameters / 1e6:.1f}M parameters"
    )
    for number, logits in enumerate(heads.logits or (), start=2):
        name = f"head {number}" if heads.kind == SEPARATE else "their layer"
        print(f"{name}: {_difference(logits)}")
    if heads.score is not None:
        print(f"on {heads.score.prompts} held-out prompts: {chain_figures(heads.score.found)}")
        print(f"in training, on the same: {chain_figures(heads.score.trained)}")
        if heads.score.warning is not None:
            print(f"warning: {heads.score.warning}")
    elif heads.unscored is not None:
        print(f"warning: not scored on held-out prompts: {heads.unscored}")
    elif heads.logits is not None:
        print("not scored on held-out prompts: `nptool train heads` saves some, and this checkpoint has none")


def _difference(logits: LogitComparison) -> str:
    return (
        f"{logits.tokens} tokens: logits differ by at most {logits.largest:.2g} ({logits.relative:.1e} of their "
        f"spread), {logits.same_choice:.0%} with the same most likely token"
    )
