"""The scripts for machines that are seldom at hand: they run on this one, and know what they did not measure."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from random_model import Shape, write_random_model

from nptool.llama.gguf_parts import find_parts
from nptool.llama.library import supports_gpu
from nptool.text_to_sql.newcomer import newcomer_questions

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_script_for_a_gpu_says_what_it_measured(tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    words = ["--small", "--types", "f16", "-t", "1", "--folder", str(tmp_path / "models"), "-o", str(output)]
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "cuda.py"), *words], check=True, capture_output=True, text=True
    )
    result: dict[str, Any] = json.loads(output.read_text())
    assert result["measured_gpu"] == result["gpu"]["usable"] == supports_gpu()
    if not supports_gpu():
        assert result["note"] == "NO GPU WAS MEASURED: llama.cpp found none"
    assert done.stdout.splitlines()[-1] == f"{output}: {result['note']}"
    layers = -1 if supports_gpu() else 0
    where = f"random-f16.gguf -ngl {layers} -t 1"
    compared = f"bench -m {where} --prompts heldout.jsonl --methods ar,jacobi,jacobi-auto -n 4,8"
    assert [entry["command"] for entry in result["commands"]] == [
        f"nptool bench -m {where} --calibrate --json",
        f"python benchmarks/width_exactness.py {where} --widths 1,2,4,8 --rows 24 --repeats 2 --json",
        f"nptool {compared} --rounds 1 --count 2 --max-tokens 24 --json",
        f"nptool {compared} --rounds 1 --count 2 --max-tokens 24 --temp 0.8 --seed 1 --json",
    ]
    (model,) = result["models"]
    assert model["calibration"]["cost_ratio"]["1"] == 1.0
    assert model["exactness"]["unsteady"] == []
    assert sorted(width for group in model["exactness"]["classes"] for width in group) == [1, 2, 4, 8]
    for report in model["bench"].values():
        assert [(method["name"], method["n"]) for method in report["methods"]] == [
            ("ar", 1),
            ("jacobi", 4),
            ("jacobi", 8),
            ("jacobi-auto", 8),
        ]
        assert {method["identical_equal_width"] for method in report["methods"]} == {1.0}


def test_both_ways_of_attention_are_timed(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    write_random_model(file, Shape(32, 2, 2, 1, 64, 320, context=128), kind="f32")
    words = [str(file), "--widths", "1,4", "--lengths", "8,40", "--rounds", "1", "-t", "1"]
    command = [sys.executable, str(BENCHMARKS / "attention.py"), *words]
    found = json.loads(subprocess.run([*command, "--json"], check=True, capture_output=True, text=True).stdout)
    assert [row["length"] for row in found["lengths"]] == [8, 40]
    for row in found["lengths"]:
        assert {way: [*times] for way, times in row["step_ms"].items()} == {"fused": ["1", "4"], "unfused": ["1", "4"]}
        assert all(time > 0 for times in row["step_ms"].values() for time in times.values())
        assert min(row["prefill_ms"].values()) > 0
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert shown[1].split() == ["tokens", "before", "prefill", "1", "rows", "4", "rows"]
    assert [line.split()[0] for line in shown[2:]] == ["8", "40"]


def test_shapes_are_timed_side_by_side() -> None:
    words = ["2x32x2x64", "1x32x2x128", "--vocabulary", "320", "--context", "8", "--rounds", "1", "-t", "1"]
    command = [sys.executable, str(BENCHMARKS / "shapes.py"), *words, "--widths", "1,4"]
    found = json.loads(subprocess.run([*command, "--json"], check=True, capture_output=True, text=True).stdout)
    # Embedding, unembedding, and seven matrices per layer: four in attention, three in the feed-forward.
    assert [(entry["shape"], entry["parameters"]) for entry in found["shapes"]] == [
        ("2x32x2x64", 2 * 320 * 32 + 32 + 2 * (4 * 32 * 32 + 3 * 32 * 64 + 2 * 32)),
        ("1x32x2x128", 2 * 320 * 32 + 32 + 4 * 32 * 32 + 3 * 32 * 128 + 2 * 32),
    ]
    assert all(time > 0 for entry in found["shapes"] for time in entry["milliseconds_by_width"].values())
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert [line.split()[0] for line in shown] == ["shape", "2x32x2x64", "1x32x2x128"]
    assert shown[1].split()[3] == "1.00x"
    wrong = subprocess.run([*command[:2], "4x256"], check=False, capture_output=True, text=True)
    assert wrong.returncode == 2
    assert "a shape is four numbers such as 4x256x4x1280, got 4x256" in wrong.stderr


def test_newcomers_answers_are_scored_by_kind(
    tiny_gguf: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = load("newcomer")
    (reply,) = script.of_gguf(tiny_gguf(), ["hello"], [3])
    assert isinstance(reply.text, str)

    golds = {question.prompt: question.gold for question in newcomer_questions()}
    first = next(iter(golds))

    def scripted(path: Path, prompts: list[str], limits: list[int]) -> list[Any]:
        assert (limits[:60], limits[60:]) == ([192] * 60, [64] * 8)
        golds[first] = "SELECT 1"
        return [script.Reply(golds.get(prompt, ""), prompt != "hello") for prompt in prompts]

    monkeypatch.setattr(script, "of_gguf", scripted)
    monkeypatch.setattr(sys, "argv", ["newcomer.py", "model.gguf"])
    script.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("WRONG")] == ["WRONG  count"]
    assert "count         4 of 5" in lines
    assert "all          59 of 60 (98.3%)" in lines
    assert lines[-1] == "no question: 7 of 8 answers end within 64 tokens"


class Kernels:
    """An engine whose last bits depend on the width of a batch, and perhaps on a row's place in it."""

    capacity, width, batch_limit, vocabulary_size, seconds = 100, 16, 32, 12, 0.0

    def __init__(self, kernel: Callable[[int, int], float]) -> None:
        """Args: `kernel` gives what is added to a row's logits, from width and place in the batch."""
        self._kernel = kernel
        self._cache: list[int] = []

    def evaluate(self, tokens: NDArray[np.int32], start: int, *, outputs: bool = True) -> NDArray[np.float32]:
        assert start == len(self._cache)
        rows = []
        for place, token in enumerate(tokens.tolist()):
            self._cache.append(token)
            logits = np.zeros(self.vocabulary_size)
            logits[sum(self._cache) % self.vocabulary_size] = 1.0
            rows.append(logits + self._kernel(len(tokens), place) * np.arange(self.vocabulary_size))
        return np.asarray(rows, dtype=np.float32)

    def rollback(self, position: int) -> None:
        del self._cache[position:]


