"""Records and pieces of texts, split into training and held-out parts before tokenization.

A unit (a record, a file, or a piece of a file if there are few) is held out if the hash of its text is below the
held-out share. So a unit stays on its side when data is added, and two copies are on the same side. Records are hashed
by their prompt, so no prompt is on both sides.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from nptool.data.record import Record
from nptool.data.rendering import split_turns
from nptool.errors import DataError
from nptool.files import atomic_file

Item = TypeVar("Item")

# Fewer texts than this are cut into pieces, so that a share can be held out.
FEW_TEXTS = 40
PIECE_CHARS = 4000
# Prompts cut from held-out text for `nptool bench`.
PROMPT_CHARS = 400
RESPONSE_CHARS = 800
MOST_PROMPTS = 256


@dataclass(frozen=True)
class Unit:
    """A record, or a piece of a text."""

    record: Record
    opens: bool = True
    """Whether it begins its text."""
    closes: bool = True
    """Whether it ends its text."""


def cut_texts(records: Sequence[Record]) -> list[Unit]:
    """Records as units. If there are few texts, they are cut at line ends into pieces of about `PIECE_CHARS`."""
    texts = sum(record.text is not None for record in records)
    units: list[Unit] = []
    for record in records:
        if record.text is None or texts >= FEW_TEXTS:
            units.append(Unit(record))
            continue
        pieces = list(_pieces(record.text, PIECE_CHARS))
        last = len(pieces) - 1
        units += [
            Unit(Record(text=piece, source=record.source), opens=index == 0, closes=index == last)
            for index, piece in enumerate(pieces)
        ]
    return units


def split_units(units: Sequence[Unit], share: float, name: str = "--data") -> tuple[list[Unit], list[Unit]]:
    """Training and held-out units (see `split_by_hash`)."""
    return split_by_hash(units, [_key(unit) for unit in units], share, name)


def split_by_hash(
    items: Sequence[Item], keys: Sequence[bytes], share: float, name: str = "--data"
) -> tuple[list[Item], list[Item]]:
    """Training and held-out items.

    An item is held out if the hash of its key, a number in [0, 1), is below `share`. If none is, those with the
    smallest hash are.

    Args:
        name: of the data, for the message.

    Raises:
        DataError: all items would be held out.
    """
    if not share:
        return list(items), []
    hashes = [int.from_bytes(blake2b(key, digest_size=8).digest()) / 2**64 for key in keys]
    border = share if min(hashes) < share else math.nextafter(min(hashes), 1)
    train = [item for item, place in zip(items, hashes, strict=True) if place >= border]
    if not train:
        raise DataError(
            f"{name} holds {len(items)} record{'s' * (len(items) != 1)}, too few to hold out {share:.0%} of them; "
            "give more data, or --heldout 0"
        )
    return train, [item for item, place in zip(items, hashes, strict=True) if place < border]


def unit_texts(unit: Unit) -> Iterator[str]:
    """The texts of a unit that a tokenizer is trained on."""
    record = unit.record
    if record.text is not None:
        yield record.text
        return
    prompt, response = split_turns(record)
    yield from (message.content for message in prompt)
    if response is not None:
        yield response


def write_heldout(units: Sequence[Unit], path: Path) -> None:
    """Write held-out units as JSONL: all records, and at most `MOST_PROMPTS` prompts cut from texts."""
    with atomic_file(path, "w") as stream:
        for line in _heldout_lines(units):
            stream.write(json.dumps(line, ensure_ascii=False) + "\n")


def _heldout_lines(units: Sequence[Unit]) -> Iterator[dict[str, Any]]:
    for unit in units:
        record = unit.record
        if record.messages is not None:
            yield {"messages": [{"role": turn.role, "content": turn.content} for turn in record.messages]}
        elif record.text is None:
            yield {"prompt": record.prompt, "response": record.response}
    texts = (unit.record.text for unit in units if unit.record.text is not None)
    yield from islice((line for text in texts for line in _prompts(text)), MOST_PROMPTS)


def _prompts(text: str) -> Iterator[dict[str, str]]:
    """Prompt and continuation of each piece of a text that has both; the continuation begins with the white space."""
    for piece in _pieces(text, PROMPT_CHARS + RESPONSE_CHARS):
        parts = list(_pieces(piece, PROMPT_CHARS))
        prompt = parts[0].rstrip()
        if len(parts) > 1 and prompt:
            yield {"prompt": prompt, "response": piece[len(prompt) :]}


def _pieces(text: str, size: int) -> Iterator[str]:
    """Cut a text at line ends into pieces of at most `size` characters; longer lines are cut too."""
    start = 0
    while start < len(text):
        end = start + size
        if end < len(text):
            newline = text.rfind("\n", start, end)
            end = newline + 1 if newline >= start else end
        yield text[start:end]
        start = end


def _key(unit: Unit) -> bytes:
    """The text, or the prompt of a record that has one."""
    if unit.record.text is not None:
        return unit.record.text.encode()
    prompt, _ = split_turns(unit.record)
    return "\0".join(message.content for message in prompt).encode()
