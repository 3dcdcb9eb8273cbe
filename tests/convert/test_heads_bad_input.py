"""Heads that do not fit, are damaged or are missing: one line, exit code 2, no file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import nptool.convert.tensors as tensors
from nptool.cli.app import run
from nptool.convert.conversion import convert
from nptool.errors import GgufError
from nptool.heads import HEADS_FILE, HEADS_WEIGHTS
from nptool.llama.gguf_parts import find_parts


@pytest.fixture
def checkpoint(make_checkpoint: Callable[..., Path], add_heads: Callable[..., Path]) -> Path:
    return add_heads(make_checkpoint(), 3)


def refusal(directory: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What the command says; nothing is written."""
    out = directory.parent / "out" / "model.gguf"
    capsys.readouterr()
    assert run(["convert", str(directory), "-o", str(out), "--no-verify"], debug=False) == 2
    assert not out.parent.exists() or not list(out.parent.iterdir())
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("nptool: error: ")
    return line.removeprefix("nptool: error: ").replace(str(directory), "DIR")


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(path: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


PLAIN = "remove heads.json and heads.safetensors to have the plain model, which new heads can be trained on"
INFO_CASES: dict[str, tuple[dict[str, Any], str]] = {
    "another trunk": (
        {"trunk_digest": "0" * 16},
        "the heads in DIR were trained on another trunk (digest 0000000000000000, the model beside them has ",
    ),
    "hidden size": (
        {"hidden_size": 128},
        "DIR: heads.json has hidden_size = 128, the model beside it 64; the heads belong to another model: put back "
        "that one, or train the heads again with `nptool train heads`",
    ),
    "vocabulary": ({"vocab_size": 500}, "DIR: heads.json has vocab_size = 500, the model beside it 512; "),
    "architecture": ({"model_type": "qwen3"}, "DIR: heads.json has model_type = qwen3, the model beside it llama; "),
    "trunk layer": ({"trunk_layer": 0}, "DIR: heads.json has trunk_layer = 0, the model beside it 1; "),
    "one head": ({"count": 1}, "DIR: heads.json says 1 heads; expected 2 or more; "),
    "more heads than trained": (
        {"count": 4},
        "DIR/heads.safetensors lacks heads.4.input_layernorm.weight, heads.4.self_attn.q_proj.weight, "
        "heads.4.self_attn.k_proj.weight, heads.4.self_attn.v_proj.weight and 5 more, which "
        "LlamaForCausalLM with 4 separate heads has; train the heads again with `nptool train heads`",
    ),
    "fewer heads than trained": (
        {"count": 2},
        "DIR/heads.safetensors has heads.3.input_layernorm.weight, ",
    ),
    "accuracies": (
        {"accuracy": [[0.5]]},
        "DIR: heads.json says 3 heads and has 1 rows of accuracies; expected a row of equal length for each head "
        "but the first; ",
    ),
    "a number in quotes": ({"count": "3"}, f"DIR/heads.json is damaged: count is '3'; {PLAIN}"),
    "no whole number": ({"trunk_layer": 1.0}, f"DIR/heads.json is damaged: trunk_layer is 1.0; {PLAIN}"),
    "no rows": ({"accuracy": [0.5, 0.5]}, f"DIR/heads.json is damaged: accuracy is [0.5, 0.5]; {PLAIN}"),
    "no shares": ({"accuracy": [["a"], ["b"]]}, f"DIR/heads.json is damaged: accuracy is [['a'], ['b']]; {PLAIN}"),
    "a later format": (
        {"format": 3},
        "DIR/heads.json has format 3 and kind 'separate', this nptool knows format 2 with ",
    ),
    "another kind": (
        {"kind": "forked"},
        "DIR/heads.json has format 2 and kind 'forked', this nptool knows format 2 with ",
    ),
}


@pytest.mark.parametrize("case", INFO_CASES)
def test_descriptions(case: str, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes, message = INFO_CASES[case]
    edit(checkpoint / HEADS_FILE, **changes)
    assert refusal(checkpoint, capsys).startswith(message)


def test_weights_that_are_missing(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (checkpoint / HEADS_WEIGHTS).unlink()
    assert refusal(checkpoint, capsys) == (
        "DIR/heads.json describes 3 heads, but heads.safetensors beside it is missing; copy it there, or remove "
        "heads.json to have the plain model"
    )


def test_a_description_that_is_missing(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (checkpoint / HEADS_FILE).unlink()
    assert refusal(checkpoint, capsys) == (
        "DIR has heads.safetensors, but heads.json, which describes it, is missing; copy it there, or remove "
        "heads.safetensors to have the plain model"
    )


@pytest.mark.parametrize("content", ["{", "[1]"])
def test_a_description_that_is_no_object(content: str, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (checkpoint / HEADS_FILE).write_text(content)
    line = refusal(checkpoint, capsys)
    assert line.startswith("DIR/heads.json is ")
    assert line.endswith(f"; {PLAIN}")


def test_heads_behind_another_model(
    checkpoint: Path,
    make_checkpoint: Callable[..., Path],
    add_heads: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of the same sizes, so that nothing but the digest tells."""
    other = make_checkpoint()
    edit_weights(other / "model.safetensors", lambda weights: weights["model.norm.weight"].add_(1))
    add_heads(other, 3)
    paths = [convert(folder, folder / "model.gguf", verified=False).path for folder in (checkpoint, other)]
    (base, offset), (_, other_offset) = ((path.read_bytes(), find_parts(path).heads[0].offset) for path in paths)
    paths[0].write_bytes(base[:offset] + paths[1].read_bytes()[other_offset:])
    capsys.readouterr()
    assert run(["generate", "-m", str(paths[0]), "--heads", "-p", "the cat", "-t", "1"], debug=False) == 2
    (line,) = capsys.readouterr().err.splitlines()
    own, theirs = (json.loads((folder / HEADS_FILE).read_text())["trunk_digest"] for folder in (checkpoint, other))
    assert line == (
        f"nptool: error: {paths[0]}: head 2 of 3 was trained on another model (digest {theirs}) than the one before it "
        f"({own}); convert the checkpoint that has both"
    )


def test_weights_that_are_truncated(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = checkpoint / HEADS_WEIGHTS
    path.write_bytes(path.read_bytes()[:-5])
    assert refusal(checkpoint, capsys).startswith("DIR/heads.safetensors is truncated: ")


def test_weights_of_another_shape(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "heads.3.mlp.up_proj.weight"
    edit_weights(checkpoint / HEADS_WEIGHTS, lambda weights: weights.update({name: torch.zeros(95, 64)}))
    assert refusal(checkpoint, capsys) == (
        f"DIR/heads.safetensors: {name} has shape (95, 64), the model beside it asks for (96, 64); the heads belong to "
        "another model: put back that one, or train the heads again with `nptool train heads`"
    )


def test_values_that_are_no_numbers(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "heads.2.mlp.up_proj.weight"
    edit_weights(checkpoint / HEADS_WEIGHTS, lambda weights: weights[name][3].fill_(float("nan")))
    assert refusal(checkpoint, capsys) == f"{name} has values that are not finite; the training diverged"


def test_a_wrong_head_is_found(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model's own tensors are right; only head 3's are not."""
    original = tensors.Tensor.chunks

    def chunks(self: Any) -> Any:
        for rows in original(self):
            wrong = self.stored is not None and self.stored.name == "heads.3.self_attn.v_proj.weight"
            yield -rows if wrong else rows

    monkeypatch.setattr(tensors.Tensor, "chunks", chunks)
    out = checkpoint / "out.gguf"
    for type_name in ("f32", "q8_0", "q4_0"):
        with pytest.raises(GgufError, match=r"^head 3 of the converted model differs from the checkpoint: logits"):
            convert(checkpoint, out, type_name=type_name)
    assert not list(checkpoint.glob("*out.gguf*"))


def test_a_truncated_tail(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = convert(checkpoint, checkpoint / "model.gguf", verified=False).path
    path.write_bytes(path.read_bytes()[:-100])
    for words in (["inspect", str(path)], ["quantize", str(path), str(checkpoint / "other.gguf"), "q8_0"]):
        assert run(words, debug=False) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"nptool: error: head 3 of 3: {path} is truncated: ")
        assert line.endswith("copy or convert it again")
    assert not list(checkpoint.glob("*other.gguf*"))
