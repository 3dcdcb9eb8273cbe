"""`nptool train base`: options, output, and one clear line for every mistake."""

from __future__ import annotations

import json
import os
import signal
from contextlib import nullcontext
from pathlib import Path

import pytest

from nptool.checkpoints import load_model
from nptool.cli.app import run

SIZES = "--hidden-size 32 --layers 2 --attention-heads 2 --vocab-size 320 --context 128 --batch-tokens 256 --steps 4"
SMALL = SIZES.split()
pytestmark = pytest.mark.usefixtures("records_file", "no_hub")


def base(*words: str) -> int:
    return run(["train", "base", *words], debug=False)


def mistake(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line of a command that must fail."""
    assert base(*words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    line = captured.err.splitlines()[-1]
    assert line.startswith("nptool: error: ")
    return line.removeprefix("nptool: error: ")


def test_the_result_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert base("--data", "records.jsonl", *SMALL, "--name", "mine") == 0
    captured = capsys.readouterr()
    names = [line.split("│")[1].strip() for line in captured.out.splitlines() if line.startswith("│")]
    assert names == [
        "model",
        "parameters",
        "trained",
        "held-out loss",
        "perplexity",
        "bits per byte",
        "speed",
        "time",
    ]
    assert "runs/mine/model" in captured.out
    assert "training the base model: 4 of 4" in captured.err


def test_the_result_as_json_and_flags_above_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    Path("config.yaml").write_text("data: [records.jsonl]\nhidden-size: 48\nkv_heads: 1\nname: of-the-file\n")
    assert base(*SMALL, "--config", "config.yaml", "--name", "mine", "--untied", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    config = load_model(result["model"]).config
    assert result["model"] == "runs/mine/model"
    assert (config.hidden_size, config.num_key_value_heads, config.tie_word_embeddings) == (32, 1, False)
    assert json.loads(Path("runs/mine/results.json").read_text())["heldout_loss"] == result["heldout_loss"]


def test_several_files_after_data(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.txt", "b.txt"):
        Path(name).write_text(f"the cat sat on {name}\n" * 500)
    assert base("--data", "a.txt", "b.txt", *SMALL, "--dry-run", "--json") == 0
    assert json.loads(capsys.readouterr().out)["config"]["data"] == ["a.txt", "b.txt"]


def test_a_dry_run_says_what_the_training_then_does(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--data", "records.jsonl", *SMALL[:-2], "--epochs", "2", "--json"]
    assert base(*words, "--dry-run") == 0
    estimate = json.loads(capsys.readouterr().out)
    assert not Path("runs").exists()
    assert base(*words) == 0
    result = json.loads(capsys.readouterr().out)
    assert (estimate["parameters"], estimate["steps"]) == (result["parameters"], result["steps"])
    assert f"runs/{estimate['run']}" == result["run"]
    assert 2 * estimate["data_tokens"] == result["tokens"]
    assert estimate["config"]["lr"] == 1e-3
    assert estimate["config"]["intermediate_size"] == 96
    assert estimate["memory"]["weights"] == 4 * result["parameters"]
    assert estimate["memory"]["total"] == sum(size for name, size in estimate["memory"].items() if name != "total")


def test_a_dry_run_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert base("--data", "records.jsonl", *SMALL, "--dry-run") == 0
    output = capsys.readouterr().out
    assert output.startswith("configuration")
    assert "│ hidden_size            │ 32 " in output
    assert "4 of 256 tokens" in output


def test_a_dry_run_of_a_finished_model(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert base("--data", "records.jsonl", "-m", str(checkpoint), "--context", "128", "--dry-run", "--json") == 0
    estimate = json.loads(capsys.readouterr().out)
    assert estimate["parameters"] == load_model(checkpoint).num_parameters()
    assert (estimate["config"]["hidden_size"], estimate["config"]["lr"]) == (32, 2e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--data is missing; give it on the line or as `data` in the configuration file"),
        (["--data", "gone.txt"], "gone.txt does not exist; expected a JSONL, JSON, CSV, Parquet or text file"),
        (["--data", "empty.txt"], "the data set is empty: no record in empty.txt"),
        (
            ["--data", "bad.jsonl"],
            "bad.jsonl:2: malformed JSON (Expecting value at column 1); "
            "expected one JSON object per line, or one array of objects",
        ),
        (
            ["--data", "records.jsonl", "-m", "gone/model"],
            "gone/model is not a local directory and not in the Hub cache, and the Hub cannot be reached",
        ),
        (
            ["--data", "records.jsonl", "-m", "./gone"],
            "./gone does not exist; expected a Hugging Face directory or Hub id",
        ),
        (
            ["--data", "records.jsonl", "-m", "x", "--layers", "3"],
            "--layers describes a new model; x (-m) brings its own",
        ),
        (
            ["--data", "records.jsonl", "--config", "gone.yaml"],
            "cannot read the configuration file gone.yaml: No such file or directory",
        ),
        (
            ["--data", "records.jsonl", "--config", "bad.yaml"],
            "bad.yaml: unknown key `warm_up`; the nearest is `warmup`",
        ),
        (["--data", "records.jsonl", "--steps", "0"], "--steps is 0; it must be above 0"),
        (
            ["--data", "records.jsonl", "--steps", "3", "--epochs", "1"],
            "--steps and --epochs exclude each other; give one of them",
        ),
        (
            ["--data", "records.jsonl", "--prompt-field", "q"],
            "records.jsonl:1: no field 'q'; the fields are prompt, response",
        ),
    ],
)
def test_mistakes(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty.txt").touch()
    Path("bad.jsonl").write_text('{"prompt": "a", "response": "b"}\noops\n')
    Path("bad.yaml").write_text("warm_up: 1\n")
    assert mistake(capsys, *words) == message
    assert not Path("runs").exists()


@pytest.mark.parametrize("words", [["--steps", "many"], ["--loss", "some"], ["--nonesuch"]])
def test_words_that_are_no_options(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert words[0] in mistake(capsys, "--data", "records.jsonl", *words)


def test_ctrl_c_says_what_was_kept(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def press(step: str, done: float, total: float, note: str = "") -> None:
        if step == "training the base model" and done == 2:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("nptool.cli.train_base.progress_bars", lambda: nullcontext(press))
    assert base("--data", "records.jsonl", *SMALL, "--name", "cut") == 130
    assert capsys.readouterr().err == (
        "nptool: interrupted at step 2 of 4, which is saved in runs/cut; the same command goes on from there\n"
    )
