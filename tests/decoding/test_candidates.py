"""benchmarks/candidates.py on a random model: texts and counts are those of the product's own decoding."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from nptool.decoding.calibration import Calibration
from nptool.decoding.generate import TextModel
from nptool.llama.random_model import Shape, write_random_model
from nptool.text_to_sql import generate_examples


@pytest.fixture(scope="module")
def script(benchmark_module: Callable[[str], ModuleType]) -> Any:
    return benchmark_module("candidates")


def test_what_is_worth_keeping(script: Any) -> None:
    """t(w) is 1 up to 4 rows and 2 from 8 on; the best window has 4 rows and 2 tokens per pass."""
    calibration = Calibration((10,), (1, 4, 8), ((1.0, 1.0, 2.0),), ())

    def count(name: str, rows: int, forwards: int, needed: int) -> Any:
        return script.Count(name, 4, rows, tokens=120, forwards=forwards, needed=Counter({needed: forwards}))

    counts = [count("window", 4, 60, 4), count("window", 8, 40, 8), count("some", 8, 37, 8), count("other", 8, 36, 4)]
    *windows, some, other = script.judge(counts, script.Costs(calibration, 10.0))
    assert [row["worth_keeping"] for row in windows] == [False, False]
    assert [row["speedup_fixed"] for row in windows] == [2.0, 1.5]
    assert some["forwards_saved"] == pytest.approx(3 / 40)
    assert some["speedup_needed"] == some["speedup_fixed"] == pytest.approx(120 / 37 / 2)
    assert not some["worth_keeping"]
    assert other["speedup_needed"] == pytest.approx(120 / 36)
    assert other["faster_than_best_window"] == pytest.approx(120 / 36 / 2 - 1)
    assert other["worth_keeping"]


ARGUMENTS = ("--count", "3", "--max-tokens", "24", "-n", "3,8", "--branches", "1,2", "-t", "1")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("candidates")
    prompts = folder / "prompts.jsonl"
    prompts.write_text(
        "\n".join(json.dumps(example.to_record()) for example in generate_examples("heldout", 3, seed=0))
    )
    shape = Shape(hidden=32, heads=2, key_value_heads=1, feed_forward=64)
    return SimpleNamespace(model=write_random_model(folder / "model.gguf", shape), prompts=prompts)


def run(script: Any, files: SimpleNamespace, patch: pytest.MonkeyPatch, *more: str) -> None:
    patch.setattr(sys, "argv", ["candidates.py", str(files.model), str(files.prompts), *ARGUMENTS, *more])
    script.main()


def test_texts_and_counts_are_those_of_the_product(
    script: Any, files: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(script, files, monkeypatch, "--json")
    result = json.loads(capsys.readouterr().out)
    rows = result["variants"]
    assert {row["name"] for row in rows} == {"window", *script.COMBINATIONS, *script.IN_FLIGHT}
    assert [row["different"] for row in rows] == [0] * len(rows)
    prompts = [json.loads(line)["prompt"] for line in files.prompts.read_text().splitlines()]
    with TextModel(files.model, threads=1) as model:

        def total(**options: Any) -> tuple[int, int]:
            """Tokens and passes of the product's own decoding."""
            found = []
            for prompt in prompts:
                answer = model.generate(prompt, max_tokens=24, exact=True, **options)
                found.append((sum(1 for _ in answer), answer.tally.passes))
            return sum(tokens for tokens, _ in found), sum(passes for _, passes in found)

        for row in rows:
            tokens, passes = total(n=row["rows"])
            assert tokens == passes == row["tokens"]
            assert row["tokens"] / row["rows"] <= row["forwards"] <= row["tokens"]
            assert row["tokens_per_forward"] == row["tokens"] / row["forwards"]
            assert 1 <= row["rows_needed"] <= row["rows"]
            if row["name"] == "window":
                assert total(jacobi=True, n=row["rows"]) == (row["tokens"], row["forwards"])
            if row["name"] == "block":
                assert total(block_mode=True, n=row["n"]) == (row["tokens"], row["forwards"])


def test_the_table_from_earlier_counts(
    script: Any,
    files: SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run(script, files, monkeypatch, "--json")
    counted = tmp_path / "counted.json"
    counted.write_text(capsys.readouterr().out)
    files = SimpleNamespace(model=files.model, prompts=tmp_path / "missing.jsonl")
    run(script, files, monkeypatch, "--counts", str(counted), "--json")
    again = json.loads(capsys.readouterr().out)
    assert again["variants"] == json.loads(counted.read_text())["variants"]
    run(script, files, monkeypatch, "--counts", str(counted))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "model.gguf, 3 prompts; branches of 4 tokens"
    names = Counter(line[:18].strip() for line in lines[3:])
    # Of 3 tokens all have to be accepted until 85 % are, and then the next block begins anyway.
    assert names == dict.fromkeys(script.COMBINATIONS, 4) | {
        "window": 8,
        "block": 2,
        "2 blocks": 1,
        "2 blocks at once": 2,
    }
