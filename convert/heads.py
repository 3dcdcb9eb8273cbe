"""The extra heads of a checkpoint: checked, and appended to the model's GGUF.

Each head becomes a complete GGUF of one layer whose input is the trunk's output: the layer, the final norm, and the
unembedding in the place of the embedding, so that a head stores nothing twice.
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
    NEXTN,
    TRUNK_DIGEST_KEY,
    TRUNK_LAYER_KEY,
    HeadsInfo,
    head_tensor,
    read_heads_info,
)
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
    """`tensors[0]` is head 2."""

    @property
    def metadata(self) -> Metadata:
        """Entries of the model's GGUF."""
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
    """The checkpoint's heads, or None if it has none, or a NextN block, which is written otherwise.

    Args:
        model: the tensors of the model's own GGUF.

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
    numbers = range(2, info.count + 1)
    expected = {head_tensor(number, part.source): part.shape for number in numbers for part in spec.layer}
    check_names(str(path), f"{spec.architecture} with {info.count} heads", expected, stored, lambda *_: AGAIN)
    check_shapes(str(path), "the model beside it", expected, stored, ANOTHER)
    head = replace(spec, sizes=replace(spec.sizes, layers=1, tied=True))
    of_model = {tensor.stored.name: tensor.stored for tensor in model if tensor.stored is not None}
    tensors = tuple(tuple(_head_tensors(number, head, stored, of_model, checkpoint.name)) for number in numbers)
    return Heads(info, head, tensors)


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
    for number, tensors in enumerate(heads.tensors, start=2):
        extra: Metadata = {
            "general.name": f"{name} head {number}",
            INDEX_KEY: number,
            TRUNK_DIGEST_KEY: heads.info.trunk_digest,
        }
        others |= write_gguf(alone, heads.spec, None, tensors, file_type, extra, in_part(f"head {number}", progress))
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
    number: int, spec: ModelSpec, stored: Mapping[str, StoredTensor], model: Mapping[str, StoredTensor], source: str
) -> Iterator[Tensor]:
    """Those of a model of one layer whose embedding is the unembedding."""
    parts = {f"{LAYER_PREFIX}0.{part.source}": stored[head_tensor(number, part.source)] for part in spec.layer}
    parts[EMBEDDING] = model.get(UNEMBEDDING) or model[EMBEDDING]
    parts[spec.final_norm.source] = model[spec.final_norm.source]
    return gguf_tensors(spec, parts, source)


def check_info(info: HeadsInfo, checkpoint: Checkpoint, spec: ModelSpec) -> None:
    """Raise CheckpointError if heads.json describes heads of another model."""
    if info.count < 2:
        raise CheckpointError(f"{checkpoint.name}: heads.json says {info.count} heads; expected 2 or more; {AGAIN}")
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
