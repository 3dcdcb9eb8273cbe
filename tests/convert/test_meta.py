"""Checkpoints in the layout of Meta's multi-token release, made small; the reference is their forward pass."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nptool.cli.app import run
from nptool.convert.conversion import convert
from nptool.llama.context import Context
from nptool.llama.gguf_parts import find_parts
from nptool.llama.head import Head
from nptool.llama.model import Model

PARAMETERS: dict[str, Any] = {
    "dim": 64,
    "n_layers": 5,
    "n_heads": 4,
    "n_kv_heads": 2,
    "n_future_tokens": 3,
    "vocab_size": 480,
    "multiple_of": 32,
    "ffn_dim_multiplier": 1.0,
    "norm_eps": 1e-5,
    "rope_theta": 500.0,
}
VOCABULARY, INNER = 480, 192
TOLERANCE = 5e-3
"""Of the logits' spread; random weights amplify rounding."""
Weights = dict[str, torch.Tensor]


def random_weights(parameters: dict[str, Any]) -> Weights:
    """A state dict as the released code's `Transformer` has it."""
    hidden, keys = parameters["dim"], parameters["n_kv_heads"] * parameters["dim"] // parameters["n_heads"]
    extra = parameters["n_future_tokens"] - 1
    shapes = {"tok_embeddings": (VOCABULARY, hidden), "norm": (hidden,), "output": (VOCABULARY, hidden)}
    blocks = [f"layers.{i}" for i in range(parameters["n_layers"] - extra)] + [f"extra_heads.{i}" for i in range(extra)]
    for block in blocks:
        shapes |= {f"{block}.attention.{name}": (hidden, hidden) for name in ("wq", "wo")}
        shapes |= {f"{block}.attention.{name}": (keys, hidden) for name in ("wk", "wv")}
        shapes |= {f"{block}.feed_forward.{name}": (INNER, hidden) for name in ("w1", "w3")}
        shapes |= {f"{block}.feed_forward.w2": (hidden, INNER)}
        shapes |= {f"{block}.{name}": (hidden,) for name in ("attention_norm", "ffn_norm")}
    generator = torch.Generator().manual_seed(3)
    return {
        f"{name}.weight": 0.2 * torch.randn(shape, generator=generator) + float(len(shape) == 1)
        for name, shape in shapes.items()
    }


class Forward:
    """The released forward pass, written down again: complex rotation of neighbouring values, heads behind z."""

    def __init__(self, weights: Weights, parameters: dict[str, Any]) -> None:
        self.weights, self.parameters = weights, parameters
        self.heads, self.keys = parameters["n_heads"], parameters["n_kv_heads"]
        self.size = parameters["dim"] // self.heads

    def __call__(self, ids: list[int]) -> list[torch.Tensor]:
        """Logits (T, V) of head 1 and of the others."""
        extra = self.parameters["n_future_tokens"] - 1
        z_TD = self.weights["tok_embeddings.weight"][ids]
        own = self.parameters["n_layers"] - extra
        for number in range(own - 1):
            z_TD = self.block(f"layers.{number}", z_TD)
        blocks = [f"layers.{own - 1}", *(f"extra_heads.{number}" for number in range(extra))]
        return [self.norm("norm", self.block(name, z_TD)) @ self.weights["output.weight"].T for name in blocks]

    def norm(self, name: str, x_TD: torch.Tensor) -> torch.Tensor:
        mean = x_TD.pow(2).mean(-1, keepdim=True)
        return x_TD * torch.rsqrt(mean + self.parameters["norm_eps"]) * self.weights[f"{name}.weight"]

    def block(self, name: str, x_TD: torch.Tensor) -> torch.Tensor:
        h_TD = x_TD + self.attention(f"{name}.attention", self.norm(f"{name}.attention_norm", x_TD))
        y_TD = self.norm(f"{name}.ffn_norm", h_TD)
        w1, w2, w3 = (self.weights[f"{name}.feed_forward.{part}.weight"] for part in ("w1", "w2", "w3"))
        return h_TD + (F.silu(y_TD @ w1.T) * (y_TD @ w3.T)) @ w2.T

    def attention(self, name: str, x_TD: torch.Tensor) -> torch.Tensor:
        count = len(x_TD)
        queries, keys, values, output = (self.weights[f"{name}.w{part}.weight"] for part in "qkvo")
        q = self.rotate((x_TD @ queries.T).view(count, self.heads, self.size))
        k = self.rotate((x_TD @ keys.T).view(count, self.keys, self.size))
        v = (x_TD @ values.T).view(count, self.keys, self.size)
        k, v = (x.repeat_interleave(self.heads // self.keys, dim=1) for x in (k, v))
        scores = torch.einsum("ihd,jhd->hij", q, k) / self.size**0.5
        scores += torch.full((count, count), -torch.inf).triu(1)
        return torch.einsum("hij,jhd->ihd", scores.softmax(-1), v).reshape(count, -1) @ output.T

    def rotate(self, x: torch.Tensor) -> torch.Tensor:
        frequencies = self.parameters["rope_theta"] ** (-torch.arange(0, self.size, 2).float() / self.size)
        angles = torch.outer(torch.arange(len(x)).float(), frequencies)[:, None]
        pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2).contiguous())
        return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)