@pytest.mark.parametrize(
    ("kernel", "classes", "unsteady"),
    [
        (lambda rows, place: 0.0, [[1, 2, 4, 8]], []),
        (lambda rows, place: float(rows == 1) / 1024, [[1], [2, 4, 8]], []),
        (lambda rows, place: float(rows in (2, 8)) / 1024, [[1, 4], [2, 8]], []),
        (lambda rows, place: float(rows == 4 and place == 2) / 1024, [[1, 2, 8]], [4]),
    ],
)
def test_classes_of_widths_by_decoding(
    kernel: Callable[[int, int], float], classes: list[list[int]], unsteady: list[int]
) -> None:
    found = load("width_exactness").compare_widths(Kernels(kernel), [1, 2, 4, 8], (10, 90), 30, 3)
    assert (found["classes"], found["unsteady"]) == (classes, unsteady)
    assert (found["contexts"], found["rows"]) == ([10, 70], 60)
    assert found["largest_difference"]["1"] == 0.0
    differing = {width for width in (2, 4, 8) if width not in next(group for group in classes if 1 in group)}
    assert {int(width) for width, value in found["largest_difference"].items() if value} == differing


@pytest.mark.parametrize(
    ("calibrated", "exact", "expected"),
    [
        ([[1], [2, 3, 4]], [[1], [2, 4]], True),
        ([[1], [2, 4]], [[1, 2, 4]], True),
        ([[1, 2], [4]], [[1], [2, 4]], False),
    ],
)
def test_classes_that_calibration_found_are_confirmed_or_not(
    calibrated: list[list[int]], exact: list[list[int]], expected: bool
) -> None:
    assert load("cuda").confirmed(calibrated, exact) is expected


def test_memory_of_heads_is_measured_beside_what_is_known(tmp_path: Path) -> None:
    shape = Shape(hidden=64, heads=4, key_value_heads=2, vocabulary=320)
    path = write_random_model(tmp_path / "heads.gguf", shape, kind="f16", heads=3)
    words = ["-c", "128", "--rounds", "1", "--json"]
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "heads_decoding_memory.py"), str(path), *words],
        check=True,
        capture_output=True,
        text=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    assert len(found["resident_mib"]) == 3
    assert found["each_head_mib"] == (found["resident_mib"][2] - found["resident_mib"][0]) / 2
    first, second = find_parts(path).heads
    assert found["head_in_file_mib"] == first.size / 2**20 == second.size / 2**20
    assert found["unembedding_mib"] == 2 * 320 * 64 / 2**20
    assert found["cache_mib"] == 2 * 2 * 128 * 2 * 16 / 2**20
