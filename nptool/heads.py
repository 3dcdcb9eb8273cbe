"""What names and describes the extra heads of a multi-head model, for training, conversion and decoding alike.

A multi-head model (arXiv 2404.19737) is a trunk, n parallel heads of one transformer layer each, one final norm and one
unembedding. Head 1 is the model's own last layer, so the ordinary checkpoint holds trunk and head 1; heads 2..n lie
beside it in `heads.safetensors`, described by `heads.json`. All heads read z, the input of the last layer (T, D). Loads
neither torch nor llama.cpp.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_type_hints

from nptool.errors import CheckpointError, DataError
from nptool.files import read_json, write_json

HEADS_FILE = "heads.json"
HEADS_WEIGHTS = "heads.safetensors"
FORMAT = 1
PLAIN_AGAIN = f"remove {HEADS_FILE} and {HEADS_WEIGHTS} to have the plain model, which new heads can be trained on"
"""What to do where heads are of no use."""

COUNT_KEY = "nptool.heads.count"
"""GGUF: heads in all, head 1 included (uint32)."""
TRUNK_LAYER_KEY = "nptool.heads.trunk_layer"
"""GGUF: the layer whose input is z (uint32)."""
INDEX_KEY = "nptool.heads.index"
"""GGUF of one head: which it is, 2..n (uint32)."""
TRUNK_DIGEST_KEY = "nptool.heads.trunk_digest"
"""GGUF of the model and of each head: the checkpoint they belong to (string), so that no others are put together."""
ACCURACY_KEY = "nptool.heads.accuracy"
"""GGUF: held-out accuracies of heads 2..n, a flat float32 array of (n - 1) rows."""
ACCURACY_RANKS_KEY = "nptool.heads.accuracy_ranks"
"""GGUF: columns of the accuracies: how often the token is the head's first, second, ... choice (uint32)."""

# Bytes of each tensor that go into the digest: a whole 7B model would take a minute to read.
_SAMPLE = 4096


@dataclass(frozen=True)
class HeadsInfo:
    """What `heads.json` says."""

    count: int
    """n: heads in all, head 1 included; at least 2."""
    trunk_layer: int
    """Layer of the checkpoint whose input is z: its last one."""
    model_type: str
    """transformers' name of the architecture, which is that of the heads too."""
    hidden_size: int
    vocab_size: int
    trunk_digest: str
    """Of the checkpoint that the heads were trained on: `trunk_digest`."""
    accuracy: tuple[tuple[float, ...], ...] = ()
    """Held out, for heads 2..n: share of tokens that are the head's first, second, ... choice (not cumulative)."""


def head_tensor(head: int, name: str) -> str:
    """Name in `heads.safetensors` of a layer's tensor: (2, "self_attn.q_proj.weight") -> "heads.2.self_attn...".

    Args:
        head: 2..n.
        name: as in transformers, behind `model.layers.<i>.`.
    """
    return f"heads.{head}.{name}"


def write_heads_info(directory: Path, info: HeadsInfo) -> None:
    """Write `heads.json`; the weights must be there already, so that a description never stands alone."""
    write_json(directory / HEADS_FILE, {"format": FORMAT, **asdict(info)})


def read_heads_info(directory: Path) -> HeadsInfo | None:
    """The description of a checkpoint's heads, or None where it has none.

    Raises:
        CheckpointError: it cannot be read, one of the two files is missing, or the checkpoint beside them is another.
    """
    path = directory / HEADS_FILE
    if not path.is_file():
        if (directory / HEADS_WEIGHTS).is_file():
            raise CheckpointError(
                f"{directory} has {HEADS_WEIGHTS}, but {HEADS_FILE}, which describes it, is missing; copy it there, or "
                f"remove {HEADS_WEIGHTS} to have the plain model"
            )
        return None
    info = _read(path)
    if not (directory / HEADS_WEIGHTS).is_file():
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
    """A `heads.json`, with every value of its type."""
    try:
        saved = read_json(path)
    except DataError as error:
        raise CheckpointError(f"{error}; {PLAIN_AGAIN}") from error
    if not isinstance(saved, dict):
        raise CheckpointError(f"{path} is damaged: it is no object; {PLAIN_AGAIN}")
    if saved.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has format {saved.get('format')!r}, this nptool knows {FORMAT}; use the nptool that wrote it, "
            f"or {PLAIN_AGAIN}"
        )
    for name, kind in get_type_hints(HeadsInfo).items():
        if not _is_a(saved.get(name), kind):
            raise CheckpointError(f"{path} is damaged: {name} is {saved.get(name)!r}; {PLAIN_AGAIN}")
    values = {name: saved[name] for name in HeadsInfo.__dataclass_fields__}
    return HeadsInfo(**values | {"accuracy": tuple(tuple(row) for row in values["accuracy"])})


def _is_a(value: Any, kind: Any) -> bool:
    """Whether a JSON value is a whole number or a string, or else rows of shares."""
    if kind in (int, str):
        return type(value) is kind
    rows = value if isinstance(value, list) else [None]
    return all(isinstance(row, list) and all(type(share) in (int, float) for share in row) for row in rows)


def trunk_digest(directory: Path) -> str:
    """Sixteen hexadecimal digits that tell one checkpoint's weights from another's.

    Of every tensor in the checkpoint's safetensors files (heads apart): name, type, shape, first and last bytes.
    """
    digest = hashlib.blake2b(digest_size=8)
    entries: list[tuple[str, Path, dict[str, Any], int]] = []
    for path in sorted(directory.glob("*.safetensors")):
        if path.name != HEADS_WEIGHTS:
            header, start = _header(path)
            entries += [(name, path, entry, start) for name, entry in header.items() if name != "__metadata__"]
    for name, path, entry, start in sorted(entries, key=lambda item: item[0]):
        digest.update(f"{name} {entry['dtype']} {entry['shape']}".encode())
        first, end = (start + int(offset) for offset in entry["data_offsets"])
        with path.open("rb") as stream:
            stream.seek(first)
            digest.update(stream.read(min(_SAMPLE, end - first)))
            stream.seek(max(first, end - _SAMPLE))
            digest.update(stream.read(end - max(first, end - _SAMPLE)))
    return digest.hexdigest()


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, and where its data begins."""
    with path.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        try:
            header = json.loads(stream.read(size))
        except (json.JSONDecodeError, UnicodeDecodeError, OverflowError) as error:
            raise CheckpointError(f"{path} is no safetensors file") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path} is no safetensors file")
    return header, 8 + size
