"""`nptool convert`: output, errors, heavy imports, Hub ids."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nptool.cli.app import run
from nptool.llama.gguf_check import read_header
from nptool.runs import Run


def test_newest_run(tmp_path: Path, make_checkpoint: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    made = Run.create("one")
    made.publish()
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
    assert lines[2:] == ["next: nptool chat"]
    metadata = read_header(made.gguf).metadata
    assert (metadata["nptool.method"], metadata["nptool.block_size"]) == ("cllm", 16)


def test_a_directory(tmp_path: Path, make_checkpoint: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    make_checkpoint().rename(tmp_path / "mine")
    assert run(["convert", "mine/", "--type", "q8_0", "--no-verify"], debug=False) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("mine-q8_0.gguf: q8_0, ")
    assert lines[1:] == ["not verified", "next: nptool chat -m mine-q8_0.gguf"]
    assert read_header(tmp_path / "mine-q8_0.gguf").metadata["general.name"] == "mine"


def test_json(tmp_path: Path, make_checkpoint: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    source = str(make_checkpoint())
    assert run(["convert", source, "-o", "sub/x.gguf", "--type", "f32", "--json"], debug=False) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["source"], result["path"], result["file_type"]) == (source, "sub/x.gguf", "f32")
    assert result["bytes"] == (tmp_path / "sub" / "x.gguf").stat().st_size
    assert result["verification"]["logits"]["relative"] < 1e-3
    assert (result["remarks"], result["block_size"]) == ([], None)


def test_heads(
    tmp_path: Path,
    make_checkpoint: Callable[..., Path],
    add_heads: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    add_heads(make_checkpoint(), 3).rename(tmp_path / "mine")
    assert run(["convert", "mine", "--type", "f32", "--heads-type", "f32"], debug=False) == 0
    lines = capsys.readouterr().out.splitlines()
    size = (tmp_path / "mine-f32.gguf").stat().st_size
    assert f", {size / 2**20:.1f} MiB, " in lines[0]
    assert lines[2].startswith("2 extra heads after the model: f32, 0.")
    for number, line in enumerate(lines[3:5], start=2):
        assert line.startswith(f"head {number}: 52 tokens: logits differ by at most ")
        assert line.endswith(" of their spread), 100% with the same most likely token")
    assert lines[5:] == [
        "not scored on held-out prompts: `nptool train heads` saves some, and this checkpoint has none",
        "next: nptool chat -m mine-f32.gguf",
    ]
    assert run(["convert", "mine", "--type", "f32", "--heads-type", "f32", "--json"], debug=False) == 0
    heads = json.loads(capsys.readouterr().out)["heads"]
    assert (heads["count"], heads["file_type"], len(heads["logits"])) == (3, "f32", 2)
    assert all(logits["relative"] < 1e-3 for logits in heads["logits"])
    program = (
        "import sys\n"
        "from nptool.cli.app import run\n"
        "code = run(['convert', 'mine', '-o', 'x.gguf', '--no-verify'], debug=True)\n"
        "code = code or run(['inspect', 'x.gguf'], debug=True)\n"
        "sys.exit(code or sorted({'torch', 'transformers', 'llama_cpp'} & set(sys.modules)) or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "2 extra heads after the model: q8_0, " in done.stdout


def test_nextn(
    tmp_path: Path,
    make_checkpoint: Callable[..., Path],
    add_nextn: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = Run.create("one")
    made.publish()
    (made.path / "config.json").write_text("{}")
    add_nextn(make_checkpoint()).rename(made.model)
    assert run(["convert", "--nextn"], debug=False) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("runs/one/model-nextn.gguf: f16, 0.")
    assert "M parameters, architecture step35, " in lines[0]
    assert lines[2].startswith("NextN block: 40 tokens: logits differ by at most ")
    assert lines[3:] == [
        "runs/one/mtp-model.gguf: the block alone",
        "next: llama-server -m runs/one/model-nextn.gguf --spec-type draft-mtp --spec-draft-n-max 3",
    ]
    made.model.rename("mine")
    assert run(["convert", "mine", "--nextn", "--type", "f32", "--json"], debug=False) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["path"], result["nextn"]["draft"]) == ("mine-nextn.gguf", "mtp-mine.gguf")
    assert result["nextn"]["logits"]["relative"] < 1e-3
    assert run(["convert", "mine", "--nextn", "--no-verify", "--json"], debug=False) == 0
    assert json.loads(capsys.readouterr().out)["nextn"]["logits"] is None


def test_errors_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = {
        (
            "convert",
        ): "no checkpoint is given and there is no run to take it from; name one with `nptool convert DIR`, or "
        "train one with `nptool train`",
        ("convert", "./none"): "./none does not exist; expected a Hugging Face directory or Hub id",
        ("convert", "--type", "q9", "./none"): "--type q9 is not known; choose one of ",
    }
    for words, message in cases.items():
        assert run(words, debug=False) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert lines[0].startswith(f"nptool: error: {message}")


def test_interrupt(
    tmp_path: Path,
    make_checkpoint: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("nptool.convert.gguf_file._encode", interrupted)
    assert run(["convert", str(make_checkpoint()), "-o", "x.gguf", "--type", "q8_0"], debug=False) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "nptool: interrupted; finished steps are kept"
    assert list(tmp_path.iterdir()) == []


def test_hub_id(tmp_path: Path, make_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []

    def fetch(ref: str, allow_patterns: list[str]) -> str:
        fetched.append(ref)
        assert "*.safetensors" in allow_patterns
        assert not any("bin" in pattern for pattern in allow_patterns)
        return str(make_checkpoint())

    monkeypatch.setattr("nptool.convert.checkpoint.load_config", lambda ref: None)
    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    assert run(["convert", "someone/model"], debug=False) == 0
    assert fetched == ["someone/model"]
    assert read_header(tmp_path / "model-f16.gguf").metadata["general.name"] == "model"


def test_without_verification_torch_is_not_needed(tmp_path: Path, make_checkpoint: Callable[..., Path]) -> None:
    source = make_checkpoint(dtype=torch.bfloat16)
    program = (
        "import sys\n"
        "from nptool.cli.app import run\n"
        f"code = run(['convert', {str(source)!r}, '-o', 'x.gguf', '--no-verify'], debug=True)\n"
        "sys.exit(code or sorted({'torch', 'transformers', 'llama_cpp'} & set(sys.modules)) or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("Traceback")) == (0, 0), done.stderr


def test_the_current_directory(make_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    directory = make_checkpoint()
    monkeypatch.chdir(directory)
    assert run(["convert", ".", "--no-verify"], debug=False) == 0
    assert (directory / f"{directory.name}-f16.gguf").is_file()
    run_directory = directory.parent / "run"
    run_directory.mkdir()
    (run_directory / "config.json").write_text("{}")
    directory.rename(run_directory / "model")
    monkeypatch.chdir(run_directory / "model")
    assert run(["convert", ".", "--no-verify"], debug=False) == 0
    assert (run_directory / "model.gguf").is_file()
