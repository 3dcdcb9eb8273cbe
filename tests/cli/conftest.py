"""Every test of a command runs in its own folder, with an empty standard input."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO())


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal of 200 columns, so that no table folds a line."""
    monkeypatch.setenv("COLUMNS", "200")
