"""`nptool bench` and `nptool bench --calibrate`: JSON, tables, drawings, mistakes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from random_model import Shape, write_random_model

from nptool.bench.advice import Advice, Way, WidthAdvice
from nptool.bench.calibrate import CalibrationReport
from nptool.bench.prediction import Prediction
from nptool.cli.app import run
from nptool.cli.calibration_output import print_calibration
from nptool.decoding.adaptive.cost import Calibration

KEYS = {
    "name": str,
    "n": int,
    "tokens_per_second": float,
    "tokens_per_second_with_prefill": float,
    "speedup": float,
    "tokens_per_forward": float,
    "identical_equal_width": float,
    "identical_width_1": float,
    "first_token_ms": float,
}


WAY = Way(needed=2.0, most=4.5, low=3.8, high=4.2)
ADVICE = Advice((WidthAdvice(8, WAY, WAY), WidthAdvice(64, WAY, None)), (), "worth it: for a test")


def words(model: Path, *more: str) -> list[str]:
    small = ["--rounds", "2", "--count", "2", "--max-tokens", "12", "-t", "1"]
    return ["bench", "-m", str(model), *small, *more]


def test_json_is_one_object_with_the_promised_keys(run_gguf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(words(run_gguf, "-n", "3,8", "--json"), debug=True) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert result["model"] == str(run_gguf)
    assert result["machine"]["cores"] >= 1
    assert result["rounds"] == 2
    assert [(method["name"], method["n"]) for method in result["methods"]] == [("ar", 1), ("jacobi", 3), ("jacobi", 8)]
    for method in result["methods"]:
        assert {key: type(method[key]) for key in KEYS} == KEYS
        assert method["identical_equal_width"] == 1.0
        assert method["tokens_per_second"] > method["tokens_per_second_with_prefill"] > 0
        assert method["first_token_ms"] > 0
        assert method["accuracy"] == 0.0
        assert len(method["differences"]) == 0 or method["identical_width_1"] < 1.0
    baseline = result["methods"][0]
    assert (baseline["speedup"], baseline["tokens_per_forward"], baseline["identical_width_1"]) == (1.0, 1.0, 1.0)
    assert set(result["step_ms"]) == {"1", "3", "8"}
    assert result["peak_memory_bytes"] > result["model_bytes"] == run_gguf.stat().st_size
    assert result["provenance"]["packages"]["llama-cpp-python"]


def test_block_lengths_beyond_the_heads_are_those_of_other_methods(
    run_gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_random_model(tmp_path / "heads.gguf", Shape(), heads=3, counting=3.0)
    prompts = ["--prompts", str(run_gguf.with_name("heldout.jsonl"))]
    line = words(file, *prompts, "--methods", "ar,heads,jacobi", "--json", "-n")
    assert run([*line, "2,3,8"], debug=True) == 0
    found = [(method["name"], method["n"]) for method in json.loads(capsys.readouterr().out)["methods"]]
    assert found == [("ar", 1), ("heads", 2), ("heads", 3), ("jacobi", 2), ("jacobi", 3), ("jacobi", 8)]
    assert run([*line, "4,8"], debug=False) == 2
    assert f"{file} has 3 heads, and -n 4 asks for more; choose at most 3" in capsys.readouterr().err


class TestCalibrate:
    def test_json(self, run_gguf: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(["bench", "-m", str(run_gguf), "-t", "1", "--calibrate", "--json"], debug=True) == 0
        result: dict[str, Any] = json.loads(capsys.readouterr().out)
        widths = result["calibration"]["widths"]
        assert result["cost_ratio"]["1"] == result["predicted_speedup"]["1"] == 1.0
        assert set(result["cost_ratio"]) == {str(width) for width in widths}
        advice = result["advice"]
        assert [found["width"] for found in advice["widths"]] == widths[1:]
        assert [found["cllm"]["needed"] for found in advice["widths"]] == list(result["cost_ratio"].values())[1:]
        assert advice["own"] == []
        assert advice["sentence"].startswith(("worth it: ", "perhaps: ", "not on this machine in this type: "))
        assert {width for members in result["calibration"]["classes"] for width in members} <= set(widths)

    def test_tables_and_bars(self, run_gguf: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(["bench", "-m", str(run_gguf), "-t", "1", "--calibrate", "--plot"], debug=True) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].startswith(f"{run_gguf}: llama")
        assert any(line.startswith("same bits: 1") for line in lines)
        assert sum(line.startswith("    1 █") for line in lines) == 2

    def test_the_table_shows_what_was_measured(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Also where a width is faster after the longer prefix, as when llama.cpp switches kernels."""
        seconds = ((0.001, 0.0248), (0.003, 0.0202))
        measured = Calibration((128, 640), (1, 64), seconds, ((1,), (64,)), complete=True, spent=1.0)
        machine = {"processor": "one", "cores": 2}
        report = CalibrationReport("m.gguf", "a model", machine, 2, 0, True, measured, 0.5, ADVICE, {})
        print_calibration(report, plot=False)
        rows = [line.split()[:3] for line in capsys.readouterr().out.splitlines()]
        assert ["1", "1.00", "3.00"] in rows
        assert ["64", "24.80", "20.20"] in rows
        assert measured.at(64, 640) == 0.0248

    def test_the_output_ends_with_advice(self, capsys: pytest.CaptureFixture[str]) -> None:
        measured = Calibration((128,), (1, 8, 64), ((0.001, 0.002, 0.02),), ((1, 8, 64),))
        own = Prediction("jacobi", 8, 4.0, 0.002, measured=True)
        machine = {"processor": "one", "cores": 2}
        advice = replace(ADVICE, own=(own,))
        print_calibration(CalibrationReport("m", "a", machine, 2, 0, True, measured, 0.5, advice, {}), plot=False)
        lines = capsys.readouterr().out.splitlines()
        assert ["8", "2.00", "4.5", "3.80-4.20", "2.00", "4.5", "3.80-4.20"] in [line.split() for line in lines]
        assert ["64", "2.00", "4.5", "3.80-4.20"] in [line.split() for line in lines]
        assert lines[-3:] == [
            "this file by jacobi: 4.00 at 8 rows, predicted 2.00 times AR",
            "",
            "worth it: for a test",
        ]

    def test_a_file_with_both_curves(self, run_gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        file = tmp_path / "plots" / "cost.svg"
        line = ["bench", "-m", str(run_gguf), "-t", "1", "--calibrate", "--plot-file", str(file), "--json"]
        assert run(line, debug=True) == 0
        report: dict[str, Any] = json.loads(capsys.readouterr().out)
        root = ElementTree.fromstring(file.read_text())
        found = [element.text for element in root.iter("{http://www.w3.org/2000/svg}title")]
        for values in (report["cost_ratio"], report["predicted_speedup"]):
            expected = [f"{width}: {value:.3g}" for width, value in values.items()]
            assert any(found[place : place + len(expected)] == expected for place in range(len(found)))

    def test_a_plot_file_without_a_calibration(
        self, run_gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run(words(run_gguf, "--plot-file", str(tmp_path / "cost.svg")), debug=False) == 2
        message = "--plot-file draws what --calibrate measures; give --calibrate too"
        assert capsys.readouterr().err == f"nptool: error: {message}\n"
        assert not list(tmp_path.iterdir())

    def test_a_plot_without_a_calibration(self, run_gguf: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for more in (["--plot"], ["--plot", "--calibrate", "--json"]):
            assert run(words(run_gguf, *more), debug=False) == 2
            assert capsys.readouterr().err.startswith("nptool: error: --plot draws what --calibrate measures")


def test_tables_fit_80_columns(run_gguf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(words(run_gguf, "-n", "16", "--methods", "ar,jacobi,prompt-lookup-auto"), debug=True) == 0
    lines = capsys.readouterr().out.splitlines()
    tables = [line for line in lines if line.startswith(("method", "ar ", "jacobi ", "prompt-lookup-auto "))]
    assert len(tables) == 8
    assert max(map(len, tables)) <= 80
    assert not any("…" in line for line in lines)
    assert lines[0].startswith(f"{run_gguf}: llama")
    assert any("accepted drafts by position, jacobi 16: 1: " in line for line in lines)
    assert any(line.startswith("peak memory of the process: ") for line in lines)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["--methods", "warp"],
            "unknown method 'warp'; known are ar, jacobi, jacobi-block, heads, lookahead, prompt-lookup",
        ),
        (["--methods", ","], "--methods names no method; expected names such as ar,jacobi"),
        (["-n", "0"], "-n must be at least 1, got 0"),
        (["-n", "8,513"], "-n 513 is above the batch limit of 512 rows; choose a smaller n"),
        (["-n", "8,x"], "-n must be whole numbers separated by commas, such as 4,8,16; got '8,x'"),
        (["-n", ""], "-n names no block length; expected whole numbers such as 4,8,16"),
        (["--rounds", "0"], "--rounds must be at least 1, got 0"),
        (["--count", "0"], "--count must be at least 1, got 0"),
        (["--max-tokens", "0"], "--max-tokens must be at least 1, got 0"),
    ],
)
def test_bad_options(run_gguf: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str) -> None:
    assert run(words(run_gguf, *more), debug=False) == 2
    assert capsys.readouterr().err == f"nptool: error: {message}\n"


def test_bad_files(run_gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lonely = tmp_path / "lonely.gguf"
    lonely.write_bytes(run_gguf.read_bytes())
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"prompt": "a"}\n{"prompt": \n')
    missing = tmp_path / "missing.gguf"
    cases = [
        (words(missing), f"{missing} does not exist; expected a GGUF file"),
        (words(empty), f"{empty} is not a GGUF file (it does not begin with GGUF)"),
        (words(lonely), f"{lonely} has no held-out prompts beside it; name a file with --prompts FILE"),
        (words(run_gguf, "--prompts", str(empty)), f"the data set is empty: no record in {empty}"),
        (words(run_gguf, "--prompts", str(broken)), f"{broken}:2: malformed JSON"),
        (words(run_gguf, "--prompts", "none.jsonl"), "none.jsonl does not exist; expected a JSONL"),
    ]
    for line, message in cases:
        assert run(line, debug=False) == 2
        printed = capsys.readouterr()
        assert printed.err.startswith(f"nptool: error: {message}")
        assert printed.err.count("\n") == 1
        assert printed.out == ""


def test_a_prompt_longer_than_the_context_is_named_before_anything_is_measured(
    run_gguf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(words(run_gguf, "-c", "20"), debug=False) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"nptool: error: {run_gguf.with_name('heldout.jsonl').resolve()}:1: the prompt has ")
    assert error.endswith(" tokens and the context holds 20; shorten it or raise -c\n")


def test_an_interruption_is_one_line(
    run_gguf: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("nptool.bench.benchmark.compare", interrupted)
    assert run(words(run_gguf), debug=False) == 130
    expected = "nptool: interrupted; a comparison is whole or nothing, so nothing was kept\n"
    assert capsys.readouterr().err == expected
