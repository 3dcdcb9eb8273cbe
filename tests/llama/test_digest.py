"""What tells one model's file from another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nptool.llama.digest import file_digest
from nptool.llama.gguf_check import read_header


def test_a_digest_tells_files_apart(tiny_gguf: Callable[..., Path], tmp_path: Path) -> None:
    one, other = tiny_gguf("f16"), tiny_gguf("f16", seed=1)
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(one.read_bytes())
    assert file_digest(read_header(one)) == file_digest(read_header(copy))
    assert file_digest(read_header(one)) != file_digest(read_header(other))
