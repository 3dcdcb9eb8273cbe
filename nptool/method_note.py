"""`nptool.json` beside a checkpoint's weights: how the model was trained for parallel decoding, and its measured gain.

Training writes the note, `nptool convert` copies it into the GGUF, and decoding reads it there. Loads neither torch nor
llama.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any, TypeGuard

from nptool.errors import CheckpointError
from nptool.files import read_json, write_json

NOTE_FILE = "nptool.json"

METHOD_KEY = "nptool.method"
"""GGUF: `MethodNote.method` (string)."""
BLOCK_SIZE_KEY = "nptool.block_size"
"""GGUF: `MethodNote.block_size` (uint32)."""
TOKENS_PER_FORWARD_KEY = "nptool.measured.tokens_per_forward"
"""GGUF: `Measured.tokens_per_forward` (float32)."""
MEASURED_BLOCK_KEY = "nptool.measured.block_size"
"""GGUF: `Measured.block_size` (uint32)."""


@dataclass(frozen=True)
class Measured:
    """Gain of Jacobi decoding in blocks on held-out prompts."""

    tokens_per_forward: float
    block_size: int
    """Tokens of a block in this measurement."""


@dataclass(frozen=True)
class MethodNote:
    method: str
    block_size: int
    """Tokens of a training block."""
    measured: Measured | None = None

    def metadata(self) -> dict[str, str | int | float]:
        """The note as GGUF metadata."""
        entries: dict[str, str | int | float] = {METHOD_KEY: self.method, BLOCK_SIZE_KEY: self.block_size}
        if self.measured is not None:
            entries[TOKENS_PER_FORWARD_KEY] = float(self.measured.tokens_per_forward)
            entries[MEASURED_BLOCK_KEY] = self.measured.block_size
        return entries


def read_note(directory: Path) -> MethodNote | None:
    """The note of a checkpoint, or None if it has none.

    Raises:
        CheckpointError: the note is damaged.
    """
    path = directory / NOTE_FILE
    if not path.is_file():
        return None
    noted = read_json(path, CheckpointError)
    fields: Mapping[str, Any] = noted if isinstance(noted, dict) else {}
    method, size, figures = (fields.get(name) for name in ("method", "block_size", "measured"))
    if not isinstance(method, str) or not _is_size(size):
        raise CheckpointError(f'{path} should read like {{"method": "cllm", "block_size": 16}}; it says {noted}')
    if figures is None:
        return MethodNote(method, size)
    measured = _measured(figures, "tokens_per_forward", "block_size") if isinstance(figures, dict) else None
    if measured is None:
        example = '"measured": {"tokens_per_forward": 3.8, "block_size": 16}'
        raise CheckpointError(f"{path} should say {example} or nothing of it; it says {figures}")
    return MethodNote(method, size, measured)


def write_note(directory: Path, note: MethodNote) -> None:
    values = asdict(note)
    if note.measured is None:
        del values["measured"]
    write_json(directory / NOTE_FILE, values)


def note_measured(directory: Path, measured: Measured) -> None:
    """Add a measurement to a checkpoint's note, if there is a note.

    Raises:
        CheckpointError: the note is damaged.
    """
    note = read_note(directory)
    if note is not None:
        write_note(directory, replace(note, measured=measured))


def measured_in(metadata: Mapping[str, Any]) -> Measured | None:
    """The measurement in a GGUF's metadata; None if there is none, or its values are impossible."""
    return _measured(metadata, TOKENS_PER_FORWARD_KEY, MEASURED_BLOCK_KEY)


def _measured(values: Mapping[str, Any], tokens_key: str, size_key: str) -> Measured | None:
    """None unless one pass over a block of that size can give that many tokens."""
    tokens, size = values.get(tokens_key), values.get(size_key)
    if not _is_size(size) or not isinstance(tokens, (int, float)) or isinstance(tokens, bool):
        return None
    return Measured(float(tokens), size) if isfinite(tokens) and 1 <= tokens <= size else None


def _is_size(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
