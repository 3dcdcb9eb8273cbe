"""Calibration on a scripted machine: exact times, exact classes, the budget, and the cache file's mishaps."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import nptool
from nptool.cache_folder import OVERRIDE, cache_folder
from nptool.decoding.adaptive.calibration import GRID, Calibration, calibrate, fitting
from nptool.decoding.adaptive.calibration_cache import calibration_file, load_calibration, store_calibration
from nptool.llama.digest import file_digest
from nptool.llama.gguf_check import read_header


class Machine:
    """A batch of w rows behind c tokens takes 1 + w / 10 + c / 1000 s; the last bits of a row tell its kernel."""

    width = 64
    batch_limit = 512
    vocabulary_size = 16

    def __init__(self, kernel: Callable[[int, int, int], float], capacity: int = 1000) -> None:
        """Args: `kernel` gives what is added to a row's logits, from width, place in the batch and position."""
        self.capacity = capacity
        self.seconds = 0.0
        self.widths: list[int] = []
        self._kernel = kernel
        self._cached = 0

    def clock(self) -> float:
        return self.seconds

    def evaluate(self, tokens: NDArray[np.int32], start: int, *, outputs: bool = True) -> NDArray[np.float32]:
        assert start == self._cached
        rows = len(tokens)
        assert start + rows <= self.capacity + self.width
        self._cached += rows
        if not outputs:
            assert rows <= self.batch_limit
            self.seconds += 0.5
            return np.empty((0, self.vocabulary_size), dtype=np.float32)
        self.seconds += 1 + rows / 10 + start / 1000
        self.widths.append(rows)
        added = [self._kernel(rows, row, start + row) for row in range(rows)]
        one_hot = np.eye(self.vocabulary_size, dtype=np.float32)[tokens]
        return one_hot + np.array(added, dtype=np.float32)[:, None]

    def rollback(self, position: int) -> None:
        self._cached = min(self._cached, position)


def alike(rows: int, row: int, position: int) -> float:
    return 0.0


def test_times_are_medians_and_between_them_linear() -> None:
    machine = Machine(alike)
    found = calibrate(machine, budget=1e6, clock=machine.clock)
    assert found.contexts == (128, 640)
    assert found.widths == GRID
    assert found.complete
    for width in (1, 5, 16, 20, 64):
        for length in (128, 300, 640, 900):
            # A little behind the text, since the batches of a width move on over some tokens.
            assert found.at(width, length) == pytest.approx(1 + width / 10 + length / 1000, rel=0.01)
    assert found.at(1, 5) == found.at(1, 128)
    assert found.spent == machine.seconds
    machine.evaluate(np.zeros(1, dtype=np.int32), 0)


@pytest.mark.parametrize(
    ("kernel", "classes"),
    [
        (alike, (GRID,)),
        (lambda rows, row, position: float(rows == 1), ((1,), GRID[1:])),
        (lambda rows, row, position: float(rows // 16), ((1, 2, 3, 4, 6, 8, 9, 12, 15), (16, 24), (32,), (48,), (64,))),
        # Only behind a long text, and only in some rows.
        (lambda rows, row, position: float(rows == 1 and position == 645), ((1,), GRID[1:])),
        # 4 and 6 rows depend on their place, so nothing can be said of them.
        (
            lambda rows, row, position: float(rows in (4, 6) and row == 1),
            (tuple(width for width in GRID if width not in (4, 6)),),
        ),
    ],
)
def test_classes_are_widths_whose_rows_are_the_same_bits(
    kernel: Callable[[int, int, int], float], classes: tuple[tuple[int, ...], ...]
) -> None:
    machine = Machine(kernel)
    assert calibrate(machine, budget=1e6, clock=machine.clock).classes == classes


def test_it_stops_widening_when_the_time_is_spent() -> None:
    for budget in (20, 60, 150, 300):
        machine = Machine(alike)
        found = calibrate(machine, budget=budget, clock=machine.clock)
        assert found.widths == GRID[: len(found.widths)]
        behind_both = len(found.seconds) == 2 and len(found.seconds[1]) == len(GRID)
        assert found.complete == (found.widths == GRID and behind_both)
        # One width at least is measured, whatever it takes.
        assert found.spent == machine.seconds < 1.2 * budget + 10
        assert found.at(64, 640) > found.at(1, 128)
        Calibration.from_json(json.loads(json.dumps(found.to_json())))


def test_a_small_context_is_used_as_far_as_it_goes() -> None:
    machine = Machine(alike, capacity=40)
    assert fitting(machine) == (32,)
    found = calibrate(machine, budget=1e6, clock=machine.clock)
    assert found.contexts == (32,)
    assert found.complete
    assert fitting(Machine(alike, capacity=400)) == (128, 392)


KEY = {"model": "a", "threads": 2}
SMALL = Calibration((128, 640), (1, 2, 4), ((1.0, 1.5, 2.0), (2.0, 2.5)), ((1,), (2, 4)), False, 1.5)


class TestCache:
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(OVERRIDE, str(tmp_path))

    def test_what_is_kept_is_found_under_its_key_only(self, tmp_path: Path) -> None:
        assert load_calibration(KEY) is None
        store_calibration(KEY, SMALL)
        assert load_calibration(KEY) == SMALL
        assert load_calibration(KEY | {"threads": 3}) is None
        assert [path.suffix for path in tmp_path.rglob("*") if path.is_file()] == [".json"]

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("widths", [2, 4]),
            ("widths", [1, 4, 2]),
            ("seconds", [[1.0, 1.5]]),
            ("seconds", [[1.0, -1.5, 2.0], [2.0]]),
            ("seconds", "fast"),
            ("classes", [[1, 2], [2]]),
            ("classes", [[1, 8]]),
            ("contexts", []),
            ("spent", None),
        ],
    )
    def test_a_damaged_file_is_as_good_as_none(self, name: str, value: Any) -> None:
        store_calibration(KEY, SMALL)
        path = calibration_file(KEY)
        saved = json.loads(path.read_text())
        saved["calibration"][name] = value
        path.write_text(json.dumps(saved))
        assert load_calibration(KEY) is None

    @pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"format": 1}', '{"format": 2, "key": {}}', "\ud800"])
    def test_so_is_a_foreign_one(self, text: str) -> None:
        store_calibration(KEY, SMALL)
        calibration_file(KEY).write_bytes(text.encode("utf-8", "surrogatepass"))
        assert load_calibration(KEY) is None

    def test_a_folder_that_cannot_be_written_is_no_error(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "file").write_text("")
        monkeypatch.setenv(OVERRIDE, str(tmp_path / "file"))
        store_calibration(KEY, SMALL)
        assert load_calibration(KEY) is None


