"""`nptool quantize` and `nptool inspect`: model and heads, their types, what is kept and what is an error."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from nptool.cli.app import run
from nptool.convert.conversion import convert
from nptool.heads import ACCURACY_KEY
from nptool.llama.context import Context
from nptool.llama.gguf_check import read_header
from nptool.llama.gguf_parts import Part, find_parts
from nptool.llama.model import Model


@pytest.fixture(scope="module")
def converted(
    make_checkpoint: Callable[..., Path], add_heads: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A model with three heads in f32; rows divide into blocks of 256."""
    directory = make_checkpoint(hidden_size=256, intermediate_size=256, head_dim=64)
    add_heads(directory, 3, ((0.5, 0.25), (0.25, 0.125)))
    return convert(
        directory, tmp_path_factory.mktemp("gguf") / "model.gguf", type_name="f32", heads_type_name="f32"
    ).path


def types(part: Part) -> set[str]:
    kinds = {gguf.GGMLQuantizationType(kind).name for _, kind in part.header.tensors.values()}
    return kinds - {"F32"}


def output(words: list[str], capsys: pytest.CaptureFixture[str]) -> Any:
    capsys.readouterr()
    assert run(words, debug=False) == 0
    return json.loads(capsys.readouterr().out)


def refusal(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert run(words, debug=False) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("nptool: error: ")


@pytest.mark.parametrize(
    ("type_name", "heads_type", "model_kinds", "head_kinds"),
    [
        ("f16", None, {"F16"}, {"Q8_0"}),
        ("f16", "f16", {"F16"}, {"F16"}),
        ("q8_0", None, {"Q8_0"}, {"Q8_0"}),
        ("q4_k_m", None, {"Q4_K", "Q6_K"}, {"Q8_0"}),
        ("q4_0", "q6_k", {"Q4_0", "Q6_K"}, {"Q6_K"}),
        ("q8_0", "f32", {"Q8_0"}, set()),
    ],
)
def test_types(
    type_name: str,
    heads_type: str | None,
    model_kinds: set[str],
    head_kinds: set[str],
    converted: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    target = tmp_path / "out.gguf"
    chosen = ["--heads-type", heads_type] if heads_type else []
    done = output(["quantize", str(converted), str(target), type_name, *chosen, "--json"], capsys)
    parts, before = find_parts(target), find_parts(converted)
    assert types(parts.base) <= model_kinds
    assert types(parts.base)
    assert [types(part) for part in parts.heads] == [head_kinds, head_kinds]
    assert parts.base.header.metadata[ACCURACY_KEY] == before.base.header.metadata[ACCURACY_KEY]
    assert (done["heads"], done["bytes"], done["source_bytes"]) == (
        2,
        target.stat().st_size,
        converted.stat().st_size,
    )
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"]
    for part, old in zip(parts.heads, before.heads, strict=True):
        assert set(part.header.tensors) == set(old.header.tensors)
        with Model.load_part(part.header) as head:
            assert head.vocabulary_size == 512


def test_heads_give_what_convert_gives(
    converted: Path, make_checkpoint: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """llama.cpp's quantizer and nptool give the same F16, byte for byte in every head."""
    output(["quantize", str(converted), str(tmp_path / "f16.gguf"), "f16", "--heads-type", "f16", "--json"], capsys)
    found = find_parts(tmp_path / "f16.gguf")
    for part, old in zip(found.heads, find_parts(converted).heads, strict=True):
        exact, rounded = (tensor_values(one, "blk.0.ffn_up.weight") for one in (old, part))
        assert np.array_equal(exact.view(np.float32).astype(np.float16), rounded.view(np.float16))


def tensor_values(part: Part, name: str) -> np.ndarray[Any, Any]:
    """A tensor's bytes, read by gguf from the part alone."""
    alone = part.header.path.with_suffix(".part")
    alone.write_bytes(part.header.path.read_bytes()[part.offset : part.offset + part.size])
    tensor = next(tensor for tensor in gguf.GGUFReader(alone).tensors if tensor.name == name)
    alone.unlink()
    return np.array(tensor.data).view(np.uint8)


def test_a_model_without_heads(
    make_checkpoint: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = convert(make_checkpoint(), tmp_path / "plain.gguf").path
    done = output(["quantize", str(source), str(tmp_path / "q8.gguf"), "q8_0", "--json"], capsys)
    assert (done["heads"], done["heads_type"], done["remarks"]) == (0, None, [])
    ids = np.arange(20, dtype=np.int32)
    rows = []
    for path in (source, tmp_path / "q8.gguf"):
        with Model.load(path) as model, Context(model, 64) as context:
            rows.append(context.evaluate(ids, 0).copy())
    assert 0 < np.abs(rows[0] - rows[1]).max() < 2 * rows[0].std()


def test_quantized_heads_stay_as_they_are(
    make_checkpoint: Callable[..., Path],
    add_heads: Callable[..., Path],
    converted: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    mixed, out = tmp_path / "mixed.gguf", tmp_path / "out.gguf"
    output(["quantize", str(converted), str(mixed), "f32", "--heads-type", "q8_0", "--json"], capsys)
    done = output(["quantize", str(mixed), str(out), "f16", "--json"], capsys)
    assert done["heads_type"] == "q8_0"
    in_place = output(["quantize", str(out), str(out), "f16", "--json"], capsys)
    assert in_place["source_bytes"] == in_place["bytes"] == out.stat().st_size
    parts = [find_parts(path).heads for path in (mixed, out)]
    contents = [
        [part.header.path.read_bytes()[part.offset : part.offset + part.size] for part in heads] for heads in parts
    ]
    assert contents[0] == contents[1]
    assert refusal(["quantize", str(mixed), str(out), "f16", "--heads-type", "q6_k"], capsys) == (
        f"the heads of {mixed} are already Q8_0 and would lose twice by becoming q6_k; omit --heads-type, or "
        "convert the checkpoint again with --heads-type f32 and quantize that file"
    )


def test_what_is_refused(converted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small, out = tmp_path / "small.gguf", tmp_path / "out.gguf"
    output(["quantize", str(converted), str(small), "q4_0", "--json"], capsys)
    assert refusal(["quantize", str(small), str(out), "q8_0"], capsys) == (
        f"{small} is already quantized (Q4_0) and would lose twice by becoming q8_0; quantize an f32, f16 or bf16 "
        "file, or convert the checkpoint again with --type"
    )
    assert refusal(["quantize", str(converted), str(out), "q9"], capsys).startswith("--type q9 is not known; ")
    assert refusal(["quantize", str(tmp_path / "none.gguf"), str(out), "q8_0"], capsys) == (
        f"{tmp_path / 'none.gguf'} does not exist; expected a GGUF file"
    )
    assert not out.exists()


def test_inspect(converted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = output(["inspect", str(converted), "--json"], capsys)
    reader = gguf.GGUFReader(converted)
    assert (summary["heads"], summary["trunk_layer"]) == (3, 1)
    assert summary["accuracy"] == [[0.5, 0.25], [0.25, 0.125]]
    assert [part["part"] for part in summary["parts"]] == ["model", "head 2", "head 3"]
    assert [part["layers"] for part in summary["parts"]] == [2, 1, 1]
    assert {
        tensor["name"]: (tensor["shape"], tensor["type"], tensor["bytes"]) for tensor in summary["parts"][0]["tensors"]
    } == {
        tensor.name: ([int(size) for size in tensor.shape], tensor.tensor_type.name, tensor.n_bytes)
        for tensor in reader.tensors
    }
    for part in summary["parts"]:
        assert part["parameters"] == sum(int(np.prod(tensor["shape"])) for tensor in part["tensors"])
        assert part["offset"] + part["bytes"] <= summary["bytes"] == converted.stat().st_size
    assert run(["inspect", str(converted)], debug=False) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith(", 3 heads on the input of layer 1")
    assert lines[2].startswith(f"head 2: byte {summary['parts'][1]['offset']}, ")
    assert lines[2].endswith("architecture llama, 1 layer, 0.5M parameters (100.0% F32)")
    assert lines[4] == "head 2 held out: top-1 50.0%, top-2 75.0%"
    assert sum(line.startswith("  token_embd.weight ") for line in lines) == 3


def test_inspect_and_quantize_when_the_tail_is_gone(
    converted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """llama.cpp's quantizer, like any tool that rewrites the file, drops the heads."""
    from nptool.convert.file_types import FILE_TYPES
    from nptool.convert.quantize import quantize_gguf
    from nptool.progress import silent

    path = tmp_path / "model.gguf"
    quantize_gguf(converted, path, FILE_TYPES["f16"], silent)
    assert read_header(path).metadata["nptool.heads.count"] == 3
    remark = (
        f"{path} says it has 3 heads, but nothing follows the model: a tool that rewrote the file dropped them; get "
        "them back with `nptool convert` from the checkpoint's directory (nptool quantize keeps them)"
    )
    summary = output(["inspect", str(path), "--json"], capsys)
    assert (summary["remarks"], len(summary["parts"]), summary["heads"]) == ([remark], 1, 3)
    assert run(["inspect", str(path)], debug=False) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"note: {remark}"
    done = output(["quantize", str(path), str(tmp_path / "q8.gguf"), "q8_0", "--json"], capsys)
    assert (done["remarks"], done["heads"]) == ([remark], 0)
    with Model.load(path) as model, Context(model, 64) as context:
        assert np.isfinite(context.evaluate(np.arange(8, dtype=np.int32), 0)).all()


def test_inspect_a_model_that_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert refusal(["inspect", str(tmp_path / "none.gguf")], capsys).startswith(
        f"{tmp_path / 'none.gguf'} does not exist"
    )
