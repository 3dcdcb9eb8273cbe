"""The note beside a checkpoint: written and read, measurements added, and the same in a GGUF's metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nptool.errors import CheckpointError
from nptool.method_note import Measured, MethodNote, measured_in, note_measured, read_note, write_note


def test_figures_are_added_to_a_note(tmp_path: Path) -> None:
    assert read_note(tmp_path) is None
    write_note(tmp_path, MethodNote("cllm", 16))
    assert json.loads((tmp_path / "nptool.json").read_text()) == {"method": "cllm", "block_size": 16}
    note_measured(tmp_path, Measured(3.75, 8))
    assert read_note(tmp_path) == MethodNote("cllm", 16, Measured(3.75, 8))
    note_measured(tmp_path, Measured(4.0, 8))
    assert read_note(tmp_path) == MethodNote("cllm", 16, Measured(4.0, 8))


def test_without_a_note_there_is_nothing_to_add_to(tmp_path: Path) -> None:
    note_measured(tmp_path, Measured(3.75, 8))
    assert list(tmp_path.iterdir()) == []


def test_metadata_has_the_same_as_the_note() -> None:
    note = MethodNote("cllm", 16, Measured(3.75, 8))
    assert measured_in(note.metadata()) == note.measured
    assert measured_in(MethodNote("cllm", 16).metadata()) is None
    assert len(MethodNote("cllm", 16).metadata()) == 2


@pytest.mark.parametrize("tokens", ["3", None, True, 0.5, 9.0, float("nan"), float("inf")])
def test_figures_that_cannot_be_are_none(tokens: Any) -> None:
    metadata = MethodNote("cllm", 16, Measured(3.75, 8)).metadata()
    assert measured_in({**metadata, "nptool.measured.tokens_per_forward": tokens}) is None


@pytest.mark.parametrize(
    "text", ["[]", "{", '{"method": 1, "block_size": 4}', '{"method": "cllm", "block_size": true}']
)
def test_a_damaged_note(tmp_path: Path, text: str) -> None:
    (tmp_path / "nptool.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"nptool\.json (should read like|is not valid JSON)"):
        read_note(tmp_path)
