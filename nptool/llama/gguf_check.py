"""Read the header of a GGUF file, and check that the model can be decoded in parallel.

llama.cpp answers a damaged file with a NULL pointer or an aborted process; the errors here name the file and the cause.
Reads metadata, without long arrays, and tensor sizes, but no weights. Does not import llama_cpp.
"""

from __future__ import annotations

import mmap
import re
import struct
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from nptool.errors import GgufError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
# Longer arrays (vocabularies) are skipped.
LONGEST_KEPT_ARRAY = 1024
LARGEST_RANK = 4

# State-space and linear-attention models keep one state per sequence, so a rejected draft cannot be removed.
_RECURRENT = "mamba mamba2 rwkv6 rwkv6qwen2 rwkv7 arwkv7"
_HYBRID = """
bailingmoe3 deepseek4 falcon-h1 glm5-next granitehybrid jamba kimi-k3 kimi-linear lfm2 lfm2moe minimax-01 nemotron_h
nemotron_h_moe plamo2 qwen35 qwen35moe qwen3next qwen4exp
"""
_DIFFUSION = "dream llada llada-moe rnd1"

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING = 8
_ARRAY = 9


@dataclass(frozen=True)
class Header:
    """The header of one GGUF file."""

    path: Path
    version: int
    metadata: dict[str, Any]
    """Scalars, strings and short arrays; `range(length)` stands for a long array."""
    tensors: dict[str, tuple[tuple[int, ...], int]] = field(repr=False)
    """Name to (shape with the length of a row first, ggml type number)."""
    data_start: int
    """First byte of the tensor data in the file."""
    data_end: int
    """First byte after the last tensor; another GGUF may follow, aligned."""
    offset: int = 0
    """First byte of this GGUF in the file."""
    starts: dict[str, int] = field(default_factory=dict, repr=False)
    """First byte in the file of each tensor."""

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture", "unknown"))


def check_gguf(path: str | Path) -> Header:
    """Read the header of `path` and check that the model can be decoded in parallel.

    Raises:
        GgufError: see `read_header`, or a part of a split file is missing, or the architecture keeps a recurrent state
            or is not causal.
    """
    header = read_header(path)
    name = header.architecture
    if name in _RECURRENT.split() or name in _HYBRID.split():
        kind = "recurrent" if name in _RECURRENT.split() else "hybrid (partly recurrent)"
        raise GgufError(
            f"{path} is a {kind} model ({name}): its state cannot be rolled back in part, so rejected drafts "
            "cannot be undone; use a transformer model"
        )
    if name in _DIFFUSION.split():
        raise GgufError(f"{path} is a diffusion model ({name}), not a causal one; use a causal transformer model")
    _check_parts(header)
    return header


def read_header(path: str | Path, offset: int = 0) -> Header:
    """Read the header of a GGUF and check that the file has all of its tensor data.

    Args:
        offset: first byte of the GGUF in the file.

    Raises:
        GgufError: missing, not a GGUF, an unknown version, truncated, or damaged.
    """
    path = Path(path)
    if path.is_dir():
        raise GgufError(f"{path} is a directory, not a GGUF file; convert a Hugging Face model with `nptool convert`")
    try:
        with path.open("rb") as stream:
            stream.seek(offset)
            if stream.read(len(MAGIC)) != MAGIC:
                if offset:
                    raise GgufError(f"{path} has no GGUF at byte {offset}; copy or convert it again")
                raise GgufError(f"{path} is not a GGUF file (it does not begin with GGUF)")
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _parse(path, _Reader(path, data, offset))
    except FileNotFoundError as error:
        raise GgufError(f"{path} does not exist; expected a GGUF file") from error
    except OSError as error:
        raise GgufError(f"cannot read {path}: {error.strerror or error}") from error


