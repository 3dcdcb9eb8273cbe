"""What is kept of decoding between processes: under which key, what a damaged file does, and that a model uses it."""

from __future__ import annotations

import json
from collections.abc import Callable
from math import log
from pathlib import Path
from typing import Any

import pytest

import nptool
from nptool.cache_folder import OVERRIDE
from nptool.decoding.adaptive import knowledge
from nptool.decoding.adaptive.learnt import Learnt
from nptool.decoding.adaptive.learnt_cache import learnt_file, load_learnt, store_learnt
from nptool.decoding.adaptive.policy import GUESSED, MEASURED, Evidence, Prior
from nptool.decoding.adaptive.priors import TRAINED, UNTRAINED, prior_of
from nptool.decoding.answer import Answer, DecodeConfig
from nptool.decoding.text_model import TextModel

KEY = {"model": "a", "threads": 2}
LEARNT = Learnt(
    Prior(0.4, 5.0),
    {4: Evidence(6.0, 11.5), 8: Evidence(3.0, 9.0)},
    {4: Evidence(9.0, 17.5), 8: Evidence(40.0, 110.0)},
    {1: 1.1, 8: 1.3},
    {8: 0.9},
    True,
    1.3,
    0.001,
    -0.02,
    "ab",
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(OVERRIDE, str(tmp_path))
    return tmp_path


class TestFiles:
    def test_what_is_kept_is_found_under_its_key_and_method_only(self, folder: Path) -> None:
        assert load_learnt(KEY, "jacobi") is None
        store_learnt(KEY, "jacobi", LEARNT)
        assert load_learnt(KEY, "jacobi") == LEARNT
        assert load_learnt(KEY, "heads") is None
        assert load_learnt(KEY | {"threads": 3}, "jacobi") is None
        assert [path.suffix for path in folder.rglob("*") if path.is_file()] == [".json"]

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("prior", {"exponent": -0.1, "steps": 2}),
            ("prior", 0.5),
            ("recent", {"1": {"steps": 1, "tokens": 1}}),
            ("recent", {"8": {"steps": 2, "tokens": 17}}),
            ("long", {"8": {"steps": 2, "tokens": 1}}),
            ("long", [8]),
            ("ratios", {"8": 0}),
            ("ratios", {"8": float("nan")}),
            ("plain_ratios", {"8": 0}),
            ("plain_ratios", {"4": 1.1}),
            ("plain_stepped", 1),
            ("newest_ratio", "fast"),
            ("drafting", -1),
            ("saved", float("inf")),
        ],
    )
    def test_a_damaged_file_is_one_line_and_then_replaced(
        self, folder: Path, caplog: pytest.LogCaptureFixture, name: str, value: Any
    ) -> None:
        store_learnt(KEY, "jacobi", LEARNT)
        path = learnt_file(KEY, "jacobi")
        saved = json.loads(path.read_text())
        saved["experience"][name] = value
        path.write_text(json.dumps(saved))
        assert load_learnt(KEY, "jacobi") is None
        (record,) = caplog.records
        assert record.getMessage().startswith(f"{path} is damaged and will be written anew (")
        store_learnt(KEY, "jacobi", LEARNT)
        assert load_learnt(KEY, "jacobi") == LEARNT

    @pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"format": 3}', '{"format": 4, "key": {}}', "\ud800"])
    def test_a_foreign_one_is_not_used(self, folder: Path, text: str) -> None:
        store_learnt(KEY, "jacobi", LEARNT)
        learnt_file(KEY, "jacobi").write_bytes(text.encode("utf-8", "surrogatepass"))
        assert load_learnt(KEY, "jacobi") is None

    def test_a_folder_that_cannot_be_written_is_no_error(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (folder / "file").write_text("")
        monkeypatch.setenv(OVERRIDE, str(folder / "file"))
        store_learnt(KEY, "jacobi", LEARNT)
        assert load_learnt(KEY, "jacobi") is None


class TestPriors:
    def test_of_a_jacobi_method_from_what_was_measured(self) -> None:
        file = {"nptool.method": "cllm"}
        figures = {"nptool.measured.tokens_per_forward": 4.0, "nptool.measured.block_size": 16}
        assert prior_of(file | figures, "jacobi-block") == Prior(0.5, MEASURED)
        assert prior_of(file | figures, "lookahead") == Prior(0.5, MEASURED)
        # In windows 1 + 1.36 * (4 - 1) of 16.
        assert prior_of(file | figures, "jacobi") == Prior(pytest.approx(log(5.08) / log(16)), MEASURED)
        most = figures | {"nptool.measured.tokens_per_forward": 15.0}
        assert prior_of(file | most, "jacobi") == Prior(1.0, MEASURED)
        assert prior_of(file | figures, "prompt-lookup") == Prior(TRAINED, GUESSED)
        assert prior_of(file, "jacobi") == Prior(TRAINED, GUESSED)
        assert prior_of({}, "jacobi") == Prior(UNTRAINED, GUESSED)
        for damaged in ({"nptool.measured.block_size": 1}, {"nptool.measured.tokens_per_forward": "4"}):
            assert prior_of(file | figures | damaged, "jacobi") == Prior(TRAINED, GUESSED)

    def test_of_heads_from_their_accuracies(self) -> None:
        file = {"nptool.heads.accuracy": [0.5, 0.2, 1.0, 0.0, 1.0, 0.0], "nptool.heads.accuracy_ranks": 2}
        # 1 + 0.5 + 0.5 + 0.5 of 4
        assert prior_of(file, "heads") == Prior(pytest.approx(0.661, abs=1e-3), MEASURED)
        assert prior_of({}, "heads") == Prior(0.5, GUESSED)


class TestModel:
    def test_a_process_begins_where_the_one_before_ended(
        self, folder: Path, tiny_gguf: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # However busy the machine was: a calibration that is made anew has other times.
        monkeypatch.setattr(knowledge, "_DISTURBED", 0.0)
        path = tiny_gguf("q8_0", metadata={"nptool.method": "cllm"})
        with nptool.load(path, threads=1) as model:
            first = answer(model, "once")
            widest = model.block_length(DecodeConfig("jacobi", adapt=True))
            ended = model.knowledge.experience("jacobi", widest).learnt()
        with nptool.load(path, threads=1) as model:
            assert model.knowledge.experience("jacobi", widest).learnt() == ended
            assert model.knowledge.experience("jacobi", widest, "bench").prior == Prior(TRAINED, GUESSED)
            assert model.knowledge.experience("jacobi-block", widest).prior == Prior(TRAINED, GUESSED)
        assert first.tally.tokens == 40

    def test_what_was_not_used_is_not_kept(self, folder: Path, tiny_gguf: Callable[..., Path]) -> None:
        path = tiny_gguf("q8_0")
        with nptool.load(path, threads=1) as model:
            model.knowledge.experience("jacobi", 64)
            answer(model, "once", n=4)
        assert not (folder / "experience").exists()

    def test_a_damaged_file_is_no_crash(
        self, folder: Path, tiny_gguf: Callable[..., Path], caplog: pytest.LogCaptureFixture
    ) -> None:
        path = tiny_gguf("q8_0", metadata={"nptool.method": "cllm"})
        with nptool.load(path, threads=1) as model:
            answer(model, "once")
        (kept,) = (folder / "experience").iterdir()
        kept.write_text("{")
        with nptool.load(path, threads=1) as model:
            answer(model, "once")
        assert [record.getMessage().split(" is ")[0] for record in caplog.records] == [str(kept)]
        assert json.loads(kept.read_text())["key"]["method"] == "jacobi"


def answer(model: TextModel, prompt: str, n: Any = "auto") -> Answer:
    found = model.generate(prompt, jacobi=True, n=n, max_tokens=40)
    for _ in found:
        pass
    return found
