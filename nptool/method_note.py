"""What `nptool.json` beside a checkpoint's weights says: how it was trained to decode in parallel, and what that gave.

Training and the scoring behind it write the note, `nptool convert` carries it into the GGUF, decoding reads it there.
Loads neither torch nor llama.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any, TypeGuard

from nptool.errors import CheckpointError, DataError
from nptool.files import read_json, write_json

NOTE_FILE = "nptool.json"

METHOD_KEY = "nptool.method"
"""GGUF: how the model was trained (string)."""
BLOCK_SIZE_KEY = "nptool.block_size"
"""GGUF: tokens of a training block (uint32)."""
TOKENS_PER_FORWARD_KEY = "nptool.measured.tokens_per_forward"
"""GGUF: of Jacobi decoding in blocks, on held-out prompts (float32)."""
MEASURED_BLOCK_KEY = "nptool.measured.block_size"
"""GGUF: tokens of the blocks it was measured with (uint32)."""

_EXAMPLE = '{"method": "cllm", "block_size": 16}'
_EXAMPLE_MEASURED = '{"tokens_per_forward": 3.8, "block_size": 16}'


@dataclass(frozen=True)
class Measured:
    """What Jacobi decoding of held-out prompts gave."""

    tokens_per_forward: float
    block_size: int
    """Tokens of the blocks."""


@dataclass(frozen=True)
class MethodNote:
    """One note."""

    method: str
    block_size: int
    """Tokens of the blocks that it was trained with."""
    measured: Measured | None = None

    def metadata(self) -> dict[str, str | int | float]:
        """The entries of the GGUF."""
        entries: dict[str, str | int | float] = {METHOD_KEY: self.method, BLOCK_SIZE_KEY: self.block_size}
        if self.measured is not None:
            entries[TOKENS_PER_FORWARD_KEY] = float(self.measured.tokens_per_forward)
            entries[MEASURED_BLOCK_KEY] = self.measured.block_size
        return entries


def read_note(directory: Path) -> MethodNote | None:
    """The note beside a checkpoint, or None where there is none.

    Raises:
        CheckpointError: it says something else.
    """
    path = directory / NOTE_FILE
    if not path.is_file():
        return None
    try:
        noted = read_json(path)
    except DataError as error:
        raise CheckpointError(str(error)) from error
    fields: Mapping[str, Any] = noted if isinstance(noted, dict) else {}
    method, size = fields.get("method"), fields.get("block_size")
    if not isinstance(method, str) or not _is_size(size):
        raise CheckpointError(f"{path} should read like {_EXAMPLE}; it says {noted}")
    return MethodNote(method, size, _read_measured(fields.get("measured"), path))


def write_note(directory: Path, note: MethodNote) -> None:
    """Write the note beside a checkpoint's weights."""
    values: dict[str, Any] = {"method": note.method, "block_size": note.block_size}
    if note.measured is not None:
        values["measured"] = asdict(note.measured)
    write_json(directory / NOTE_FILE, values)


def note_measured(directory: Path, measured: Measured) -> None:
    """Add to the note beside a checkpoint what its model was measured to do; nothing where there is no note.

    Raises:
        CheckpointError: the note is damaged.
    """
    note = read_note(directory)
    if note is not None:
        write_note(directory, replace(note, measured=measured))


def measured_in(metadata: Mapping[str, Any]) -> Measured | None:
    """What a GGUF's metadata says was measured; None where it says nothing that can be used."""
    return _measured(metadata.get(TOKENS_PER_FORWARD_KEY), metadata.get(MEASURED_BLOCK_KEY))


def _read_measured(value: Any, path: Path) -> Measured | None:
    if value is None:
        return None
    fields: Mapping[str, Any] = value if isinstance(value, dict) else {}
    found = _measured(fields.get("tokens_per_forward"), fields.get("block_size"))
    if found is None:
        raise CheckpointError(f'{path} should say "measured": {_EXAMPLE_MEASURED} or nothing of it; it says {value}')
    return found


def _measured(tokens: Any, size: Any) -> Measured | None:
    """None where a pass cannot bring so many tokens with blocks of `size`."""
    if not _is_size(size) or not isinstance(tokens, (int, float)) or isinstance(tokens, bool):
        return None
    return Measured(float(tokens), size) if isfinite(tokens) and 1 <= tokens <= size else None


def _is_size(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
