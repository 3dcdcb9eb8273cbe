"""`--type auto`: the decision on invented figures, the figures on small models, and what is left on disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_model import Shape, write_random_model

from nptool.bench.prediction import Prediction
from nptool.cli.app import run
from nptool.convert.file_types import FILE_TYPES
from nptool.decoding.text_model import TextModel
from nptool.errors import GgufError
from nptool.llama.context import Context
from nptool.llama.gguf_check import read_header
from nptool.llama.model import Model
from nptool.pipeline import type_choice
from nptool.pipeline.type_choice import (
    CANDIDATES,
    Candidate,
    Continuation,
    choose_for_checkpoint,
    choose_for_file,
    decide,
    draw_sample,
    greedy_choices,
    possible_types,
)
from nptool.runs import Run

FILE_TYPE_KEY = "general.file_type"


@pytest.fixture(autouse=True)
def _one_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type_choice, "ROUNDS", 1)


def candidate(name: str, speed: float, same: float = 1.0, width: int = 8) -> Candidate:
    return Candidate(name, speed, Prediction("heads", width, 5.9, 0.001, measured=True), same, 1000)


class TestDecision:
    def test_the_fastest_that_keeps_the_tokens(self) -> None:
        choice = decide(
            [candidate("f32", 1.0), candidate("f16", 2.0), candidate("q8_0", 2.62), candidate("q4_0", 3.0, 0.94)], {}
        )
        assert choice.type == "q8_0"
        assert choice.sentence == (
            "q8_0: 1.31 times f16 here by t(8) and 5.9 tokens per forward; q4_0 would be faster but changes 6 % of "
            "greedy tokens"
        )

    def test_f16(self) -> None:
        kept, lost = candidate("f16", 2.0), candidate("q4_0", 3.0, 0.5)
        assert decide([kept, candidate("q8_0", 1.0)], {}).sentence == (
            "f16: the fastest here by t(8) and 5.9 tokens per forward"
        )
        assert decide([kept, lost], {}).sentence == (
            "f16: the fastest here that keeps 99% of greedy tokens by t(8) and 5.9 tokens per forward; q4_0 would be "
            "faster but changes 50 % of greedy tokens"
        )

    def test_several_that_are_faster(self) -> None:
        found = [candidate("f32", 1.0), candidate("f16", 2.0, 0.98), candidate("q8_0", 3.0, 0.9)]
        found.append(candidate("q4_0", 4.0, 0.5))
        assert decide(found, {}).sentence == (
            "f32: 0.50 times f16 here by t(8) and 5.9 tokens per forward; f16, q8_0 and q4_0 would be faster but "
            "change 2, 10 and 50 % of greedy tokens"
        )

    def test_f16_was_not_possible(self) -> None:
        choice = decide([candidate("f32", 1.0)], {"f16": "a reason"})
        assert (choice.type, choice.impossible) == ("f32", {"f16": "a reason"})

    def test_no_type_is_good_enough(self) -> None:
        with pytest.raises(GgufError, match=r"q4_0 changes 50 % of greedy tokens; a reason\); name a type"):
            decide([candidate("q4_0", 3.0, 0.5)], {"f16": "a reason"})
        with pytest.raises(GgufError, match="refuses every type: a reason"):
            decide([], {"f16": "a reason"})


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("f32", ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_k_m"]),
        ("f16", ["f16", "bf16", "q8_0", "q4_0", "q4_k_m"]),
        ("bf16", ["bf16", "f16", "q8_0", "q4_0", "q4_k_m"]),
    ],
)
def test_no_candidate_is_larger_than_the_source(kind: str, expected: list[str], tiny_gguf: Callable[..., Path]) -> None:
    assert possible_types(tiny_gguf(kind)) == expected


def test_choices_are_those_of_a_plain_loop(tiny_gguf: Callable[..., Path]) -> None:
    """One token after the other in a context of its own."""
    path = tiny_gguf()
    prompts = (np.array([7], np.int32), np.arange(3, 43, dtype=np.int32))
    answers = (np.array([30, 31, 32], np.int32), np.array([9], np.int32))
    sample = [Continuation(*pair) for pair in zip(prompts, answers, strict=True)]
    with TextModel(path) as model:
        found = greedy_choices(model, sample)
        assert np.array_equal(greedy_choices(model, sample), found)
    expected = []
    with Model.load(path) as loaded, Context(loaded, 64) as context:
        for prompt, answer in sample:
            context.clear()
            for place, token in enumerate([*prompt, *answer[:-1]]):
                row = context.evaluate(np.array([token], np.int32), place)[0].argmax()
                if place >= len(prompt) - 1:
                    expected.append(row)
    assert found.tolist() == expected


def test_the_sample_is_the_models_own_greedy_text(run_gguf: Path, tiny_gguf: Callable[..., Path]) -> None:
    with TextModel(run_gguf) as model:
        sample = draw_sample(model, run_gguf.with_name("heldout.jsonl"))
        assert len(sample) == 3
        answers = np.concatenate([answer for _, answer in sample])
        assert (greedy_choices(model, sample) == answers).mean() > 0.95
        assert all(len(prompt) <= 512 and 1 <= len(answer) <= 64 for prompt, answer in sample)
    with TextModel(tiny_gguf()) as model:
        assert 8 <= len(draw_sample(model, None)) <= 12


def test_a_small_context_cuts_prompts(tmp_path: Path) -> None:
    with TextModel(write_random_model(tmp_path / "m.gguf", Shape(context=96))) as model:
        sample = draw_sample(model, None)
        assert max(len(prompt) for prompt, _ in sample) == 32
        assert len(greedy_choices(model, sample)) == sum(len(answer) for _, answer in sample)


def test_quantize(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The file is the one that the chosen type gives by name; nothing else is left, and the source is as it was."""
    source = write_random_model(tmp_path / "source.gguf", Shape(hidden=64), heads=3, counting=3.0)
    before = source.read_bytes()
    target = tmp_path / "out" / "auto.gguf"
    assert run(["quantize", str(source), str(target), "auto", "--json"], debug=True) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    choice = found["choice"]
    assert choice["type"] == found["file_type"] in CANDIDATES
    assert {one["type"] for one in choice["candidates"]} | set(choice["impossible"]) == set(CANDIDATES)
    shares = {one["type"]: one["same"] for one in choice["candidates"]}
    assert (shares["f32"], shares[choice["type"]] >= 0.99) == (1.0, True)
    assert all(one["speed"] > 0 for one in choice["candidates"])
    assert run(["quantize", str(source), str(tmp_path / "named.gguf"), choice["type"]], debug=True) == 0
    assert target.read_bytes() == (tmp_path / "named.gguf").read_bytes()
    assert source.read_bytes() == before
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["auto.gguf", "named.gguf", "out", "source.gguf"]


