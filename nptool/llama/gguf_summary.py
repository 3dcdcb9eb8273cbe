"""A summary of a GGUF file from its headers: parts, tensors, types and sizes. Imports neither llama_cpp nor torch."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import prod
from pathlib import Path

from nptool.heads import Accuracy, accuracy_in
from nptool.heads_sample import HeadsFigures, figures_in
from nptool.llama.gguf_check import tensor_bytes
from nptool.llama.gguf_parts import Part, find_parts, lost_heads
from nptool.method_note import BLOCK_SIZE_KEY, METHOD_KEY, Measured, measured_in

MODEL = "model"


@dataclass(frozen=True)
class TensorSummary:
    name: str
    shape: tuple[int, ...]
    """The length of a row first."""
    type: str
    """ggml's name."""
    bytes: int


@dataclass(frozen=True)
class PartSummary:
    """The model, or one of its heads."""

    part: str
    """`model`, `head 2`, ...; of shared heads `layer of the heads` and `depths of the heads`."""
    offset: int
    """First byte in the file."""
    bytes: int
    name: str | None
    """`general.name`."""
    architecture: str
    layers: int | None
    parameters: int
    parameters_by_type: dict[str, int]
    """Most frequent type first."""
    tensors: tuple[TensorSummary, ...]


@dataclass(frozen=True)
class FileSummary:
    path: str
    bytes: int
    method: str | None
    """How the model was trained for parallel decoding (`nptool.method`)."""
    block_size: int | None
    measured: Measured | None
    heads: int
    """Number of heads according to the metadata; 1 without extra heads."""
    trunk_layer: int | None
    accuracy: Accuracy
    """Empty if unknown."""
    figures: HeadsFigures | None
    """Of the heads, measured when a checkpoint was converted."""
    parts: tuple[PartSummary, ...]
    remarks: tuple[str, ...]


def summarize(path: str | Path) -> FileSummary:
    """Read the headers of a file and its parts.

    Raises:
        GgufError: see `find_parts`.
    """
    parts = find_parts(path)
    metadata = parts.base.header.metadata
    found = [(MODEL, parts.base)]
    if parts.depths is not None:
        found += [("layer of the heads", parts.heads[0]), ("depths of the heads", parts.depths)]
    else:
        found += [(f"head {number}", part) for number, part in enumerate(parts.heads, start=2)]
    return FileSummary(
        path=str(path),
        bytes=Path(path).stat().st_size,
        method=metadata.get(METHOD_KEY),
        block_size=metadata.get(BLOCK_SIZE_KEY),
        measured=measured_in(metadata),
        heads=parts.count,
        trunk_layer=parts.trunk_layer,
        accuracy=accuracy_in(metadata) or (),
        figures=figures_in(metadata),
        parts=tuple(_summarize_part(label, part) for label, part in found),
        remarks=(f"{path} {lost_heads(parts)}",) if parts.lost else (),
    )


def _summarize_part(label: str, part: Part) -> PartSummary:
    from gguf.constants import GGMLQuantizationType

    tensors = tuple(
        TensorSummary(name, shape, GGMLQuantizationType(kind).name, tensor_bytes(part.header.path, name, shape, kind))
        for name, (shape, kind) in part.header.tensors.items()
    )
    counts: Counter[str] = Counter()
    for tensor in tensors:
        counts[tensor.type] += prod(tensor.shape)
    metadata, architecture = part.header.metadata, part.header.architecture
    return PartSummary(
        part=label,
        offset=part.offset,
        bytes=part.size,
        name=metadata.get("general.name"),
        architecture=architecture,
        layers=metadata.get(f"{architecture}.block_count"),
        parameters=counts.total(),
        parameters_by_type=dict(counts.most_common()),
        tensors=tensors,
    )
