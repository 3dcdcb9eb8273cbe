"""Find the parts of a GGUF file with extra heads.

The model's own GGUF comes first, so that any runtime loads the file as the plain model; its metadata has the number of
heads. Each separate head is a complete GGUF after it; of shared heads one with their layer, and one with the tensors
that tell the depths apart: e (D, K), a (D, R, K) and b (R, D, K), the length of a row first, in F32. A NextN block is
a layer of the model itself. Imports neither llama_cpp nor torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nptool.errors import GgufError
from nptool.heads import (
    COUNT_KEY,
    INDEX_KEY,
    KIND_KEY,
    NEXTN,
    SEPARATE,
    SHARED,
    TRUNK_DIGEST_KEY,
    TRUNK_LAYER_KEY,
)
from nptool.llama.gguf_check import MAGIC, Header, read_header

PART_ALIGNMENT = 32
"""A part begins at the next multiple of this many bytes after the previous one."""


@dataclass(frozen=True)
class Part:
    """One complete GGUF inside the file."""

    offset: int
    """First byte in the file."""
    size: int
    """Bytes to the end of the last tensor, without padding."""
    header: Header


@dataclass(frozen=True)
class Parts:
    """A file's model and heads."""

    base: Part
    heads: tuple[Part, ...]
    """Heads 2..n in this order, or the layer that they share; empty if the file has none, or a NextN block, which is
    inside the model."""
    count: int
    """n according to the model's metadata: number of heads, its own included; 1 without extra heads."""
    trunk_layer: int | None
    """Layer of the model whose input the heads read; None without extra heads, and for a NextN block."""
    depths: Part | None = None
    """What tells the depths of shared heads apart."""

    @property
    def kind(self) -> str:
        """Kind of the heads."""
        return str(self.base.header.metadata.get(KIND_KEY, SEPARATE))

    @property
    def usable(self) -> bool:
        """Whether there are extra heads."""
        return self.count > 1 and not self.lost

    @property
    def lost(self) -> bool:
        """Whether a tool that rewrote the file has dropped its heads."""
        return self.count > 1 and not self.heads and self.kind != NEXTN


def find_parts(source: str | Path | Header) -> Parts:
    """Find the model and the heads after it.

    Heads that are completely missing are not an error, since the model still works: see `Parts.lost` and
    `require_heads`.

    Args:
        source: the file, or the header of its model if it is known.

    Raises:
        GgufError: missing, not a GGUF, truncated in the model or in a head, or the heads belong to another model.
    """
    header = source if isinstance(source, Header) else read_header(source)
    base, path = _part(header), header.path
    count, trunk = base.header.metadata.get(COUNT_KEY), base.header.metadata.get(TRUNK_LAYER_KEY)
    if count is None:
        return Parts(base, (), 1, None)
    if not (isinstance(count, int) and count > 1 and isinstance(trunk, int)):
        raise GgufError(
            f"{path} is damaged: {COUNT_KEY} is {count!r} and {TRUNK_LAYER_KEY} {trunk!r}; convert it again"
        )
    kind = base.header.metadata.get(KIND_KEY, SEPARATE)
    if kind == NEXTN:
        return Parts(base, (), count, None)
    if kind not in (SEPARATE, SHARED):
        raise GgufError(f"{path} has heads of the kind {kind!r}, which this nptool does not know; use a newer one")
    with path.open("rb") as stream:
        stream.seek(header.data_end)
        # Anything but padding.
        followed = bool(stream.read(PART_ALIGNMENT + len(MAGIC)).strip(b"\0"))
    names = [f"head {number} of {count}" for number in range(2, count + 1)]
    if kind == SHARED:
        names = ["the layer of its heads", "the depths of its heads"]
    found: list[Part] = []
    for number, name in enumerate(names if followed else (), start=2):
        found.append(_head(header, found[-1] if found else base, number, name))
    shared = kind == SHARED and followed
    return Parts(base, tuple(found[:1] if shared else found), count, trunk, found[1] if shared else None)


def require_heads(parts: Parts) -> tuple[Part, ...]:
    """Heads 2..n, or the layer that they share.

    Raises:
        GgufError: the file has no extra heads, or has lost them.
    """
    path = parts.base.header.path
    if parts.count < 2:
        raise GgufError(
            f"{path} is a model without extra heads; train some with `nptool train heads`, then `nptool convert`"
        )
    if parts.lost:
        raise GgufError(f"{path} {lost_heads(parts)}")
    return parts.heads


def lost_heads(parts: Parts) -> str:
    """The end of a message about a file that has lost its heads."""
    return (
        f"says it has {parts.count} heads, but nothing follows the model: a tool that rewrote the file dropped them; "
        "get them back with `nptool convert` from the checkpoint's directory (nptool quantize keeps them)"
    )


def _part(header: Header) -> Part:
    return Part(header.offset, header.data_end - header.offset, header)


def _head(base: Header, before: Part, number: int, name: str) -> Part:
    path, offset = base.path, part_start(before.header.data_end)
    if path.stat().st_size < offset + len(MAGIC):
        raise GgufError(f"{path} is truncated: it ends before {name}, which its model has; copy or convert it again")
    try:
        header = read_header(path, offset)
    except GgufError as error:
        raise GgufError(f"{name}: {error}") from error
    index = header.metadata.get(INDEX_KEY)
    if index != number or header.architecture != base.architecture or _sizes(header) != _sizes(base):
        raise GgufError(f"{path} is damaged: what follows the model is not {name}; convert it again")
    own, theirs = (part.metadata.get(TRUNK_DIGEST_KEY) for part in (base, header))
    if own != theirs:
        raise GgufError(
            f"{path}: {name} was trained on another model (digest {theirs}) than the one before it ({own}); convert "
            "the checkpoint that has both"
        )
    return _part(header)


def part_start(end: int) -> int:
    """First byte of the part after one that ends at byte `end`."""
    return -(-end // PART_ALIGNMENT) * PART_ALIGNMENT


def _sizes(header: Header) -> list[object]:
    """Hidden size and vocabulary size, the same for a model and its heads."""
    return [header.metadata.get(f"{header.architecture}.{key}") for key in ("embedding_length", "vocab_size")]
