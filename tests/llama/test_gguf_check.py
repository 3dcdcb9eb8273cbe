"""Files that llama.cpp must not load: the error names the file and the cause."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from nptool.errors import GgufError
from nptool.llama.gguf_check import check_gguf, read_header


def write_architecture(path: Path, architecture: str, *, parts: int = 0, part: int = 0) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    if parts:
        writer.add_uint16("split.count", parts)
        writer.add_uint16("split.no", part)
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "q8_0"])
def test_header_agrees_with_ggufs_own_reader(tiny_gguf: Callable[..., Path], kind: str) -> None:
    path = tiny_gguf(kind)
    header = read_header(path)
    reference = gguf.GGUFReader(path)
    assert header.architecture == "llama"
    assert header.metadata["llama.attention.head_count_kv"] == 2
    assert len(header.metadata["tokenizer.ggml.tokens"]) == 320
    assert {name: (shape, number) for name, (shape, number) in header.tensors.items()} == {
        tensor.name: (tuple(int(size) for size in tensor.shape), int(tensor.tensor_type))
        for tensor in reference.tensors
    }
    assert header.data_start == reference.data_offset
    assert header.data_end == max(tensor.data_offset + tensor.n_bytes for tensor in reference.tensors)


def test_every_truncation_is_noticed(tiny_gguf: Callable[..., Path], tmp_path: Path) -> None:
    whole = tiny_gguf().read_bytes()
    header = read_header(tiny_gguf())
    copy = tmp_path / "cut.gguf"
    for length in (5, 17, 200, header.data_start - 40, header.data_start, header.data_end - 1):
        copy.write_bytes(whole[:length])
        with pytest.raises(GgufError, match=r"cut\.gguf is truncated"):
            check_gguf(copy)
    copy.write_bytes(whole[: header.data_end])
    assert check_gguf(copy).data_end == header.data_end


def test_what_is_no_gguf(tmp_path: Path) -> None:
    for content in (b"", b"GG", b"# a text file, not a model\n"):
        path = tmp_path / "text.gguf"
        path.write_bytes(content)
        with pytest.raises(GgufError, match=r"text\.gguf is not a GGUF file"):
            check_gguf(path)
    with pytest.raises(GgufError, match="is a directory, not a GGUF file"):
        check_gguf(tmp_path)
    with pytest.raises(GgufError, match=r"none\.gguf does not exist"):
        check_gguf(tmp_path / "none.gguf")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (struct.pack("<4sIQQ", b"GGUF", 1, 0, 0), "version 1"),
        (struct.pack(">4sIQQ", b"GGUF", 3, 0, 0), "big-endian"),
        (struct.pack("<4sIQQQ3sI", b"GGUF", 3, 0, 1, 3, b"key", 99), "unknown type 99"),
        (struct.pack("<4sIQQQ4sI", b"GGUF", 3, 1, 0, 4, b"name", 9), "'name' has 9 dimensions"),
        (struct.pack("<4sIQQQ4sIQIQ", b"GGUF", 3, 1, 0, 4, b"name", 1, 32, 999, 0), "unknown type 999"),
        (struct.pack("<4sIQQQ", b"GGUF", 3, 0, 1, 1 << 60), "ends inside its header"),
    ],
)
def test_damaged_headers(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "damaged.gguf"
    path.write_bytes(content)
    with pytest.raises(GgufError, match=message):
        check_gguf(path)


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ("mamba", "recurrent model .*rolled back"),
        ("rwkv7", "recurrent model .*rolled back"),
        ("jamba", "hybrid .*rolled back"),
        ("qwen3next", "hybrid .*rolled back"),
        ("llada", "diffusion model"),
    ],
)
def test_models_that_cannot_take_back_a_draft(tmp_path: Path, architecture: str, message: str) -> None:
    path = write_architecture(tmp_path / "model.gguf", architecture)
    with pytest.raises(GgufError, match=message):
        check_gguf(path)


def test_parts_of_a_split_file(tmp_path: Path) -> None:
    names = [tmp_path / f"model-{number:05}-of-00003.gguf" for number in (1, 2, 3)]
    for number in (0, 1):
        write_architecture(names[number], "llama", parts=3, part=number)
    with pytest.raises(GgufError, match=r"model-00003-of-00003\.gguf is missing"):
        check_gguf(names[0])
    write_architecture(names[2], "llama", parts=3, part=2)
    assert check_gguf(names[0]).metadata["split.count"] == 3
    with pytest.raises(GgufError, match=r"is part 2 of 3; load the first one, model-00001-of-00003\.gguf"):
        check_gguf(names[1])
    names[2].write_bytes(names[2].read_bytes()[:-200])
    with pytest.raises(GgufError, match=r"model-00003-of-00003\.gguf is truncated"):
        check_gguf(names[0])
    with pytest.raises(GgufError, match="is one of 3 parts; their names must end"):
        check_gguf(names[0].rename(tmp_path / "first.gguf"))
