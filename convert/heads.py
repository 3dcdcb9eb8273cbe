"""The extra heads of a checkpoint: checked, and appended to the model's GGUF.

Each head, or the layer that all share, becomes a complete GGUF of one layer whose input is the trunk's output: the
layer, the final norm, and the unembedding in the place of the embedding, so that a head stores nothing twice. What
tells the depths of a shared layer apart is a GGUF of its own, as llama.cpp refuses tensors that it does not know.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nptool.checkpoints import check_whole
from nptool.convert.checkpoint import Checkpoint
from nptool.convert.file_types import FILE_TYPES, FileType, file_type
from nptool.convert.gguf_file import MATRIX_TYPES, write_gguf
from nptool.convert.layers.model_spec import Metadata, ModelSpec
from nptool.convert.layers.weights import StoredTensor, read_index
from nptool.convert.tensors import EMBEDDING, LAYER_PREFIX, UNEMBEDDING, Tensor, check_names, check_shapes, gguf_tensors
from nptool.errors import CheckpointError, UsageError
from nptool.heads import (
    ACCURACY_KEY,
    ACCURACY_RANKS_KEY,
    COUNT_KEY,
    HEADS_WEIGHTS,
    INDEX_KEY,
    KIND_KEY,
    NEXTN,
    SEPARATE,
    SHARED,
    SHARED_LIMIT,
    TRUNK_DIGEST_KEY,
    TRUNK_LAYER_KEY,
    HeadsInfo,
    depth_shapes,
    depth_tensor,
    head_tensor,
    layer_tensor,
    read_heads_info,
)
from nptool.heads_sample import HeadsSample, placeholders, read_sample
from nptool.llama.gguf_parts import part_start
from nptool.progress import Progress, in_part

AGAIN = "train the heads again with `nptool train heads`"
ANOTHER = f"the heads belong to another model: put back that one, or {AGAIN}"
HEADS_TYPE = "q8_0"
"""Default type of heads: they only draft, so rounding costs a few rejected drafts."""


@dataclass(frozen=True)
class Heads:
    """Heads 2..n, not yet read."""

    info: HeadsInfo
    spec: ModelSpec
    """Of one head."""
    tensors: tuple[tuple[Tensor, ...], ...]
    """`tensors[0]` is head 2, or the layer that all heads share."""
    depths: tuple[Tensor, ...] = ()
    """What tells the heads of a shared layer apart."""
    sample: HeadsSample | None = None
    """Held-out prompts that the finished file is scored on."""

    @property
    def parameters(self) -> int:
        return sum(tensor.size for tensors in (*self.tensors, self.depths) for tensor in tensors)

    @property
    def metadata(self) -> Metadata:
        """Entries of the model's GGUF."""
        return info_metadata(self.info) | (placeholders(self.info.count) if self.sample is not None else {})


def info_metadata(info: HeadsInfo) -> dict[str, int | str | float | list[float]]:
    """Entries of the model's GGUF that say what heads it has."""
    entries: dict[str, int | str | float | list[float]] = {
        COUNT_KEY: info.count,
        TRUNK_LAYER_KEY: info.trunk_layer,
        TRUNK_DIGEST_KEY: info.trunk_digest,
    }
    if info.kind != SEPARATE:
        entries[KIND_KEY] = info.kind
    if info.accuracy:
        entries[ACCURACY_KEY] = [share for row in info.accuracy for share in row]
        entries[ACCURACY_RANKS_KEY] = len(info.accuracy[0])
    return entries


def read_heads(checkpoint: Checkpoint, spec: ModelSpec, model: list[Tensor], *, scored: bool) -> Heads | None:
    """The checkpoint's heads, or None if it has none, or a NextN block, which is written otherwise.

    Args:
        model: the tensors of the model's own GGUF.
        scored: whether the finished file will be scored.

    Raises:
        CheckpointError: the heads are damaged, missing, or do not fit the model beside them.
    """
    info = read_heads_info(checkpoint.directory)
    if info is None or info.kind == NEXTN:
        return None
    check_info(info, checkpoint, spec)
    path = checkpoint.directory / HEADS_WEIGHTS
    check_whole(path)
    stored = read_index([path])
    shared = info.kind == SHARED
    layers = [layer_tensor] if shared else [partial(head_tensor, number) for number in range(2, info.count + 1)]
    expected = {name(part.source): part.shape for name in layers for part in spec.layer}
    depths = depth_shapes(info) if shared else {}
    owner = f"{spec.architecture} with {info.count} {info.kind} heads"
    check_names(str(path), owner, expected | depths, stored, lambda *_: AGAIN)
    check_shapes(str(path), "the model beside it", expected | depths, stored, ANOTHER)
    head = replace(spec, sizes=replace(spec.sizes, layers=1, tied=True))
    of_model = {tensor.stored.name: tensor.stored for tensor in model if tensor.stored is not None}
    tensors = tuple(tuple(_head_tensors(name, head, stored, of_model, checkpoint.name)) for name in layers)
    sample = read_sample(checkpoint.directory, info.count) if scored else None
    return Heads(info, head, tensors, tuple(_depth_tensors(info, stored)) if shared else (), sample)


