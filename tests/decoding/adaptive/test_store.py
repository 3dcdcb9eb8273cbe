"""What is kept of decoding between processes: under which key, what a damaged file does, and that a model uses it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest

import nptool
from nptool.cache_folder import OVERRIDE
from nptool.decoding.adaptive.chooser import Chooser
from nptool.decoding.adaptive.cost import GRID, Calibration
from nptool.decoding.adaptive.gains import Gains
from nptool.decoding.adaptive.store import Store
from nptool.decoding.answer import Answer
from nptool.decoding.loop.steps import Step
from nptool.decoding.text_model import TextModel

KEY = {"model": "a", "threads": 2}
SMALL = Calibration((128, 640), (1, 2, 4), ((1.0, 1.5, 2.4), (2.0, 2.5, 3.5)), ((1,), (2, 4)), False, 1.5)
STEPS = [Step(130, 4, 3, 2, 2.4, 0.1), Step(133, 4, 3, 1, 2.6, 0.1), Step(135, 1, 0, 0, 1.1)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(OVERRIDE, str(tmp_path))
    return tmp_path


def never() -> Calibration:
    pytest.fail("measured")


def store(measure: Callable[[], Calibration] = never, **key: Any) -> Store:
    return Store(lambda: KEY | key, measure)


def use(kept: Store) -> Chooser:
    """Three steps of the method `heads`."""
    chooser = kept.chooser()
    chooser.add("heads", Gains(0.4, independent=True))
    chooser.learn("heads", STEPS, None)
    return chooser


class TestFile:
    def test_what_is_kept_is_found_under_its_key_only(self, folder: Path) -> None:
        first = store(lambda: SMALL)
        assert first.calibration == SMALL
        learnt = use(first).to_json()
        first.keep()
        again = store()
        assert again.calibration == SMALL
        assert json.dumps(again.chooser().to_json()) == json.dumps(learnt)
        assert store(lambda: replace(SMALL, spent=9.0), threads=3).calibration.spent == 9.0
        assert [path.suffix for path in folder.rglob("*") if path.is_file()] == [".json"] * 2

    def test_a_purpose_is_kept_apart_and_not_kept(self, folder: Path) -> None:
        kept = store(lambda: SMALL)
        use(kept)
        kept.keep()
        assert store().chooser("bench").to_json()["gains"] == {}
        assert store().chooser().to_json()["gains"].keys() == {"heads"}

    def test_a_method_that_is_not_used_again_stays_known(self, folder: Path) -> None:
        first = store(lambda: SMALL)
        learnt = use(first).to_json()["gains"]["heads"]
        first.keep()
        second = store()
        second.chooser().add("jacobi", Gains(0.5))
        second.chooser().learn("jacobi", STEPS[2:], None)
        second.keep()
        exponent, weight, shown = store().chooser().to_json()["gains"]["heads"]
        assert [exponent, weight, shown] == list(learnt)

    @pytest.mark.parametrize(
        "damage", [lambda text: text[:-9], lambda text: text.replace("2.4", "2.5"), lambda text: "["]
    )
    def test_a_damaged_file_is_one_line_and_then_replaced(
        self, folder: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[str], str]
    ) -> None:
        first = store(lambda: SMALL)
        use(first)
        first.keep()
        path = first.file.path
        path.write_text(damage(path.read_text()))
        assert store(lambda: SMALL).calibration == SMALL
        (record,) = caplog.records
        assert record.getMessage().startswith(f"{path} is damaged and will be written again (")
        assert store().calibration == SMALL

    @pytest.mark.parametrize(
        "text", ["", "{", "[]", "null", "3", "[" * 100_000, '{"value": 1}', '{"digest": "", "value": {}}', "\ud800"]
    )
    def test_a_foreign_one_is_not_used(self, folder: Path, text: str) -> None:
        first = store(lambda: SMALL)
        assert first.calibration == SMALL
        first.file.path.write_bytes(text.encode("utf-8", "surrogatepass"))
        assert store(lambda: replace(SMALL, spent=9.0)).calibration.spent == 9.0

    @pytest.mark.parametrize(
        "change",
        [
            lambda value: value[0].update(extra=1),
            lambda value: value[0].pop("classes"),
            lambda value: value[1].pop("pace"),
            lambda value: value[1]["gains"].update(heads=[0.5, 2.0]),
            lambda value: value.pop(),
            lambda value: value.clear(),
        ],
    )
    def test_a_file_of_another_layout_is_measured_again(
        self, folder: Path, caplog: pytest.LogCaptureFixture, change: Callable[[Any], object]
    ) -> None:
        """Whole, with a digest that is right: of a version whose fields differ."""
        first = store(lambda: SMALL)
        use(first)
        first.keep()
        value = first.file.load()
        change(value)
        first.file.store(value)
        again = store(lambda: replace(SMALL, spent=9.0))
        assert again.calibration.spent == 9.0
        assert again.chooser().to_json()["gains"] == {}
        assert caplog.records[0].getMessage().startswith(f"{first.file.path} has another layout and will be written")
        assert store().calibration.spent == 9.0

    def test_a_folder_that_cannot_be_written_is_no_error(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (folder / "file").write_text("")
        monkeypatch.setenv(OVERRIDE, str(folder / "file"))
        kept = store(lambda: SMALL)
        use(kept)
        kept.keep()
        assert store(lambda: replace(SMALL, spent=9.0)).calibration.spent == 9.0


class TestModel:
    def test_a_process_begins_where_the_one_before_ended(
        self, folder: Path, tiny_gguf: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # However busy the machine was: a calibration that is made again has other times.
        monkeypatch.setattr("nptool.decoding.adaptive.store.DISTURBED", 0.0)
        path = tiny_gguf("q8_0", metadata={"nptool.method": "cllm"})
        with nptool.load(path, threads=1) as model:
            first = answer(model, "once")
            ended = model.store.chooser().to_json()
        with nptool.load(path, threads=1) as model:
            found = model.store.chooser().to_json()
            assert json.dumps(found) == json.dumps(ended)
        assert first.tally.tokens == 40

    def test_what_was_not_used_is_not_kept(self, folder: Path, tiny_gguf: Callable[..., Path]) -> None:
        with nptool.load(tiny_gguf("q8_0"), threads=1) as model:
            answer(model, "once", n=4)
        assert not (folder / "decoding").exists()

    def test_a_model_is_calibrated_once(
        self, folder: Path, tiny_gguf: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with nptool.load(tiny_gguf("f16"), threads=1) as model:
            found = model.calibration
            assert found.widths == GRID[: len(found.widths)]
        monkeypatch.setattr("nptool.decoding.text_model.calibrate", lambda *_, **__: pytest.fail("measured twice"))
        with nptool.load(tiny_gguf("f16"), threads=1) as model:
            assert model.calibration == found

    @pytest.mark.parametrize(("factor", "again"), [(1.0, False), (100.0, True)])
    def test_a_calibration_that_was_disturbed_is_measured_again(
        self,
        folder: Path,
        tiny_gguf: Callable[..., Path],
        monkeypatch: pytest.MonkeyPatch,
        factor: float,
        again: bool,
    ) -> None:
        made = list[Calibration]()

        def slow(*_: Any, **__: Any) -> Calibration:
            """Times `factor` as long as steps take later."""
            seconds = ((1e-3 * factor, 1.1e-3 * factor),)
            made.append(Calibration((128,), (1, 2), seconds, ((1, 2),), complete=True, spent=1.0))
            return made[-1]

        monkeypatch.setattr("nptool.decoding.text_model.calibrate", slow)
        # Every step takes a millisecond.
        monkeypatch.setattr("nptool.decoding.loop.loop.perf_counter", (1e-3 * tick for tick in count()).__next__)
        for _ in range(2):
            with nptool.load(tiny_gguf("f16"), threads=1) as model:
                for _ in model.stream("once", method="jacobi", max_tokens=60):
                    pass
        assert len(made) == (2 if again else 1)

    def test_another_process_s_calibration_stays(self, folder: Path, tiny_gguf: Callable[..., Path]) -> None:
        with nptool.load(tiny_gguf("f16"), threads=1) as model:
            sound = model.calibration
            model.store.calibration = replace(sound, seconds=tuple((1e3,) * len(row) for row in sound.seconds))
            for _ in model.stream("once", method="jacobi", max_tokens=20):
                pass
        with nptool.load(tiny_gguf("f16"), threads=1) as model:
            assert model.calibration == sound


def answer(model: TextModel, prompt: str, n: int | None = None) -> Answer:
    return model.generate(prompt, method="jacobi", n=n, fixed=n is not None, max_tokens=40)
