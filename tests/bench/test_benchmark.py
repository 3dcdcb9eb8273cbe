"""Comparisons of methods on random models in llama.cpp."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from random_model import Shape, write_random_model

from nptool.bench.benchmark import run_bench
from nptool.bench.config import BenchConfig
from nptool.decoding.loop.sampling import Sampling
from nptool.llama.loading import LoadOptions


@pytest.mark.parametrize("method", ["jacobi", "jacobi-block", "lookahead", "prompt-lookup"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("kind", ["f32", "f16", "q8_0"])
def test_every_method_gives_the_text_of_equal_width(
    run_gguf: Path, tmp_path: Path, kind: str, temperature: float, method: str
) -> None:
    file = write_random_model(
        tmp_path / f"{kind}.gguf", Shape(hidden=32, heads=2, key_value_heads=1, feed_forward=64), kind=kind, seed=1
    )
    config = BenchConfig(
        model=file,
        prompts=run_gguf.with_name("heldout.jsonl"),
        methods=(method,),
        n=(4, 16),
        max_tokens=16,
        rounds=1,
        count=2,
        sampling=Sampling(temperature=temperature, seed=7),
        load=LoadOptions(threads=1),
    )
    report = run_bench(config)
    assert [item.identical_equal_width for item in report.methods] == [1.0, 1.0, 1.0]
    for item in report.methods:
        assert (item.identical_width_1 == 1.0) == (item.margin_worst is None)


@pytest.mark.parametrize("kind", ["f16", "q8_0"])
def test_methods_that_choose_their_widths(run_gguf: Path, tmp_path: Path, kind: str) -> None:
    file = write_random_model(tmp_path / f"{kind}.gguf", Shape(), kind=kind, metadata={"nptool.method": "cllm"})
    report = run_bench(
        BenchConfig(
            model=file,
            prompts=run_gguf.with_name("heldout.jsonl"),
            methods=("jacobi-auto", "jacobi-free"),
            n=(4, 8),
            max_tokens=24,
            rounds=2,
            count=2,
            load=LoadOptions(threads=1),
        )
    )
    baseline, exact, free = report.methods
    assert [(item.name, item.n) for item in report.methods] == [("ar", 1), ("jacobi-auto", 8), ("jacobi-free", 8)]
    assert baseline.passes_by_width == {"1": baseline.forward_passes}
    assert exact.identical_equal_width == 1.0
    for item in (exact, free):
        assert sum(item.passes_by_width.values()) == item.forward_passes
        assert max(int(rows) for rows in item.passes_by_width) <= 8
    assert set(report.step_ms) == {"1", "2", "3", "4", "6", "8"}


@pytest.mark.parametrize(("heads", "name"), [(4, "auto"), (1, "jacobi-auto")])
def test_the_method_of_each_text_is_chosen(run_gguf: Path, tmp_path: Path, heads: int, name: str) -> None:
    file = write_random_model(tmp_path / "heads.gguf", Shape(), kind="q8_0", heads=heads, counting=3.0)
    report = run_bench(
        BenchConfig(
            model=file,
            prompts=run_gguf.with_name("heldout.jsonl"),
            methods=("auto",),
            n=(8,),
            max_tokens=24,
            rounds=2,
            count=2,
            load=LoadOptions(threads=1),
        )
    )
    (_, chosen) = report.methods
    assert (chosen.name, chosen.n, chosen.identical_equal_width) == (name, 8, 1.0)
    assert sum(chosen.answers_by_method.values()) == 4
    assert set(chosen.answers_by_method) <= ({"jacobi", "heads"} if heads > 1 else {"jacobi"})


def test_the_library_imports_no_training_framework() -> None:
    program = "import nptool.bench.benchmark, sys\nprint({'torch', 'transformers'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert result.stdout == "set()\n"
