"""`nptool convert` as it is typed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from nptool.cli.app import run
from nptool.llama.gguf_check import read_header
from nptool.runs import Run


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_newest_run(here: Path, make_checkpoint: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    made = Run.create("one")
    (made.path / "config.json").write_text("{}")
    make_checkpoint().rename(made.model)
    (made.model / "nptool.json").write_text('{"method": "cllm", "block_size": 16}')
    assert run(["convert"], debug=False) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("runs/one/model.gguf: f16, 0.")
    assert "M parameters, architecture llama, " in lines[0]
    assert lines[1].startswith(
        "verified against transformers: 19 texts tokenized alike; 52 tokens: logits differ by at most "
    )
    assert lines[2:] == ["next: nptool chat --jacobi"]
    metadata = read_header(made.gguf).metadata
    assert (metadata["nptool.method"], metadata["nptool.block_size"]) == ("cllm", 16)


def test_a_directory(here: Path, make_checkpoint: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    make_checkpoint().rename(here / "mine")
    assert run(["convert", "mine/", "--type", "q8_0", "--no-verify"], debug=False) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("mine-q8_0.gguf: q8_0, ")
    assert lines[1:] == ["not verified", "next: nptool chat --jacobi -m mine-q8_0.gguf"]
    assert read_header(here / "mine-q8_0.gguf").metadata["general.name"] == "mine"


def test_json(here: Path, make_checkpoint: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    source = str(make_checkpoint())
    assert run(["convert", source, "-o", "sub/x.gguf", "--type", "f32", "--json"], debug=False) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["source"], result["path"], result["file_type"]) == (source, "sub/x.gguf", "f32")
    assert result["bytes"] == (here / "sub" / "x.gguf").stat().st_size
    assert result["verification"]["logits"]["relative"] < 1e-3
    assert result["remarks"] == []


def test_errors_are_one_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = {
        (
            "convert",
        ): "no checkpoint was named and there is no run to take it from; write `nptool convert DIR`, or train one "
        "with `nptool train`",
        ("convert", "./none"): "./none does not exist; expected a Hugging Face directory or Hub id",
        ("convert", "--type", "q9", "./none"): "--type q9 is not known; choose one of ",
    }
    for words, message in cases.items():
        assert run(words, debug=False) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert lines[0].startswith(f"nptool: error: {message}")


def test_interrupt(
    here: Path,
    make_checkpoint: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("nptool.convert.gguf_file._quantized", interrupted)
    assert run(["convert", str(make_checkpoint()), "-o", "x.gguf", "--type", "q8_0"], debug=False) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "nptool: interrupted; finished steps are kept"
    assert list(here.iterdir()) == []
