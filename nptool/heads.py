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
from typing import Any

from nptool.errors import CheckpointError
from nptool.files import read_json, write_json

HEADS_FILE = "heads.json"
HEADS_WEIGHTS = "heads.safetensors"
FORMAT = 1

COUNT_KEY = "nptool.heads.count"
"""GGUF: heads in all, head 1 included (uint32)."""
TRUNK_LAYER_KEY = "nptool.heads.trunk_layer"
"""GGUF: the layer whose input is z (uint32)."""
INDEX_KEY = "nptool.heads.index"
"""GGUF of one head: which it is, 2..n (uint32)."""
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
        CheckpointError: it cannot be read, the weights are missing, or the checkpoint beside it is another one.
    """
    path = directory / HEADS_FILE
    if not path.is_file():
        return None
    try:
        saved = read_json(path)
        values = {name: saved[name] for name in HeadsInfo.__dataclass_fields__}
        info = HeadsInfo(**{**values, "accuracy": tuple(tuple(row) for row in values["accuracy"])})
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged ({error!r}); train the heads again") from error
    if not (directory / HEADS_WEIGHTS).is_file():
        raise CheckpointError(f"{path} describes {info.count} heads, but {HEADS_WEIGHTS} beside it is missing")
    if (found := trunk_digest(directory)) != info.trunk_digest:
        raise CheckpointError(
            f"the heads in {directory} were trained on another trunk (digest {info.trunk_digest}, the model beside "
            f"them has {found}); put back that model, or train the heads again with nptool train heads -m {directory}"
        )
    return info


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
