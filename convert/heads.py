"""The extra heads of a checkpoint on their way into a GGUF: checked, and written behind the model.

Each head becomes a complete GGUF of one layer whose input is the trunk's output: the layer, the final norm, and the
unembedding in the place of the embedding, so that nothing is stored twice inside a head. Values are read from the
checkpoint a few rows at a time. Knows no llama.cpp.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from nptool.checkpoints import check_whole
from nptool.convert.checkpoint import Checkpoint
from nptool.convert.file_types import FileType, file_type
from nptool.convert.gguf_file import MATRIX_TYPES, write_gguf
from nptool.convert.model_spec import Metadata, ModelSpec
from nptool.convert.tensors import EMBEDDING, LAYER_PREFIX, UNEMBEDDING, Tensor, check_names, gguf_tensors
from nptool.convert.weights import StoredTensor, read_index
from nptool.errors import CheckpointError, UsageError
from nptool.heads import (
    ACCURACY_KEY,
    ACCURACY_RANKS_KEY,
    COUNT_KEY,
    HEADS_WEIGHTS,
    INDEX_KEY,
    TRUNK_DIGEST_KEY,
    TRUNK_LAYER_KEY,
    HeadsInfo,
    head_tensor,
    read_heads_info,
)
from nptool.llama.gguf_parts import part_start
from nptool.progress import Progress

AGAIN = "train the heads again with `nptool train heads`"
HEAD_LAYER = f"{LAYER_PREFIX}0."
"""A head is the only layer of its GGUF."""
HEADS_TYPE = "q8_0"
"""Of heads where nothing else is asked for, whatever the model's own: they only draft, so that rounding costs no more
than a draft now and then, and half the time of a head in f32 is saved."""


@dataclass(frozen=True)
class Heads:
    """Heads 2..n, not yet read."""

    info: HeadsInfo
    spec: ModelSpec
    """Of one head."""
    tensors: tuple[tuple[Tensor, ...], ...]
    """One row a head; `tensors[0]` is head 2."""

    @property
    def metadata(self) -> Metadata:
        """What the model's GGUF says of its heads."""
        entries: dict[str, int | str | list[float]] = {
            COUNT_KEY: self.info.count,
            TRUNK_LAYER_KEY: self.info.trunk_layer,
            TRUNK_DIGEST_KEY: self.info.trunk_digest,
        }
        if self.info.accuracy:
            entries[ACCURACY_KEY] = [share for row in self.info.accuracy for share in row]
            entries[ACCURACY_RANKS_KEY] = len(self.info.accuracy[0])
        return entries


def read_heads(checkpoint: Checkpoint, spec: ModelSpec, model: list[Tensor]) -> Heads | None:
    """The checkpoint's heads, or None where it has none.

    Args:
        model: the tensors of the model's own GGUF.

    Raises:
        CheckpointError: the heads are damaged, missing, or do not fit the model beside them.
    """
    info = read_heads_info(checkpoint.directory)
    if info is None:
        return None
    _check_info(info, checkpoint, spec)
    path = checkpoint.directory / HEADS_WEIGHTS
    check_whole(path)
    stored = read_index([path])
    _check_stored(stored, info, spec, path)
    head = replace(spec, sizes=replace(spec.sizes, layers=1, tied=True))
    rows = tuple(tuple(_head_tensors(number, checkpoint, head, stored, model)) for number in _numbers(info))
    return Heads(info, head, rows)


def heads_type(name: str | None) -> FileType:
    """The heads' type of the given name, or the default.

    Raises:
        UsageError: it is none that nptool writes row by row.
    """
    chosen = file_type(name or HEADS_TYPE, "--heads-type")
    if chosen.name not in MATRIX_TYPES:
        raise UsageError(
            f"heads are written in one of {', '.join(MATRIX_TYPES)}, and {chosen.name} was asked for; "
            "`nptool quantize` makes the others"
        )
    return chosen


def append_heads(path: Path, heads: Heads, file_type: FileType, name: str, progress: Progress) -> dict[str, str]:
    """Write the heads behind the model in the GGUF at `path`.

    Args:
        file_type: one that is written directly.
        name: the model's, for people.

    Returns:
        Tensors that are not in the type asked for, with the type they got.
    """
    others: dict[str, str] = {}
    for number, tensors in zip(_numbers(heads.info), heads.tensors, strict=True):
        alone = path.with_name(f"{path.name}.head")
        extra: Metadata = {
            "general.name": f"{name} head {number}",
            INDEX_KEY: number,
            TRUNK_DIGEST_KEY: heads.info.trunk_digest,
        }
        others |= write_gguf(alone, heads.spec, None, tensors, file_type, extra, _labelled(progress, number))
        append_part(path, alone)
        alone.unlink()
    return others


def append_part(path: Path, part: Path) -> None:
    """Copy the GGUF at `part` behind the last one in `path`, at the next place where a part may begin."""
    with path.open("r+b") as target, part.open("rb") as source:
        end = target.seek(0, 2)
        target.write(bytes(part_start(end) - end))
        shutil.copyfileobj(source, target)


def _numbers(info: HeadsInfo) -> range:
    return range(2, info.count + 1)


def _labelled(progress: Progress, number: int) -> Progress:
    def report(step: str, done: float, total: float, note: str = "") -> None:
        progress(f"writing head {number}", done, total, note)

    return report


def _head_tensors(
    number: int,
    checkpoint: Checkpoint,
    spec: ModelSpec,
    stored: Mapping[str, StoredTensor],
    model: list[Tensor],
) -> Iterator[Tensor]:
    """A head's tensors: those of a model of one layer whose embedding is the unembedding."""
    of_model = {tensor.stored.name: tensor.stored for tensor in model if tensor.stored is not None}
    parts = {f"{HEAD_LAYER}{tensor.source}": stored[head_tensor(number, tensor.source)] for tensor in spec.layer}
    parts[EMBEDDING] = of_model.get(UNEMBEDDING) or of_model[EMBEDDING]
    parts[spec.final_norm.source] = of_model[spec.final_norm.source]
    return gguf_tensors(spec, parts, checkpoint.name)


def _check_info(info: HeadsInfo, checkpoint: Checkpoint, spec: ModelSpec) -> None:
    if info.count < 2:
        raise CheckpointError(
            f"{checkpoint.name}: heads.json speaks of {info.count} heads; expected 2 or more; {AGAIN}"
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
                f"{checkpoint.name}: heads.json has {name} = {said}, the model beside it {needed}; the heads belong to "
                f"another model: put back that one, or {AGAIN}"
            )
    ranks = {len(row) for row in info.accuracy}
    if info.accuracy and (len(info.accuracy) != info.count - 1 or len(ranks) != 1):
        raise CheckpointError(
            f"{checkpoint.name}: heads.json speaks of {info.count} heads and has {len(info.accuracy)} rows of "
            f"accuracies; expected a row of equal length for each head but the first; {AGAIN}"
        )


def _check_stored(stored: Mapping[str, StoredTensor], info: HeadsInfo, spec: ModelSpec, path: Path) -> None:
    expected = {head_tensor(number, part.source): part.shape for number in _numbers(info) for part in spec.layer}
    check_names(str(path), f"{spec.architecture} with {info.count} heads", expected, stored, lambda *_: AGAIN)
    for name, shape in expected.items():
        if stored[name].shape != shape:
            raise CheckpointError(
                f"{path}: {name} has shape {stored[name].shape}, the model beside it asks for {shape}; the heads "
                f"belong to another model: put back that one, or {AGAIN}"
            )