@pytest.fixture
def make_meta(tokenizer_files: Callable[[str], Path], tmp_path: Path) -> Callable[..., Path]:
    """Write a directory in Meta's layout: `make(dtype, **parameters)`."""

    def make(dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
        directory = tmp_path / "7b_1t_4"
        directory.mkdir()
        parameters = PARAMETERS | changes
        weights = {name: tensor.to(dtype) for name, tensor in random_weights(parameters).items()}
        torch.save(weights, directory / "consolidated.pth")
        (directory / "params.json").write_text(json.dumps(parameters))
        (directory / "tokenizer.model").write_bytes((tokenizer_files("prepend+model") / "tokenizer.model").read_bytes())
        return directory

    return make


def logits_of(path: Path, ids: list[int]) -> list[np.ndarray[Any, Any]]:
    """Logits (T, V) of the model in llama.cpp, and (V) of each head after the last token."""
    parts = find_parts(path)
    options: Any = {"width": 64, "batch": 64, "flash_attention": False, "cache_type_k": "f32", "cache_type_v": "f32"}
    with Model.load(path) as model, Context(model, 128, **options) as context:
        if parts.trunk_layer is not None:
            context.choose_layer(parts.trunk_layer)
        found = [context.evaluate(np.array(ids, dtype=np.int32), 0, show=bool(parts.heads)).copy()]
        for part in parts.heads:
            head = Head(part.header, context)
            head.evaluate(context.shown(), 0)
            found.append(head.logits().copy())
    return found


@pytest.mark.parametrize(
    "changes", [{}, {"n_kv_heads": 4, "n_future_tokens": 4}, {"n_future_tokens": 1}], ids=["gqa", "four", "plain"]
)
def test_model_and_heads_are_equal_to_the_released_forward_pass(
    changes: dict[str, Any], make_meta: Callable[..., Path], tmp_path: Path
) -> None:
    directory = make_meta(**changes)
    done = convert(directory, tmp_path / "out" / "model.gguf", type_name="f32", heads_type_name="f32")
    parameters = PARAMETERS | changes
    heads = parameters["n_future_tokens"]
    assert done.verification is not None
    assert (done.source, done.architecture) == (str(directory), "llama")
    assert (1 if done.heads is None else done.heads.count) == heads
    ids = torch.randint(0, 460, (40,), generator=torch.Generator().manual_seed(4)).tolist()
    expected = [logits.numpy() for logits in Forward(random_weights(parameters), parameters)(ids)]
    first, *others = logits_of(done.path, ids)
    assert np.abs(first - expected[0]).max() < TOLERANCE * expected[0].std()
    assert len(others) == heads - 1
    for found, wanted in zip(others, expected[1:], strict=True):
        assert np.abs(found - wanted[-1]).max() < TOLERANCE * wanted.std()
    assert [path.name for path in done.path.parent.iterdir()] == ["model.gguf"], "the import is gone"


def test_the_command(
    make_meta: Callable[..., Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In bfloat16, quantized, under the directory's name."""
    directory = make_meta(torch.bfloat16)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert run(["convert", str(directory), "--type", "q8_0"], debug=False) == 0
    assert [path.name for path in Path().iterdir()] == ["7b_1t_4-q8_0.gguf"]
    with Model.load("7b_1t_4-q8_0.gguf") as model:
        assert model.header.metadata["general.name"] == "7b_1t_4"
        # As in Meta's own tokenizer: the beginning of a text, its end.
        assert (model.bos, model.eos, model.adds_bos) == (1, 2, True)
    assert run(["generate", "-m", "7b_1t_4-q8_0.gguf", "--heads", "-p", "the cat", "--max-tokens", "8"], False) == 0
    assert "2 extra heads after the model: q8_0" in capsys.readouterr().out


def refusal(directory: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What the command says; nothing else is left."""
    out = directory.parent / "out" / "model.gguf"
    assert run(["convert", str(directory), "-o", str(out)], debug=False) == 2
    assert not out.parent.exists() or not list(out.parent.iterdir())
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("nptool: error: ").replace(str(directory), "DIR")


class Intruder:
    """Runs code when it is unpickled, were it let."""

    def __reduce__(self) -> Any:
        return print, ("loaded",)


SIZES_CASES: dict[str, tuple[dict[str, Any], str]] = {
    "more heads than stored": (
        {"n_future_tokens": 4, "n_layers": 6},
        "DIR/consolidated.pth lacks extra_heads.2.attention.wk.weight, extra_heads.2.attention.wo.weight, "
        "extra_heads.2.attention.wq.weight, extra_heads.2.attention.wv.weight and 5 more, which params.json "
        "(n_layers = 6, n_future_tokens = 4) has; they belong to different models",
    ),
    "fewer layers": (
        {"n_layers": 4},
        "DIR/consolidated.pth has layers.2.attention.wk.weight, layers.2.attention.wo.weight, "
        "layers.2.attention.wq.weight, layers.2.attention.wv.weight and 5 more, for which params.json "
        "(n_layers = 4, n_future_tokens = 3) has no place; they belong to different models",
    ),
    "other attention heads": (
        {"n_kv_heads": 4},
        "DIR/consolidated.pth: layers.0.attention.wk.weight has shape (32, 64), params.json asks for (64, 64); they "
        "belong to different models",
    ),
    "more heads than layers": (
        {"n_future_tokens": 6},
        "DIR/params.json has n_future_tokens = 6 and n_layers = 5; expected 1 or more heads, which n_layers counts too",
    ),
    "no size": (
        {"dim": None},
        "DIR/params.json needs the numbers dim, n_layers and n_heads of Meta's release",
    ),
}


@pytest.mark.parametrize("case", SIZES_CASES)
def test_sizes_that_do_not_fit(case: str, make_meta: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    changes, message = SIZES_CASES[case]
    directory = make_meta()
    (directory / "params.json").write_text(json.dumps(PARAMETERS | changes))
    assert refusal(directory, capsys) == message


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("params.json", "DIR has consolidated.pth but no params.json; expected both, as Meta's release has"),
        (
            "tokenizer.model",
            "there is no tokenizer.model in DIR nor in the folder above it, where Meta's release has it; copy it there",
        ),
    ],
)
def test_a_missing_file(
    name: str, message: str, make_meta: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    directory = make_meta()
    (directory / name).unlink()
    assert refusal(directory, capsys) == message


def test_the_tokenizer_of_all_checkpoints(
    make_meta: Callable[..., Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lies beside the directories, as in the release; also where the directory is the current one."""
    directory = make_meta()
    (directory / "tokenizer.model").rename(directory.parent / "tokenizer.model")
    monkeypatch.chdir(directory)
    assert run(["convert", ".", "-o", "model.gguf", "--type", "f32"], debug=False) == 0
    with Model.load("model.gguf") as model:
        assert (model.bos, model.eos) == (1, 2)


def test_damaged_files(make_meta: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    directory = make_meta()
    (directory / "tokenizer.model").write_bytes(b"no model")
    assert refusal(directory, capsys) == "DIR/tokenizer.model is no SentencePiece model; copy it again"
    weights = directory / "consolidated.pth"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert refusal(directory, capsys) == "DIR/consolidated.pth is truncated or no file of torch.save; copy it again"


def test_code_in_the_weights_is_not_run(make_meta: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    directory = make_meta()
    torch.save({"norm.weight": Intruder()}, directory / "consolidated.pth")
    assert refusal(directory, capsys) == (
        "DIR/consolidated.pth holds more than tensors, which could run code when it is loaded; expected Meta's own file"
    )
    assert "loaded" not in capsys.readouterr().out
