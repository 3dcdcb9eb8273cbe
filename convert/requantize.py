"""`nptool quantize`: a GGUF in another type, the heads behind its model kept.

llama.cpp's quantizer knows one GGUF a file, so each part is quantized by itself and they are put together again. The
file appears under its name when it is whole, or not at all. Knows no checkpoint.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from nptool.convert.file_types import FILE_TYPES, FileType, file_type
from nptool.convert.heads import HEADS_TYPE, append_part
from nptool.convert.quantize import quantize_gguf
from nptool.convert.staging import staged_file
from nptool.errors import UsageError
from nptool.llama.gguf_check import check_gguf
from nptool.llama.gguf_parts import Part, find_parts, lost_heads
from nptool.progress import Progress, silent

COPIED_BYTES = 1 << 24
"""Held in memory at once while a part is copied."""
UNQUANTIZED = frozenset({"F32", "F16", "BF16"})
FILE_TYPE_KEY = "general.file_type"


@dataclass(frozen=True)
class Quantization:
    """The finished file."""

    source: str
    path: Path
    file_type: str
    heads: int
    """Heads behind the model; 0 where there are none."""
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
        heads_type_name: of the heads; None is q8_0, and heads that are quantized already stay as they are.

    Raises:
        UsageError: unknown type, or the file is quantized already.
        GgufError: `source` is damaged, or the quantizer failed.
        DiskFullError: the disk filled up.
    """
    start = time.monotonic()
    chosen = file_type(type_name)
    check_gguf(source)
    parts = find_parts(source)
    _check_source(parts.base, source, chosen)
    wanted = file_type(heads_type_name or HEADS_TYPE, "--heads-type")
    # Before the target takes its place, which may be the source's own.
    source_bytes = source.stat().st_size
    kept = _kept_type(parts.heads, source, wanted, forced=heads_type_name is not None)
    with staged_file(target) as staged:
        others = quantize_gguf(source, staged, chosen, progress)
        for part in parts.heads:
            others |= _add_head(part, staged, wanted if kept is None else None, progress)
        size = staged.stat().st_size
    remarks = [f"{source} {lost_heads(parts)}"] if parts.lost else []
    if others:
        name, kind = next(iter(others.items()))
        remarks.append(
            f"{len(others)} tensors, whose rows do not divide into blocks, have another type ({name}: {kind})"
        )
    return Quantization(
        source=str(source),
        path=target,
        file_type=chosen.name,
        heads=len(parts.heads),
        heads_type=(kept or wanted.name) if parts.heads else None,
        source_bytes=source_bytes,
        bytes=size,
        seconds=time.monotonic() - start,
        remarks=tuple(remarks),
    )


def _add_head(part: Part, path: Path, kind: FileType | None, progress: Progress) -> dict[str, str]:
    """Put a head behind what is in `path`, in the type `kind` or as it is."""
    alone = path.with_name(f"{path.name}.head")
    _copy_part(part, alone)
    others: dict[str, str] = {}
    if kind is not None:
        written = path.with_name(f"{path.name}.head.{kind.name}")
        others = quantize_gguf(alone, written, kind, progress)
        written.replace(alone)
    append_part(path, alone)
    alone.unlink()
    return others


def _copy_part(part: Part, target: Path) -> None:
    with part.header.path.open("rb") as stream, target.open("wb") as copy:
        stream.seek(part.offset)
        left = part.size
        while left:
            block = stream.read(min(left, COPIED_BYTES))
            copy.write(block)
            left -= len(block)


def _kept_type(heads: tuple[Part, ...], source: Path, wanted: FileType, *, forced: bool) -> str | None:
    """Name of the type of heads that stay as they are; None where they are quantized now."""
    found = {_type_name(part) for part in heads}
    if not found - {wanted.name}:
        return wanted.name
    quantized = [_quantized(part) for part in heads if _quantized(part)]
    if quantized and forced:
        raise UsageError(
            f"the heads of {source} are {quantized[0]} already and would lose twice by becoming {wanted.name}; leave "
            "out --heads-type, or convert the checkpoint again with --heads-type f32 and quantize that file"
        )
    return _type_name(heads[0]) if quantized else None


def _check_source(base: Part, source: Path, chosen: FileType) -> None:
    if kind := _quantized(base):
        raise UsageError(
            f"{source} is quantized already ({kind}) and would lose twice by becoming {chosen.name}; quantize an f32, "
            "f16 or bf16 file, or convert the checkpoint again with --type"
        )


def _quantized(part: Part) -> str:
    """Name of the quantized type that most of the part's tensors have, or nothing where none is quantized."""
    from gguf.constants import GGMLQuantizationType

    kinds = (GGMLQuantizationType(kind).name for _, kind in part.header.tensors.values())
    counts = Counter(kind for kind in kinds if kind not in UNQUANTIZED)
    return counts.most_common(1)[0][0] if counts else ""


def _type_name(part: Part) -> str:
    number = part.header.metadata.get(FILE_TYPE_KEY)
    return next((kind.name for kind in FILE_TYPES.values() if kind.number == number), f"type {number}")