class _Reader:
    """A cursor over the file. Reading beyond its end raises GgufError: the file is truncated."""

    def __init__(self, path: Path, data: mmap.mmap, begin: int) -> None:
        self.path = path
        self.data = data
        self.begin = begin
        self.offset = begin + len(MAGIC)

    def scalar(self, code: str) -> Any:
        return struct.unpack_from(f"<{code}", self.data, self._advance(struct.calcsize(f"<{code}")))[0]

    def string(self) -> str:
        length = self.scalar("Q")
        start = self._advance(length)
        return self.data[start : start + length].decode("utf-8", errors="replace")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self._array()
        return self.scalar(self._code(kind))

    def _array(self) -> Any:
        kind, length = self.scalar("I"), self.scalar("Q")
        if length <= LONGEST_KEPT_ARRAY:
            return [self.value(kind) for _ in range(length)]
        if kind == _STRING:
            self._skip_strings(length)
        else:
            self._advance(length * struct.calcsize(f"<{self._code(kind)}"))
        return range(length)

    def _skip_strings(self, count: int) -> None:
        """Skip strings; fast, because a vocabulary and its merges can be half a million of them."""
        offset, data = self.offset, self.data
        length_of = struct.Struct("<Q").unpack_from
        try:
            for _ in range(count):
                offset += 8 + length_of(data, offset)[0]
        except (struct.error, OverflowError):
            offset = len(data) + 1
        self._advance(offset - self.offset)

    def _code(self, kind: int) -> str:
        if kind not in _SCALARS:
            raise GgufError(f"{self.path} is damaged: metadata of unknown type {kind} at byte {self.offset}")
        return _SCALARS[kind]

    def _advance(self, count: int) -> int:
        start = self.offset
        if start + count > len(self.data):
            raise GgufError(
                f"{self.path} is truncated: it ends inside its header, at byte {len(self.data)}; "
                "copy or convert it again"
            )
        self.offset += count
        return start


def _parse(path: Path, reader: _Reader) -> Header:
    version = reader.scalar("I")
    if version not in VERSIONS:
        big_endian = int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS
        reason = "big-endian" if big_endian else f"version {version}"
        raise GgufError(f"{path} is a GGUF file of {reason}; llama.cpp reads little-endian versions 2 and 3")
    tensor_count, entry_count = reader.scalar("Q"), reader.scalar("Q")
    metadata = {}
    for _ in range(entry_count):
        key = reader.string()
        metadata[key] = reader.value(reader.scalar("I"))
    tensors, starts, ends = {}, {}, [0]
    for _ in range(tensor_count):
        name, rank = reader.string(), reader.scalar("I")
        if rank > LARGEST_RANK:
            raise GgufError(f"{path} is damaged: tensor {name!r} has {rank} dimensions")
        shape = tuple(reader.scalar("Q") for _ in range(rank))
        kind, offset = reader.scalar("I"), reader.scalar("Q")
        tensors[name], starts[name] = (shape, kind), offset
        ends.append(offset + tensor_bytes(path, name, shape, kind))
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1:
        raise GgufError(f"{path} is damaged: its alignment is {alignment!r}")
    start = reader.begin + -(-(reader.offset - reader.begin) // alignment) * alignment
    places = {name: start + offset for name, offset in starts.items()}
    header = Header(path, version, metadata, tensors, start, start + max(ends), reader.begin, places)
    if header.data_end > len(reader.data):
        raise GgufError(
            f"{path} is truncated: its tensors need {header.data_end} bytes, the file has {len(reader.data)}; "
            "copy or convert it again"
        )
    return header


def tensor_bytes(path: Path, name: str, shape: tuple[int, ...], kind: int) -> int:
    """Bytes of a tensor of ggml type number `kind`.

    Raises:
        GgufError: the type is unknown.
    """
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    except (ValueError, KeyError) as error:
        raise GgufError(f"{path}: tensor {name!r} has the unknown type {kind}; a newer gguf may know it") from error
    return int(prod(shape) // block * size)


def _check_parts(header: Header) -> None:
    """Check that all parts of a split file exist; llama.cpp finds them by name, starting from the first."""
    count = int(header.metadata.get("split.count", 0))
    if count < 2:
        return
    path = header.path
    match = re.fullmatch(r"(.*)-(\d{5})-of-(\d{5})\.gguf", path.name)
    if match is None or int(match[3]) != count:
        raise GgufError(f"{path} is one of {count} parts; their names must end in -00001-of-{count:05}.gguf and so on")
    parts = [path.with_name(f"{match[1]}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1)]
    if path != parts[0]:
        raise GgufError(f"{path} is part {int(match[2])} of {count}; load the first one, {parts[0].name}")
    for part in parts[1:]:
        if not part.is_file():
            raise GgufError(f"{path} is split in {count} parts and {part.name} is missing beside it")
        read_header(part)
