"""Finding the heads after a model, and the errors for files that are cut or mixed up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from nptool.errors import GgufError
from nptool.heads import COUNT_KEY, INDEX_KEY, TRUNK_DIGEST_KEY, TRUNK_LAYER_KEY
from nptool.llama.gguf_check import check_gguf
from nptool.llama.gguf_parts import find_parts, require_heads

LENGTHS = [3, 8, 5, 9]
"""Values of the one tensor of each part; 3, 5 and 9 leave padding after them."""


def write_part(path: Path, length: int, architecture: str = "llama", **keys: int | str) -> bytes:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_embedding_length(8)
    writer.add_vocab_size(16)
    for key, value in keys.items():
        writer.add_string(key, value) if isinstance(value, str) else writer.add_uint32(key, value)
    writer.add_tensor("one", np.full(length, length, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def trimmed(content: bytes, length: int) -> bytes:
    """Without the padding that gguf writes after the last tensor."""
    end = content.rindex(np.full(length, length, np.float32).tobytes()) + 4 * length
    return content[:end]


def write_parts(path: Path, count: int = 4, **changes: Any) -> list[bytes]:
    """A file of a model that has `count` heads; returns the parts as written, without padding."""
    base = write_part(path, LENGTHS[0], **{COUNT_KEY: count, TRUNK_LAYER_KEY: 1, TRUNK_DIGEST_KEY: "a"})
    parts = [trimmed(base, LENGTHS[0])]
    for number in range(2, count + 1):
        length = LENGTHS[number - 1]
        keys = {INDEX_KEY: changes.get("index", number), TRUNK_DIGEST_KEY: changes.get("digest", "a")}
        parts.append(trimmed(write_part(path, length, changes.get("architecture", "llama"), **keys), length))
    path.write_bytes(b"".join(part + b"\0" * (-len(part) % 32) for part in parts[:-1]) + parts[-1])
    return parts


def test_every_part_is_found(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    written = write_parts(path)
    content = path.read_bytes()
    parts = find_parts(path)
    assert (parts.count, parts.trunk_layer, parts.lost) == (4, 1, False)
    found = [parts.base, *parts.heads]
    assert [content[part.offset : part.offset + part.size] for part in found] == written
    assert [part.header.metadata.get(INDEX_KEY) for part in found] == [None, 2, 3, 4]
    assert [part.header.tensors["one"][0] for part in found] == [(length,) for length in LENGTHS]
    assert all(part.offset % 32 == 0 for part in found)
    for part, length in zip(found, LENGTHS, strict=True):
        end = part.header.data_end
        assert content[part.header.data_start : end] == np.full(length, length, np.float32).tobytes()
    assert check_gguf(path).tensors == parts.base.header.tensors
    assert require_heads(parts) == parts.heads


def test_a_model_without_heads(tmp_path: Path) -> None:
    path = tmp_path / "plain.gguf"
    write_part(path, 3)
    parts = find_parts(path)
    assert (parts.heads, parts.count, parts.trunk_layer, parts.lost) == ((), 1, None, False)
    with pytest.raises(GgufError, match=r"plain\.gguf is a model without extra heads; train some with"):
        require_heads(parts)


def test_heads_that_a_tool_dropped(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    written = write_parts(path)
    for padding in (0, 7, -len(written[0]) % 32):
        path.write_bytes(written[0] + b"\0" * padding)
        parts = find_parts(path)
        assert (parts.heads, parts.count, parts.lost) == ((), 4, True)
        with pytest.raises(GgufError, match=r"says it has 4 heads, but nothing follows the model.*`nptool convert`"):
            require_heads(parts)


def test_every_truncation_of_the_tail_is_noticed(tmp_path: Path) -> None:
    """At every kind of place from the first byte of head 2 to the end of head 4; the model itself is whole."""
    path = tmp_path / "model.gguf"
    write_parts(path)
    content = path.read_bytes()
    first = find_parts(path).heads[0].offset
    for length in range(first + 1, len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(
            GgufError, match=r"head [234] of 4: .*model\.gguf is truncated: |gguf is truncated: .*head [234]"
        ):
            find_parts(path)
        check_gguf(path)


@pytest.mark.parametrize("changes", [{"index": 9}, {"architecture": "qwen3"}])
def test_what_is_no_head_of_this_model(changes: dict[str, Any], tmp_path: Path) -> None:
    write_parts(tmp_path / "model.gguf", 2, **changes)
    with pytest.raises(GgufError, match="is damaged: what follows the model is not head 2 of 2; convert it again"):
        find_parts(tmp_path / "model.gguf")


def test_heads_of_another_model(tmp_path: Path) -> None:
    write_parts(tmp_path / "model.gguf", 2, digest="b")
    with pytest.raises(
        GgufError, match=r"head 2 of 2 was trained on another model \(digest b\) than the one before it \(a\)"
    ):
        find_parts(tmp_path / "model.gguf")


def test_what_follows_is_no_gguf(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    written = write_parts(path)
    path.write_bytes(written[0] + b"\0" * (-len(written[0]) % 32) + b"something else, of some length")
    with pytest.raises(GgufError, match=r"head 2 of 4: .* has no GGUF at byte \d+; copy or convert it again"):
        find_parts(path)
    path.write_bytes(trimmed(write_part(path, 3, **{COUNT_KEY: 1}), 3))
    with pytest.raises(GgufError, match=r"is damaged: nptool\.heads\.count is 1 and nptool\.heads\.trunk_layer None"):
        find_parts(path)
