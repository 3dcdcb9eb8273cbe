"""Curves of `nptool train cllm`, as bars and as a picture."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
import typer
from typer.testing import CliRunner, Result

from nptool.cli.curve_output import duration, picture, print_curves
from nptool.cli.train_cllm import train_cllm
from nptool.errors import UsageError
from nptool.training.cllm import train as training
from nptool.training.cllm.curve import Curve, CurvePoint

pytestmark = pytest.mark.usefixtures("wide")
SVG = "{http://www.w3.org/2000/svg}"


def make(n: int, *values: float, every: float = 60.0) -> Curve:
    return Curve(n, 8, tuple(CurvePoint(100 * i, every * i, value) for i, value in enumerate(values)))


@pytest.fixture
def invoke(collected: Path, tmp_path: Path) -> Callable[..., Result]:
    app = typer.Typer()
    app.command()(train_cllm)
    questions = tmp_path / "questions.jsonl"
    questions.write_text('{"prompt": "abc", "response": "d"}\n{"prompt": "efg", "response": "h"}\n')

    def run(*more: str) -> Result:
        words = f"--data {collected} --steps 4 --batch-tokens 300 --lr 0.01 --name one --curve-data {questions}"
        return CliRunner().invoke(app, [*words.split(), *more], catch_exceptions=True)

    return run


def test_every_round_is_drawn_to_the_same_scale(capsys: pytest.CaptureFixture[str]) -> None:
    print_curves([make(16, 1.0, 2.0, 3.0, 3.5, 4.0), None, make(32, 2.0, 6.0)])
    assert capsys.readouterr().out.splitlines() == [
        "",
        "round 1: held-out tokens per forward, blocks of 16, 8 prompts",
        "   step   training",
        f"      0      0.0 s {'█' * 8} 1.00",
        f"    100     60.0 s {'█' * 16} 2.00",
        f"    200    2.0 min {'█' * 24} 3.00",
        f"    300    3.0 min {'█' * 28} 3.50",
        f"    400    4.0 min {'█' * 32} 4.00",
        "the last 25% of the time brought +0.50 tokens per forward (+14.3%)",
        "",
        "round 3: held-out tokens per forward, blocks of 32, 8 prompts",
        "   step   training",
        f"      0      0.0 s {'█' * 16} 2.00",
        f"    100     60.0 s {'█' * 48} 6.00",
        "too few measurements to say whether more training helps; give a smaller --curve",
    ]


def test_a_long_curve_is_thinned_but_keeps_its_ends(capsys: pytest.CaptureFixture[str]) -> None:
    print_curves([make(16, *(1 + i / 100 for i in range(201)))])
    steps = [int(line.split()[0]) for line in capsys.readouterr().out.splitlines() if "█" in line]
    assert len(steps) == 24
    assert (steps[0], steps[-1]) == (0, 20_000)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0, "0.0 s"), (119.9, "119.9 s"), (120.0, "2.0 min"), (7200.0, "2.0 h")]
)
def test_durations_have_a_readable_unit(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_picture_joins_the_points_of_each_round() -> None:
    tree = ElementTree.fromstring(picture([make(16, 1.0, 2.0, 4.0), make(32, 3.0, 5.0)], "a < b"))
    texts = ["".join(element.itertext()) for element in tree.iter(f"{SVG}text")]
    for expected in ("a < b", "● round 1, n = 16", "● round 2, n = 32", "training time without measuring, min", "3"):
        assert expected in texts
    assert "too few measurements to say whether more training helps; give a smaller --curve" in texts
    # Round 2 begins where round 1 ended, after 2 of 3 minutes.
    notes = [element.text for element in tree.iter(f"{SVG}title")]
    assert sorted(notes) == ["0: 1", "1: 2", "2: 3", "2: 4", "3: 5"]
    assert len(list(tree.iter(f"{SVG}polyline"))) == 2


def test_one_measurement_is_a_picture_too() -> None:
    tree = ElementTree.fromstring(picture([make(16, 1.0)], "one"))
    assert len(list(tree.iter(f"{SVG}circle"))) == 1


def test_plot_measures_draws_and_draws_again_without_training(
    invoke: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    result = invoke("--plot", "--plot-file", "curve.svg")
    assert result.exit_code == 0, result.output
    saved = json.loads(Path("runs/one/curve.json").read_text())
    assert [point["step"] for point in saved["points"]] == [0, 1, 2, 3, 4]
    bars = [line for line in result.stdout.splitlines() if "█" in line]
    assert [float(bar.split()[-1]) for bar in bars] == [
        round(point["tokens_per_forward"], 2) for point in saved["points"]
    ]
    first = Path("curve.svg").read_bytes()
    assert len(list(ElementTree.fromstring(first).iter(f"{SVG}circle"))) == 5
    monkeypatch.setattr(training, "run_trainer", lambda *_: pytest.fail("the run is finished"))
    again = invoke("--plot", "--plot-file", "again.svg")
    assert [line for line in again.stdout.splitlines() if "█" in line] == bars
    assert Path("again.svg").read_bytes() == first
    value = json.loads(invoke("--json").stdout)
    assert value["curve"] == {name: saved[name] for name in ("block_size", "prompts", "points", "prompts_digest")}


@pytest.mark.parametrize("words", [(), ("--name", "one")])
def test_a_finished_run_is_drawn_without_its_data(invoke: Callable[..., Result], words: tuple[str, ...]) -> None:
    bars = [line for line in invoke("--plot").stdout.splitlines() if "█" in line]
    app = typer.Typer()
    app.command()(train_cllm)
    result = CliRunner().invoke(app, ["--plot", *words])
    assert [line for line in result.stdout.splitlines() if "█" in line] == bars
    value = json.loads(CliRunner().invoke(app, ["--plot", "--json", "--plot-file", "c.svg", *words]).stdout)
    (drawn,) = value["rounds"]
    assert drawn["run"] == "runs/one"
    assert drawn["curve"]["points"] == json.loads(Path("runs/one/curve.json").read_text())["points"]
    assert Path("c.svg").is_file()
    # The second round is not done, and there is no data to train it on.
    error = CliRunner().invoke(app, ["--plot", "--rounds", "2", *words]).exception
    assert isinstance(error, UsageError)
    assert str(error).startswith("runs/one holds no collected.parquet; make trajectories")


def test_a_run_without_a_curve_says_so(invoke: Callable[..., Result]) -> None:
    assert invoke().exit_code == 0
    error = invoke("--plot").exception
    assert isinstance(error, UsageError)
    assert str(error) == (
        "runs/one was trained without --curve, so there is nothing to draw; train under another --name"
    )


def test_a_run_without_a_curve_is_not_trained_on_other_data(invoke: Callable[..., Result]) -> None:
    """--name without data asks for that run's curve."""
    assert invoke().exit_code == 0
    app = typer.Typer()
    app.command()(train_cllm)
    error = CliRunner().invoke(app, ["--plot", "--name", "one"]).exception
    assert isinstance(error, UsageError)
    assert str(error) == (
        "runs/one was trained without --curve, so there is nothing to draw; train under another --name"
    )


def test_a_picture_of_another_kind_is_refused_before_the_training(invoke: Callable[..., Result]) -> None:
    error = invoke("--plot-file", "curve.png").exception
    assert isinstance(error, UsageError)
    assert str(error) == "--plot-file is curve.png; the picture is an SVG, so its name must end in .svg"
    assert not Path("runs").exists()