@pytest.mark.parametrize(
    ("variables", "platform", "expected"),
    [
        ({OVERRIDE: "/x", "XDG_CACHE_HOME": "/y"}, "linux", "/x"),
        ({"XDG_CACHE_HOME": "/y"}, "darwin", "/y/nptool"),
        ({"HOME": "/h"}, "linux", "/h/.cache/nptool"),
        ({"HOME": "/h"}, "darwin", "/h/Library/Caches/nptool"),
        ({"HOME": "/h", "LOCALAPPDATA": "/l"}, "win32", "/l/nptool/cache"),
    ],
)
def test_the_folder_is_the_systems(
    variables: dict[str, str], platform: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (OVERRIDE, "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.platform", platform)
    assert cache_folder() == Path(expected)


def test_a_digest_tells_files_apart(tiny_gguf: Callable[..., Path], tmp_path: Path) -> None:
    one, other = tiny_gguf("f16"), tiny_gguf("f16", seed=1)
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(one.read_bytes())
    assert file_digest(read_header(one)) == file_digest(read_header(copy))
    assert file_digest(read_header(one)) != file_digest(read_header(other))


def test_a_model_is_calibrated_once(
    tiny_gguf: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(OVERRIDE, str(tmp_path))
    with nptool.load(tiny_gguf("f16"), threads=1) as model:
        found = model.calibration
        assert found.widths == GRID[: len(found.widths)]
        assert found.class_of(1)[0] == 1
    monkeypatch.setattr("nptool.decoding.adaptive.knowledge.calibrate", lambda *_, **__: pytest.fail("measured twice"))
    with nptool.load(tiny_gguf("f16"), threads=1) as model:
        assert model.calibration == found


@pytest.mark.parametrize(("factor", "anew"), [(1.0, False), (100.0, True)])
def test_a_calibration_that_was_disturbed_is_measured_anew(
    tiny_gguf: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float, anew: bool
) -> None:
    monkeypatch.setenv(OVERRIDE, str(tmp_path))
    made = list[Calibration]()

    def slow(*_: Any, **__: Any) -> Calibration:
        """Times `factor` as long as steps take later."""
        seconds = ((1e-3 * factor, 1.1e-3 * factor),)
        made.append(Calibration((128,), (1, 2), seconds, ((1, 2),), complete=True, spent=1.0))
        return made[-1]

    monkeypatch.setattr("nptool.decoding.adaptive.knowledge.calibrate", slow)
    # Every step takes a millisecond.
    monkeypatch.setattr("nptool.decoding.loop.loop.perf_counter", (1e-3 * tick for tick in count()).__next__)
    for _ in range(2):
        with nptool.load(tiny_gguf("f16"), threads=1) as model:
            for _ in model.generate("once", jacobi=True, n="auto", max_tokens=60):
                pass
    assert len(made) == (2 if anew else 1)


def test_another_process_s_calibration_is_not_forgotten(
    tiny_gguf: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(OVERRIDE, str(tmp_path))
    with nptool.load(tiny_gguf("f16"), threads=1) as model:
        sound = model.calibration
        model.knowledge.calibration = replace(sound, seconds=tuple((1e3,) * len(row) for row in sound.seconds))
        for _ in model.generate("once", jacobi=True, n="auto", max_tokens=20):
            pass
    with nptool.load(tiny_gguf("f16"), threads=1) as model:
        assert model.calibration == sound
