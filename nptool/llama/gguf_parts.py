"""The parts of a GGUF file that has heads behind its model: where each begins, how long it is, what it says.

The model's own GGUF comes first and says how many heads there are; each head is a complete GGUF behind it, so that any
runtime loads the file as the plain model. Found from the file alone. Knows neither llama.cpp nor torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nptool.errors import GgufError
from nptool.heads import ACCURACY_KEY, ACCURACY_RANKS_KEY, COUNT_KEY, INDEX_KEY, TRUNK_DIGEST_KEY, TRUNK_LAYER_KEY
from nptool.llama.gguf_check import MAGIC, Header, read_header

PART_ALIGNMENT = 32
"""A part begins at the next multiple of this many bytes behind the one before."""


@dataclass(frozen=True)
class Part:
    """One complete GGUF inside the file."""

    offset: int
    """Its first byte in the file: where a `FILE *` must stand to load it."""
    size: int
    """Bytes up to the end of its last tensor, without padding."""
    header: Header


@dataclass(frozen=True)
class Parts:
    """A file's model and heads."""

    base: Part
    heads: tuple[Part, ...]
    """Heads 2..n in this order: `heads[0]` drafts the second token ahead. Empty where there are none, or are none
    any more."""
    count: int
    """n, as the model says: heads in all, its own included; 1 where it says nothing of heads."""
    trunk_layer: int | None
    """Layer of the model whose input the heads read; None where it says nothing of heads."""

    @property
    def shares(self) -> tuple[tuple[float, ...], ...] | None:
        """For heads 2..n, how often the first, second, ... choice was right on held-out text, where the file says."""
        metadata = self.base.header.metadata
        values, ranks = metadata.get(ACCURACY_KEY), metadata.get(ACCURACY_RANKS_KEY)
        if not isinstance(values, list) or not isinstance(ranks, int) or len(values) != ranks * (self.count - 1):
            return None
        return tuple(tuple(values[row : row + ranks]) for row in range(0, len(values), ranks))

    @property
    def lost(self) -> bool:
        """Whether the model speaks of heads that are not behind it: a tool that rewrote the file dropped them."""
        return self.count > 1 and not self.heads


def find_parts(path: str | Path) -> Parts:
    """Find the model and the heads behind it.

    Heads that are wholly gone are no error, since the model still works: see `Parts.lost` and `require_heads`.

    Raises:
        GgufError: missing, no GGUF, truncated in the model or in a head, or the heads are not this model's.
    """
    path = Path(path)
    base = _part(read_header(path))
    count, trunk = base.header.metadata.get(COUNT_KEY), base.header.metadata.get(TRUNK_LAYER_KEY)
    if count is None:
        return Parts(base, (), 1, None)
    if not (isinstance(count, int) and count > 1 and isinstance(trunk, int)):
        raise GgufError(
            f"{path} is damaged: {COUNT_KEY} is {count!r} and {TRUNK_LAYER_KEY} {trunk!r}; convert it again"
        )
    heads: list[Part] = []
    if _any_behind(path, base):
        for number in range(2, count + 1):
            heads.append(_head(path, base.header, heads[-1] if heads else base, number, count))
    return Parts(base, tuple(heads), count, trunk)


def require_heads(parts: Parts, wanted: int | None = None) -> tuple[Part, ...]:
    """Heads 2..wanted, or all.

    Args:
        wanted: n, heads in all with the model's own; None is as many as there are.

    Raises:
        GgufError: the file never had any, has lost them, or has fewer.
    """
    path = parts.base.header.path
    if parts.count < 2:
        raise GgufError(
            f"{path} is a model without extra heads; train some with `nptool train heads`, then `nptool convert`"
        )
    if parts.lost:
        raise GgufError(f"{path} {lost_heads(parts)}")
    if wanted is not None and wanted > parts.count:
        raise GgufError(f"{path} has {parts.count} heads, {wanted} are asked for; train more, or ask for fewer")
    return parts.heads if wanted is None else parts.heads[: wanted - 1]


def lost_heads(parts: Parts) -> str:
    """What happened to heads that are gone, and how to get them back."""
    return (
        f"says it has {parts.count} heads, but nothing is behind the model: a tool that rewrote the file dropped them; "
        "get them back with `nptool convert` from the checkpoint's directory (nptool quantize keeps them)"
    )


def _part(header: Header) -> Part:
    return Part(header.offset, header.data_end - header.offset, header)


def _any_behind(path: Path, base: Part) -> bool:
    """Whether anything but padding follows the model."""
    with path.open("rb") as stream:
        stream.seek(base.header.data_end)
        return bool(stream.read(PART_ALIGNMENT + len(MAGIC)).strip(b"\0"))


def _head(path: Path, base: Header, before: Part, number: int, count: int) -> Part:
    offset = part_start(before.header.data_end)
    if path.stat().st_size < offset + len(MAGIC):
        raise GgufError(
            f"{path} is truncated: the model has {count} heads and the file ends before head {number}; "
            "copy or convert it again"
        )
    try:
        header = read_header(path, offset)
    except GgufError as error:
        raise GgufError(f"head {number} of {count}: {error}") from error
    index = header.metadata.get(INDEX_KEY)
    if index != number or header.architecture != base.architecture or _sizes(header) != _sizes(base):
        raise GgufError(f"{path} is damaged: what follows is not head {number} of this model; convert it again")
    own, theirs = (part.metadata.get(TRUNK_DIGEST_KEY) for part in (base, header))
    if own != theirs:
        raise GgufError(
            f"{path}: head {number} was trained on another model (digest {theirs}) than the one before it ({own}); "
            "convert the checkpoint that has both"
        )
    return _part(header)


def part_start(end: int) -> int:
    """Where a part begins when the one before ends at byte `end`."""
    return -(-end // PART_ALIGNMENT) * PART_ALIGNMENT


def _sizes(header: Header) -> list[object]:
    """Hidden size and vocabulary, which a head shares with its model."""
    return [header.metadata.get(f"{header.architecture}.{key}") for key in ("embedding_length", "vocab_size")]
