"""`nptool quantize`: a GGUF in another type, with the heads after its model.

llama.cpp's quantizer reads one GGUF per file, so each part is quantized alone and appended. The file appears under its
name whole or not at all.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nptool.convert.file_types import FILE_TYPES, FileType, file_type, other_types
from nptool.convert.heads import HEADS_TYPE, append_part
from nptool.convert.quantize import quantize_gguf
from nptool.convert.staging import staged_file
from nptool.errors import UsageError
from nptool.heads_sample import figures_in
from nptool.llama.gguf_check import check_gguf
from nptool.llama.gguf_parts import Part, Parts, find_parts, lost_heads
from nptool.progress import Progress, silent

UNQUANTIZED = frozenset({"F32", "F16", "BF16"})
FILE_TYPE_KEY = "general.file_type"


@dataclass(frozen=True)
class Quantization:
    """The finished file."""

    source: str
    path: Path
    file_type: str
    heads: int
    """Heads after the model."""
    heads_type: str | None
    source_bytes: int
    bytes: int
    seconds: float
    remarks: tuple[str, ...]


def quantize(
    source: Path, target: Path, type_name: str, *, heads_type_name: str | None = None, progress: Progress = silent
) -> Quantization:
    """Write `source` as `target` in another type.

    Args:
        type_name: one of FILE_TYPES.
        heads_type_name: type of the heads; None is q8_0, and leaves quantized heads as they are.

    Raises:
        UsageError: unknown type, or the file is already quantized.
        GgufError: `source` is damaged, or the quantizer failed.
        DiskFullError: the disk filled up.
    """
    start = time.monotonic()
    chosen = file_type(type_name)
    check_gguf(source)
    parts = find_parts(source)
    if kind := _quantized(parts.base):
        raise UsageError(
            f"{source} is already quantized ({kind}) and would lose twice by becoming {chosen.name}; quantize an f32, "
            "f16 or bf16 file, or convert the checkpoint again with --type"
        )
    wanted = file_type(heads_type_name or HEADS_TYPE, "--heads-type")
    kept = _kept_type(parts.heads, source, wanted, forced=heads_type_name is not None)
    # Before the target, which may be the source, is replaced.
    source_bytes = source.stat().st_size
    with staged_file(target) as staged:
        remarks = other_types(quantize_gguf(source, staged, chosen, progress), chosen)
        others: dict[str, str] = {}
        for part in parts.heads:
            others |= _append_head(part, staged, wanted if kept is None else None, progress)
        if parts.depths is not None:
            _append_head(parts.depths, staged, None, progress)
        size = staged.stat().st_size
    return Quantization(
        source=str(source),
        path=target,
        file_type=chosen.name,
        heads=parts.count - 1 if parts.heads else 0,
        heads_type=(kept or wanted.name) if parts.heads else None,
        source_bytes=source_bytes,
        bytes=size,
        seconds=time.monotonic() - start,
        remarks=(*_heads_remarks(parts, source), *remarks, *other_types(others, wanted)),
    )


def _heads_remarks(parts: Parts, source: Path) -> Iterator[str]:
    if parts.lost:
        yield f"{source} {lost_heads(parts)}"
    elif parts.heads and figures_in(parts.base.header.metadata) is not None:
        yield f"what its heads' drafts are worth was measured on {source}, not on this file"


def _append_head(part: Part, path: Path, kind: FileType | None, progress: Progress) -> dict[str, str]:
    """Append a head to `path`, quantized to `kind`, or as it is for None."""
    alone = path.with_name(f"{path.name}.head")
    alone.write_bytes(np.memmap(part.header.path, np.uint8, "r", part.offset, (part.size,)).data)
    others: dict[str, str] = {}
    if kind is not None:
        written = path.with_name(f"{path.name}.head.{kind.name}")
        others = quantize_gguf(alone, written, kind, progress)
        written.replace(alone)
    append_part(path, alone)
    return others


def _kept_type(heads: tuple[Part, ...], source: Path, wanted: FileType, *, forced: bool) -> str | None:
    """The type of heads that stay as they are; None if they are to be quantized."""
    if {_type_name(part) for part in heads} <= {wanted.name}:
        return wanted.name
    quantized = [kind for part in heads if (kind := _quantized(part))]
    if quantized and forced:
        raise UsageError(
            f"the heads of {source} are already {quantized[0]} and would lose twice by becoming {wanted.name}; omit "
            "--heads-type, or convert the checkpoint again with --heads-type f32 and quantize that file"
        )
    return _type_name(heads[0]) if quantized else None


def _quantized(part: Part) -> str:
    """The quantized type of most of the part's tensors; empty if none is quantized."""
    from gguf.constants import GGMLQuantizationType

    kinds = (GGMLQuantizationType(kind).name for _, kind in part.header.tensors.values())
    counts = Counter(kind for kind in kinds if kind not in UNQUANTIZED)
    return counts.most_common(1)[0][0] if counts else ""


def _type_name(part: Part) -> str:
    number = part.header.metadata.get(FILE_TYPE_KEY)
    return next((kind.name for kind in FILE_TYPES.values() if kind.number == number), f"type {number}")
