"""Extra heads of a multi-head model: their names, their description on disk, and their GGUF keys.

A multi-head model (arXiv 2404.19737) is a trunk, n parallel heads, one final norm and one unembedding. Head 1 is the
model's own last layer, so the ordinary checkpoint holds trunk and head 1; heads 2..n are in `heads.safetensors` beside
it, described by `heads.json`: a layer for each ("separate"), or one layer and what tells the depths apart ("shared",
see `nptool.training.heads.shared`). All heads read z, the input of the last layer (T, D). Training, conversion and
decoding share this module; it loads neither torch nor llama.cpp.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, get_type_hints

from nptool.checkpoints import check_whole
from nptool.errors import CheckpointError, DataError
from nptool.files import read_json, write_json

HEADS_FILE = "heads.json"
HEADS_WEIGHTS = "heads.safetensors"
FORMAT, SEPARATE_ONLY = 2, 1
"""Of `heads.json`: the one that is written, and an older one without `kind` and `rank`."""
SEPARATE: Final = "separate"
SHARED: Final = "shared"
NEXTN: Final = "nextn"
KINDS = SEPARATE, SHARED, NEXTN
"""Kinds of heads: a layer for each, one layer for all, or a block that drafts a token at a time (`nptool.nextn`)."""
SHARED_LIMIT = 16
"""Most heads of a shared layer."""
PLAIN_AGAIN = f"remove {HEADS_FILE} and {HEADS_WEIGHTS} to have the plain model, which new heads can be trained on"
"""How to go on when the heads cannot be used."""

COUNT_KEY = "nptool.heads.count"
"""GGUF of the model: number of heads, head 1 included (uint32)."""
TRUNK_LAYER_KEY = "nptool.heads.trunk_layer"
"""GGUF of the model: the layer whose input is z (uint32)."""
KIND_KEY = "nptool.heads.kind"
"""GGUF of the model: the kind of its heads (string); separate ones if it is missing."""
INDEX_KEY = "nptool.heads.index"
"""GGUF of a head: its number, 2..n (uint32); 2 for a shared layer, 3 for its depths."""
TRUNK_DIGEST_KEY = "nptool.heads.trunk_digest"
"""GGUF of the model and of each head: `trunk_digest` of their checkpoint (string)."""
ACCURACY_KEY = "nptool.heads.accuracy"
"""GGUF of the model: held-out accuracies of heads 2..n, a flat float32 array of n - 1 rows."""
ACCURACY_RANKS_KEY = "nptool.heads.accuracy_ranks"
"""GGUF of the model: columns of the accuracies, one for each rank of a head's choice (uint32)."""

# Bytes from either end of a tensor that go into the digest: a whole 7B model would take a minute to read.
_SAMPLE = 4096

Accuracy = tuple[tuple[float, ...], ...]
"""Held out, for heads 2..n: share of tokens that are the head's first, second, ... choice (not cumulative)."""


@dataclass(frozen=True)
class HeadsInfo:
    """The content of `heads.json`."""

    count: int
    """n: number of heads, head 1 included; at least 2."""
    trunk_layer: int
    """Index of the checkpoint's last layer, whose input is z."""
    model_type: str
    """transformers' name of the architecture of model and heads."""
    hidden_size: int
    vocab_size: int
    trunk_digest: str
    """`trunk_digest` of the checkpoint that the heads were trained on."""
    accuracy: Accuracy = ()
    kind: str = SEPARATE
    rank: int = 0
    """Of A and B; 0 for other kinds."""


def head_tensor(head: int, name: str) -> str:
    """Name of a tensor in `heads.safetensors`: (2, "self_attn.q_proj.weight") -> "heads.2.self_attn.q_proj.weight".

    Args:
        head: 2..n.
        name: transformers' name after `model.layers.<i>.`.
    """
    return f"heads.{head}.{name}"


def layer_tensor(name: str) -> str:
    """Name of a tensor of a shared layer in `heads.safetensors`; `name` as in `head_tensor`."""
    return f"layer.{name}"


def depth_tensor(head: int, name: str) -> str:
    """Name of a head's e (D), a (R, D) or b (D, R) in `heads.safetensors`."""
    return f"depths.{head}.{name}"


def depth_shapes(info: HeadsInfo) -> dict[str, tuple[int, ...]]:
    """Names in `heads.safetensors` and shapes of what tells the heads of a shared layer apart."""
    hidden, rank = info.hidden_size, info.rank
    parts = {"e": (hidden,), "a": (rank, hidden), "b": (hidden, rank)}
    return {depth_tensor(head, name): shape for head in range(2, info.count + 1) for name, shape in parts.items()}


def nextn_tensor(name: str) -> str:
    """Name of a NextN block's tensor in `heads.safetensors`: `layer.<name as in head_tensor>`, `eh_proj.weight`, ..."""
    return f"nextn.{name}"


