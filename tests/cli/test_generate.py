"""`nptool generate`: output, figures, exit codes, one line for every mistake."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest
from random_model import Shape

import nptool
from nptool.cache_folder import OVERRIDE
from nptool.cli.app import run
from nptool.cli.decoding_options import widths_used
from nptool.decoding.adaptive.cost import Calibration, calibrate
from nptool.decoding.adaptive.widths import AdaptiveWidth
from nptool.llama.context import Context

FIGURES = r"\[[\d.]+ tokens/s, [\d.]+ tokens per forward, \d+ forward passes for \d+ tokens\]\n"


def generate(path: Path, *words: str) -> int:
    return run(["generate", "-m", str(path), "-t", "1", *words], debug=False)


@pytest.fixture
def costs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Callable[[int], float]], None]:
    """Replaces the measured cost of a step of w rows by a function of w, with an empty cache.

    A tiny model's real costs vary from run to run, and with them the method of the first text.
    """
    monkeypatch.setenv(OVERRIDE, str(tmp_path / "costs"))

    def pretend(seconds: Callable[[int], float]) -> None:
        def scripted(engine: Any, **options: Any) -> Calibration:
            found = calibrate(engine, **options)
            times = tuple(tuple(map(seconds, found.widths)) for _ in found.contexts)
            return replace(found, seconds=times, classes=((1,), found.widths[1:]))

        monkeypatch.setattr("nptool.decoding.text_model.calibrate", scripted)

    return pretend


def test_the_answer_and_its_figures(tiny_gguf: Callable[..., Path], capsys: Any) -> None:
    path = tiny_gguf("f16")
    with nptool.load(path, threads=1) as model:
        expected = model.generate("hello", method="jacobi", n=5, fixed=True, max_tokens=30)
    assert generate(path, "-p", "hello", "--jacobi", "-n", "5", "--fixed", "--max-tokens", "30") == 0
    shown = capsys.readouterr()
    assert shown.out == expected.text + "\n"
    assert re.fullmatch(FIGURES, shown.err)
    assert f" {expected.tally.passes} forward passes for 30 tokens]" in shown.err


def test_prompts_from_a_file_and_from_a_pipe(
    tiny_gguf: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    path = tiny_gguf("f16")
    generate(path, "-p", "from elsewhere", "--max-tokens", "9")
    expected = capsys.readouterr().out
    monkeypatch.setattr(sys, "stdin", io.StringIO("from elsewhere"))
    generate(path, "-f", "-", "--max-tokens", "9")
    assert capsys.readouterr().out == expected
    (tmp_path / "prompt.txt").write_text("from elsewhere")
    generate(path, "-f", str(tmp_path / "prompt.txt"), "--max-tokens", "9")
    assert capsys.readouterr().out == expected
    piped = subprocess.run(
        [sys.executable, "-m", "nptool", "generate", "-m", path, "-t", "1", "--max-tokens", "9"],
        input="from elsewhere",
        capture_output=True,
        text=True,
        check=True,
    )
    assert piped.stdout == expected


def test_a_pipe_that_brings_nothing_is_given_up(
    tiny_gguf: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("nptool.cli.prompt_options.PATIENCE", 0.1)
    reading, writing = os.pipe()
    with os.fdopen(reading) as pipe, os.fdopen(writing, "w"):
        monkeypatch.setattr(sys, "stdin", pipe)
        assert generate(tiny_gguf("f16")) == 2
    shown = capsys.readouterr().err.splitlines()
    assert shown[0] == "nptool: waiting 0.1 s for a prompt on standard input (-p TEXT gives it at once)"
    assert "has no held-out prompts beside it" in shown[1]


@pytest.mark.parametrize("words", [("-p", "a\udcff"), ()], ids=["line", "pipe"])
def test_a_prompt_that_is_not_utf_8(
    words: tuple[str, ...], tiny_gguf: Callable[..., Path], capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"ab\xffc"), encoding="utf-8"))
    assert generate(tiny_gguf("f16"), *(words or ("-f", "-"))) == 2
    (line,) = capsys.readouterr().err.splitlines()
    place = "the text has bytes that are not UTF-8" if words else "standard input is not UTF-8 text (byte 2)"
    assert line == f"nptool: error: {place}; convert it first"


@pytest.mark.parametrize(("words", "name"), [(("-n", "8"), "-n"), (("--fixed",), "--fixed")])
def test_what_belongs_to_a_method_is_not_ignored_without_one(
    words: tuple[str, ...], name: str, tiny_gguf: Callable[..., Path], capsys: Any
) -> None:
    assert generate(tiny_gguf("f16"), "-p", "x", *words) == 2
    assert capsys.readouterr().err == (
        f"nptool: error: {name} is for parallel decoding; add --jacobi or --heads (the length of the answer is "
        "--max-tokens)\n"
    )


def test_ctrl_c_begins_a_new_line(tiny_gguf: Callable[..., Path], capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = Context.evaluate, iter(range(100))

    def interrupted(self: Context, *arguments: Any, **options: Any) -> Any:
        if next(calls) == 4:
            raise KeyboardInterrupt
        return original(self, *arguments, **options)

    monkeypatch.setattr(Context, "evaluate", interrupted)
    assert generate(tiny_gguf("f16"), "-p", "x") == 130
    shown = capsys.readouterr()
    assert shown.out.endswith("\n")
    assert re.fullmatch(r"nptool: interrupted after \d tokens\n", shown.err)


def test_json(tiny_gguf: Callable[..., Path], capsys: Any) -> None:
    path = tiny_gguf("f16", metadata={"nptool.block_size": 6})
    assert generate(path, "-p", "x", "--block-mode", "--fixed", "--json", "--max-tokens", "12") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["model"] == str(path)
    assert (result["method"], result["n"], result["tokens"], result["finish"]) == ("jacobi-block", 6, 12, "length")
    assert result["tokens_per_forward"] == result["tokens"] / result["forward_passes"]


def test_compare_shows_both_speeds_and_whether_the_texts_agree(tiny_gguf: Callable[..., Path], capsys: Any) -> None:
    path = tiny_gguf("q8_0")
    words = ("-p", "x", "--compare", "-n", "4", "--fixed", "--max-tokens", "20")
    assert generate(path, *words) == 0
    shown = capsys.readouterr()
    assert re.search(r"ar, width 1: [\d.]+ tokens/s, 1\.00 tokens per forward, 20 forward passes", shown.err)
    assert re.search(r"jacobi, n = 4: [\d.]+ tokens/s", shown.err)
    why = r"a step takes [\d.]+ times as long as one of AR here and gives [\d.]+ tokens; where it takes no longer, .*\n"
    assert re.search(r"[\d.]+ times as fast \(median of \d\); the texts are equal\n" + why, shown.err)
    generate(path, *words, "--json")
    result = json.loads(capsys.readouterr().out)
    assert result["identical_width_1"] is result["identical_equal_width"] is True
    assert [answer["method"] for answer in result["answers"]] == ["jacobi", "ar"]
    assert result["answers"][0]["text"] == result["answers"][1]["text"] == shown.out.removesuffix("\n")


@pytest.mark.parametrize(
    ("used", "members", "words"),
    [
        ({8: 2, 1: 3}, (1, 8), "jacobi, passes by width 1: 3, 8: 2; AR's text at any width of 1, 8"),
        ({2: 4, 3: 1}, (), "jacobi, passes by width 2: 4, 3: 1; free widths"),
        ({1: 9}, (1,), "plain AR, which promised most for this text; --fixed gives every step n rows"),
    ],
)
def test_what_the_steps_were_in_words(used: dict[int, int], members: tuple[int, ...], words: str) -> None:
    widths = object.__new__(AdaptiveWidth)
    widths.members = members
    answer: Any = SimpleNamespace(widths=widths, method="jacobi", tally=SimpleNamespace(widths=used))
    assert widths_used(answer) == words


def test_by_default_every_step_chooses_its_width(tiny_gguf: Callable[..., Path], capsys: Any) -> None:
    path = tiny_gguf("q8_0", metadata={"nptool.method": "cllm"})
    for more, ending in (([], r"AR's text at any width of [\d, ]+"), (["--free-width"], "free widths")):
        assert generate(path, "-p", "x", "--jacobi", "--max-tokens", "20", *more) == 0
        chosen = rf"jacobi, passes by width [\d:, ]+; {ending}|plain AR, .*"
        assert re.fullmatch(FIGURES + rf"\[({chosen})\]\n", capsys.readouterr().err)
    assert generate(path, "-p", "x", "--jacobi", "-n", "auto", "--json", "--max-tokens", "20") == 0
    result = json.loads(capsys.readouterr().out)
    assert sum(result["passes_by_width"].values()) == result["forward_passes"]
    assert {int(width) for width in result["passes_by_width"]} <= set(result["width_class"])
    assert generate(path, "-p", "x", "--compare", "-n", "4", "--max-tokens", "20") == 0
    assert re.search(r"jacobi, n up to 4: [\d.]+ tokens/s", capsys.readouterr().err)


def test_without_options_it_answers_by_what_the_file_was_trained_for(
    tiny_gguf: Callable[..., Path], capsys: Any
) -> None:
    for note, methods in (("cllm", {"jacobi"}), (None, {"ar"})):
        path = tiny_gguf("q8_0", metadata={"nptool.method": note} if note else {})
        assert generate(path, "-p", "x", "--json", "--max-tokens", "9") == 0
        assert json.loads(capsys.readouterr().out)["method"] in methods
        assert generate(path, "-p", "x", "--compare", "--max-tokens", "9") == 0
        assert re.search(r"jacobi, n up to \d+: [\d.]+ tokens/s", capsys.readouterr().err)


def test_each_text_is_decoded_by_the_better_one_of_jacobi_and_heads(
    tiny_gguf: Callable[..., Path], costs: Callable[..., None], capsys: Any
) -> None:
    path = tiny_gguf("q8_0", heads=4, counting=3.0, metadata={"nptool.method": "cllm"})
    words = ("-p", "x", "--max-tokens", "30")
    costs(lambda width: 1e-3 * (1 + width / 1000))
    assert generate(path, *words, "--jacobi", "--heads") == 0
    way = r"(jacobi|heads), passes by width [\d:, ]+; AR's text at any width of 2, [\d, ]+"
    assert re.fullmatch(FIGURES + rf"\[{way}\]\n", capsys.readouterr().err)
    assert generate(path, *words, "--jacobi", "--heads", "-n", "8", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["method"], result["n"]) in (("jacobi", 8), ("heads", 4))
    assert generate(path, *words, "--compare", "--heads") == 0
    assert re.search(r"heads, n up to 4: [\d.]+ tokens/s", capsys.readouterr().err)
    assert generate(path, *words, "--jacobi", "--heads", "--fixed") == 2
    assert "Jacobi iteration and heads are two methods, and steps of a fixed width" in capsys.readouterr().err
    assert generate(tiny_gguf("q8_0"), *words, "--jacobi", "--heads") == 2
    assert "is a model without extra heads; train some" in capsys.readouterr().err


def test_where_wide_steps_cost_too_much_every_method_is_plain_ar(
    tiny_gguf: Callable[..., Path], costs: Callable[..., None], capsys: Any
) -> None:
    path = tiny_gguf("q8_0", heads=4, counting=3.0, metadata={"nptool.method": "cllm"})
    words = ("-p", "x", "--max-tokens", "30")
    costs(lambda width: 1e-3 * width**2)
    assert generate(path, *words) == 0
    expected = capsys.readouterr().out
    assert generate(path, *words, "--jacobi", "--heads") == 0
    shown = capsys.readouterr()
    assert shown.out == expected
    ending = r"\[plain AR, which promised most for this text; --fixed gives every step n rows\]\n"
    assert re.fullmatch(FIGURES + ending, shown.err)
    assert " 30 forward passes for 30 tokens]" in shown.err


def test_without_a_prompt_it_takes_a_held_out_one_and_says_so(
    tiny_gguf: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["generate"], debug=False) == 2
    assert "no run in runs/ yet" in capsys.readouterr().err
    folder = tmp_path / "runs" / "small"
    folder.mkdir(parents=True)
    (tmp_path / "runs" / "latest").write_text("small\n")
    (folder / "config.json").write_text("{}")
    assert run(["generate"], debug=False) == 2
    assert "runs/small has no model.gguf yet; make it with `nptool convert`" in capsys.readouterr().err
    (folder / "model.gguf").write_bytes(tiny_gguf("f16").read_bytes())
    assert run(["generate", "-t", "1"], debug=False) == 2
    assert "model.gguf has no held-out prompts beside it" in capsys.readouterr().err
    (folder / "heldout.jsonl").write_text('{"prompt": "one", "response": "1"}\n{"prompt": "two"}\n')
    assert run(["generate", "-t", "1", "--max-tokens", "5", "--seed", "1"], debug=False) == 0
    held_out = capsys.readouterr()
    assert re.match(r"prompt: .*runs/small/heldout\.jsonl:2 \(held out\)\ntwo\n", held_out.err)
    assert run(["generate", "-t", "1", "--max-tokens", "5", "-p", "two"], debug=False) == 0
    assert capsys.readouterr().out == held_out.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-n", "0", "--jacobi"], "-n must be at least 1, got 0"),
        (["-n", "-3", "--jacobi"], "-n must be at least 1, got -3"),
        (["-n", "600", "--jacobi"], "-n 600 is above the batch limit of 512 rows"),
        (["-c", "20"], "the prompt has 44 tokens and the context holds 20; shorten it or raise -c"),
        (["-c", "0"], "the context must be at least 1, got 0"),
        (["-t", "0"], "the threads must be at least 1, got 0"),
        (["--max-tokens", "0"], "--max-tokens must be at least 1, got 0"),
        (["--temp", "-1"], "--temp must be 0 or more, got -1.0"),
        (["--top-p", "2"], "--top-p must be from 0 to 1, got 2.0"),
        (["-f", "prompt.txt"], "-p and -f are two prompts; give one of them"),
        (["-n", "many"], "-n must be a whole number or auto, got 'many'"),
    ],
)
def test_mistakes(tiny_gguf: Callable[..., Path], words: list[str], message: str, capsys: Any) -> None:
    assert generate(tiny_gguf("f16"), "-p", "a bad idea " * 5, *words) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("nptool: error: ")
    assert message in shown.err
    assert shown.err.count("\n") == 1


def test_files_that_are_not_models(tiny_gguf: Callable[..., Path], tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "text.gguf").write_text("hello")
    (tmp_path / "cut.gguf").write_bytes(tiny_gguf("f16").read_bytes()[:-1000])
    for name, message in (
        ("none.gguf", "does not exist"),
        ("text.gguf", "is not a GGUF file"),
        ("cut.gguf", "is truncated"),
    ):
        for words in (["generate", "-p", "x"], ["chat"]):
            assert run([*words, "-m", str(tmp_path / name)], debug=False) == 2
            shown = capsys.readouterr()
            assert shown.out == ""
            assert re.fullmatch(rf"nptool: error: .*{name} {message}.*\n", shown.err)


def test_prompt_files_that_cannot_be_read(tiny_gguf: Callable[..., Path], tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    assert generate(tiny_gguf("f16"), "-f", str(tmp_path / "bytes")) == 2
    assert "bytes is not UTF-8 text (byte 0)" in capsys.readouterr().err
    assert generate(tiny_gguf("f16"), "-f", str(tmp_path / "none")) == 2
    assert "cannot read" in capsys.readouterr().err


def test_options_of_loading_reach_llama_cpp(tiny_gguf: Callable[..., Path], capsys: Any) -> None:
    path = tiny_gguf("f16", shape=Shape(heads=2, key_value_heads=1))
    cache = ["-ctk", "q8_0", "-ctv", "q4_0", "-fa", "on", "-b", "128", "-ub", "64", "-c", "300"]
    devices = ["-sm", "none", "-mg", "0", "-ts", "1,2"]
    with nptool.load(
        path,
        threads=1,
        cache_type_k="q8_0",
        cache_type_v="q4_0",
        context_length=300,
        batch_size=128,
        ubatch_size=64,
        chat_template="chatml",
    ) as model:
        expected = model.generate("hello", max_tokens=30)
    assert generate(path, "-p", "hello", "--max-tokens", "30", "--chat-template", "chatml", *cache, *devices) == 0
    assert capsys.readouterr().out == expected.text + "\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-fa", "yes"], "--flash-attention is 'yes'; expected one of on, off, auto"),
        (["-ts", "a,b"], "--tensor-split is 'a,b'; expected numbers separated by commas, such as 3,1"),
        (["-hf", "model"], "'model' is no model on the Hub; expected USER/REPO or USER/REPO:TYPE"),
        (["-ub", "1024"], "-ub is 1024 and -b 512; what is computed at once is part of a batch, so -ub is at most -b"),
        (["--rpc", "host:1"], "--rpc needs layers to put on its servers; add -ngl, such as -ngl -1 for all"),
    ],
)
def test_mistakes_in_options_of_loading(words: list[str], message: str, capsys: Any) -> None:
    assert run(["generate", "-p", "hello", *words], debug=False) == 2
    assert message in capsys.readouterr().err


SVG = {"svg": "http://www.w3.org/2000/svg"}


def test_the_picture_of_a_comparison(tiny_gguf: Callable[..., Path], tmp_path: Path, capsys: Any) -> None:
    """Both answers as text, and a tint for each forward pass."""
    picture, path = tmp_path / "answer.svg", tiny_gguf("f16", heads=4, counting=4.0)
    decoding = ["--heads", "-n", "4", "--fixed", "--max-tokens", "24"]
    assert generate(path, "-p", "one\na < b", "--compare", "--plot-file", str(picture), *decoding) == 0
    shown = capsys.readouterr().out.removesuffix("\n").replace("\n", "\u21b5")
    root = ElementTree.parse(picture).getroot()
    assert root.findtext("svg:text", "", SVG) == "a\u00a0<\u00a0b"
    tokens = root.findall("svg:g", SVG)
    half = len(tokens) // 2
    with nptool.load(path, threads=1) as model:
        for lane, method in ((tokens[:half], "ar"), (tokens[half:], "heads")):
            text = "".join(token.findtext("svg:text", "", SVG) for token in lane)
            assert text.replace("\u00a0", " ") == re.sub(r"[\x00-\x1f\x7f-\xa0]", "\ufffd", shown)
            answer = model.stream("one\na < b", method=method, n=4, fixed=True, max_tokens=24)
            tints = [f"t{answer.tally.passes % 5}" for token in answer if token.text]
            assert [token.find("svg:rect", SVG).get("class") for token in lane] == tints  # type: ignore[union-attr]


def test_a_picture_needs_a_comparison(tiny_gguf: Callable[..., Path], capsys: Any) -> None:
    assert generate(tiny_gguf("f16"), "-p", "a", "--plot-file", "answer.svg") == 2
    assert "--plot-file draws what --compare measures; give --compare too" in capsys.readouterr().err