def test_the_sentence_is_printed_first(
    tiny_gguf: Callable[..., Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type_choice, "_measure", lambda source, path, name, *_: candidate(name, float(len(name))))
    assert run(["quantize", str(tiny_gguf()), "out.gguf", "AUTO"], debug=True) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "q4_k_m: 2.00 times f16 here by t(8) and 5.9 tokens per forward"
    assert lines[1].startswith("out.gguf: q4_k_m, ")


def test_a_type_that_the_quantizer_refuses(
    tiny_gguf: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Path, path: Path, name: str, **_: Any) -> None:
        if name != "f16":
            raise GgufError(f"no {name}")
        path.write_bytes(source.read_bytes())

    monkeypatch.setattr(type_choice, "quantize", refuse)
    choice = choose_for_file(tiny_gguf("f16"), tmp_path / "out.gguf")
    assert choice.type == "f16"
    assert choice.impossible == {name: f"no {name}" for name in ("bf16", "q8_0", "q4_0", "q4_k_m")}


@pytest.mark.parametrize("error", [KeyboardInterrupt, GgufError("damaged")])
def test_nothing_is_left_after_an_error(
    error: Any, tiny_gguf: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Candidate:
        raise error

    monkeypatch.setattr(type_choice, "_measure", fail)
    with pytest.raises(type(error) if isinstance(error, Exception) else error):
        choose_for_file(tiny_gguf(), tmp_path / "out.gguf")
    assert list(tmp_path.iterdir()) == []


def test_a_quantized_source_is_refused(
    tiny_gguf: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["quantize", str(tiny_gguf("q8_0")), str(tmp_path / "out.gguf"), "auto"], debug=False) == 2
    assert "is already quantized (Q8_0)" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_convert(make_checkpoint: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run's checkpoint: its own held-out prompts are the sample, and the file is verified."""
    made = Run.create("one", tmp_path / "runs")
    made.config.write_text("{}")
    made.heldout.write_text('{"prompt": "select all"}\n{"prompt": "one two"}\n')
    make_checkpoint().rename(made.model)
    capsys.readouterr()
    assert run(["convert", str(made.model), "--type", "auto", "--json"], debug=True) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found["path"] == str(made.gguf)
    assert found["file_type"] == found["choice"]["type"]
    assert found["verification"] is not None
    assert read_header(made.gguf).metadata[FILE_TYPE_KEY] == FILE_TYPES[found["file_type"]].number
    assert sorted(path.name for path in made.path.iterdir()) == ["config.json", "heldout.jsonl", "model", "model.gguf"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"]


def test_a_copy_in_f32_that_does_not_fit_in_memory_is_one_in_f16(
    make_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type_choice, "free_memory", lambda: 1 << 20)
    monkeypatch.setattr(type_choice, "_measure", lambda source, path, name, *_: candidate(name, 1.0))
    choice = choose_for_checkpoint(make_checkpoint(), tmp_path / "out.gguf")
    assert [one.type for one in choice.candidates] == ["f16", "bf16", "q8_0", "q4_0", "q4_k_m"]