def heads_type(name: str | None) -> FileType:
    """The heads' type of the given name, or the default; UsageError if it is not written directly."""
    chosen = file_type(name or HEADS_TYPE, "--heads-type")
    if chosen.name not in MATRIX_TYPES:
        raise UsageError(
            f"heads are written in one of {', '.join(MATRIX_TYPES)}, and {chosen.name} was asked for; "
            "`nptool quantize` makes the others"
        )
    return chosen


def append_heads(path: Path, heads: Heads, file_type: FileType, name: str, progress: Progress) -> dict[str, str]:
    """Write the heads after the model called `name` in the GGUF at `path`; returns as `write_gguf` does."""
    others: dict[str, str] = {}
    alone = path.with_name(f"{path.name}.head")
    parts = [(tensors, file_type) for tensors in heads.tensors]
    if heads.depths:
        parts.append((heads.depths, FILE_TYPES["f32"]))
    for number, (tensors, kind) in enumerate(parts, start=2):
        extra: Metadata = {
            "general.name": f"{name} head {number}" if heads.info.kind == SEPARATE else f"{name} heads",
            INDEX_KEY: number,
            TRUNK_DIGEST_KEY: heads.info.trunk_digest,
        }
        others |= write_gguf(alone, heads.spec, None, tensors, kind, extra, in_part(f"head {number}", progress))
        append_part(path, alone)
    return others


def append_part(path: Path, part: Path) -> None:
    """Move the GGUF at `part` to the end of `path`, at the next place where a part may begin."""
    with path.open("r+b") as target, part.open("rb") as source:
        end = target.seek(0, 2)
        target.write(bytes(part_start(end) - end))
        shutil.copyfileobj(source, target)
    part.unlink()


def _head_tensors(
    name: Callable[[str], str],
    spec: ModelSpec,
    stored: Mapping[str, StoredTensor],
    model: Mapping[str, StoredTensor],
    source: str,
) -> Iterator[Tensor]:
    """Those of a model of one layer whose embedding is the unembedding."""
    parts = {f"{LAYER_PREFIX}0.{part.source}": stored[name(part.source)] for part in spec.layer}
    parts[EMBEDDING] = model.get(UNEMBEDDING) or model[EMBEDDING]
    parts[spec.final_norm.source] = model[spec.final_norm.source]
    return gguf_tensors(spec, parts, source)


def _depth_tensors(info: HeadsInfo, stored: Mapping[str, StoredTensor]) -> Iterator[Tensor]:
    """e (K, D), a (K, R, D) and b (K, D, R) of all heads, which are small."""
    for part in ("e", "a", "b") if info.rank else ("e",):
        values = np.stack([_values(stored[depth_tensor(head, part)]) for head in range(2, info.count + 1)])
        yield Tensor(part, values.shape, None, values=values)


def _values(tensor: StoredTensor) -> NDArray[np.float32]:
    return np.concatenate([*tensor.chunks()]).reshape(tensor.shape)


def check_info(info: HeadsInfo, checkpoint: Checkpoint, spec: ModelSpec) -> None:
    """Raise CheckpointError if heads.json describes heads of another model."""
    if info.count < 2:
        raise CheckpointError(f"{checkpoint.name}: heads.json says {info.count} heads; expected 2 or more; {AGAIN}")
    if info.kind == SHARED and (info.count > SHARED_LIMIT or info.rank < 0):
        raise CheckpointError(
            f"{checkpoint.name}: heads.json says {info.count} shared heads of rank {info.rank}; expected at most "
            f"{SHARED_LIMIT} and a rank of 0 or more; {AGAIN}"
        )
    pairs = {
        "model_type": (info.model_type, checkpoint.config.get("model_type")),
        "hidden_size": (info.hidden_size, spec.sizes.hidden),
        "vocab_size": (info.vocab_size, spec.sizes.vocabulary),
        "trunk_layer": (info.trunk_layer, spec.sizes.layers - 1),
    }
    for name, (said, needed) in pairs.items():
        if said != needed:
            raise CheckpointError(
                f"{checkpoint.name}: heads.json has {name} = {said}, the model beside it {needed}; {ANOTHER}"
            )
    ranks = {len(row) for row in info.accuracy}
    if info.accuracy and (len(info.accuracy) != info.count - 1 or len(ranks) != 1):
        raise CheckpointError(
            f"{checkpoint.name}: heads.json says {info.count} heads and has {len(info.accuracy)} rows of accuracies; "
            f"expected a row of equal length for each head but the first; {AGAIN}"
        )