def write_heads_info(directory: Path, info: HeadsInfo) -> None:
    """Write `heads.json`. The weights must exist already, so that there is never a description without weights."""
    write_json(directory / HEADS_FILE, {"format": FORMAT, **asdict(info)})


def read_heads_info(directory: Path) -> HeadsInfo | None:
    """The description of a checkpoint's heads, or None if it has no heads.

    Raises:
        CheckpointError: it cannot be read, one of the two files is missing, or the heads belong to another checkpoint.
    """
    path, weights = directory / HEADS_FILE, directory / HEADS_WEIGHTS
    if not path.is_file():
        if weights.is_file():
            raise CheckpointError(
                f"{directory} has {HEADS_WEIGHTS}, but {HEADS_FILE}, which describes it, is missing; copy it there, or "
                f"remove {HEADS_WEIGHTS} to have the plain model"
            )
        return None
    info = _read(path)
    if not weights.is_file():
        raise CheckpointError(
            f"{path} describes {info.count} heads, but {HEADS_WEIGHTS} beside it is missing; copy it there, or remove "
            f"{HEADS_FILE} to have the plain model"
        )
    if (found := trunk_digest(directory)) != info.trunk_digest:
        raise CheckpointError(
            f"the heads in {directory} were trained on another trunk (digest {info.trunk_digest}, the model beside "
            f"them has {found}); put back that model, or {PLAIN_AGAIN}"
        )
    return info


def _read(path: Path) -> HeadsInfo:
    """Read a `heads.json` and check the type of every value."""
    try:
        saved = read_json(path)
    except DataError as error:
        raise CheckpointError(f"{error}; {PLAIN_AGAIN}") from error
    if not isinstance(saved, dict):
        raise CheckpointError(f"{path} is damaged: it is not a JSON object; {PLAIN_AGAIN}")
    if saved.get("format") == SEPARATE_ONLY:
        saved |= {"kind": SEPARATE, "rank": 0}
    elif saved.get("format") != FORMAT or saved.get("kind") not in KINDS:
        raise CheckpointError(
            f"{path} has format {saved.get('format')!r} and kind {saved.get('kind')!r}, this nptool knows format "
            f"{FORMAT} with {', '.join(KINDS)}; use the nptool that wrote it, or {PLAIN_AGAIN}"
        )
    hints = get_type_hints(HeadsInfo)
    for name, kind in hints.items():
        if not _is_a(saved.get(name), kind):
            raise CheckpointError(f"{path} is damaged: {name} is {saved.get(name)!r}; {PLAIN_AGAIN}")
    values = {name: saved[name] for name in hints}
    return HeadsInfo(**values | {"accuracy": tuple(tuple(row) for row in values["accuracy"])})


def _is_a(value: Any, kind: Any) -> bool:
    """Whether a JSON value has the type of its field: int, str, or `Accuracy`."""
    if kind in (int, str):
        return type(value) is kind
    rows = value if isinstance(value, list) else [None]
    return all(isinstance(row, list) and all(type(share) in (int, float) for share in row) for row in rows)


def accuracy_in(metadata: Mapping[str, Any]) -> Accuracy | None:
    """The accuracies in a GGUF's metadata, or None if it has none that can be used."""
    flat, ranks, count = (metadata.get(key) for key in (ACCURACY_KEY, ACCURACY_RANKS_KEY, COUNT_KEY))
    if not isinstance(flat, list) or not isinstance(ranks, int) or not isinstance(count, int):
        return None
    if len(flat) != ranks * (count - 1):
        return None
    return tuple(tuple(flat[start : start + ranks]) for start in range(0, len(flat), ranks))


def trunk_digest(directory: Path) -> str:
    """Sixteen hexadecimal digits that identify a checkpoint's weights.

    The digest covers the name, type, shape, first and last bytes of every tensor in the safetensors files, without the
    heads.

    Raises:
        CheckpointError: a safetensors file is damaged.
    """
    digest = hashlib.blake2b(digest_size=8)
    entries: list[tuple[str, Path, dict[str, Any], int]] = []
    for path in sorted(directory.glob("*.safetensors")):
        if path.name != HEADS_WEIGHTS:
            header, start = check_whole(path)
            entries += [(name, path, entry, start) for name, entry in header.items()]
    for name, path, entry, start in sorted(entries, key=lambda item: item[0]):
        digest.update(f"{name} {entry['dtype']} {entry['shape']}".encode())
        first, end = (start + int(offset) for offset in entry["data_offsets"])
        with path.open("rb") as stream:
            stream.seek(first)
            digest.update(stream.read(min(_SAMPLE, end - first)))
            stream.seek(max(first, end - _SAMPLE))
            digest.update(stream.read(end - max(first, end - _SAMPLE)))
    return digest.hexdigest()
