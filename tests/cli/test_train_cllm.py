"""`nptool train cllm`: options, output, and one clear line for every mistake."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from nptool.cli.train_cllm import train_cllm
from nptool.errors import CheckpointError, DataError, UsageError

app = typer.Typer()
app.command()(train_cllm)
pytestmark = pytest.mark.usefixtures("wide")


@pytest.fixture
def invoke() -> Callable[..., Result]:
    def run(*arguments: str | Path) -> Result:
        return CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=True)

    return run


def test_a_training_ends_with_a_table(invoke: Callable[..., Result], collected: Path) -> None:
    result = invoke("--data", collected, "--steps", 3, "--batch-tokens", 300, "--lr", 0.01, "--name", "one")
    assert result.exit_code == 0, result.output
    for label in ("consistency loss", "next-token loss", "noisy rows right", "time", "runs/one/model", "4 tokens"):
        assert label in result.stdout


def test_json_is_the_result_alone(invoke: Callable[..., Result], collected: Path) -> None:
    result = invoke("--data", collected, "--steps", 2, "--batch-tokens", 300, "--name", "one", "--json")
    value = json.loads(result.stdout)
    assert (value["block_size"], value["steps"], value["trajectories"]) == (4, 2, 30)


def test_flags_win_over_the_file(invoke: Callable[..., Result], collected: Path, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"data: {collected}\nschedule: uniform\ncontext: clean\nar-weight: 3\nsteps: 7\n")
    result = invoke("--config", path, "--context", "window", "--dry-run", "--json")
    config = json.loads(result.stdout)["config"]
    assert (config["schedule"], config["context"], config["ar_weight"], config["steps"]) == (
        "uniform",
        "window",
        3.0,
        7,
    )
    assert not Path("runs").exists()


def test_every_recipe_option_has_a_flag(invoke: Callable[..., Result], collected: Path) -> None:
    flags = {
        "schedule": "random",
        "window": "5",
        "min-noise": "0.1",
        "max-noise": "0.9",
        "draws": "2",
        "context": "clean",
        "consistency": "local",
        "divergence": "reverse-kl",
        "ar-target": "reference",
        "ar-weight": "2",
        "label-smoothing": "0.2",
        "lora-rank": "3",
        "max-length": "40",
        "heldout": "0.3",
        "max-new-tokens": "9",
        "limit": "8",
        "block-length": "4",
    }
    words = [word for name, value in flags.items() for word in (f"--{name}", value)]
    switches = ("--no-random-phase", "--augment")
    result = invoke("--data", collected, *words, *switches, "--dry-run", "--json")
    config = json.loads(result.stdout)["config"]
    expected = {name.replace("-", "_"): value for name, value in flags.items() if name != "block-length"}
    assert {name: str(config[name]).removesuffix(".0") for name in expected} == expected
    assert (config["n"], config["random_phase"], config["augment"]) == (4, False, True)


@pytest.mark.parametrize(
    ("words", "error", "text"),
    [
        (("--data", "gone.parquet"), DataError, "gone.parquet does not exist; expected a file of `nptool collect`, or"),
        (
            ("--data", "COLLECTED", "-m", "./gone"),
            CheckpointError,
            "./gone does not exist; expected a Hugging Face dir",
        ),
        (("--data", "COLLECTED", "-n", "0"), UsageError, "-n is 0; a block has at least 2 tokens"),
        (("--data", "COLLECTED", "--max-length", "3"), DataError, "all 30 rows are longer than 3 tokens"),
        ((), DataError, "no run in runs/ yet"),
    ],
)
def test_bad_input_is_one_clear_error(
    invoke: Callable[..., Result], collected: Path, words: tuple[str, ...], error: type[Exception], text: str
) -> None:
    result = invoke(*(str(collected) if word == "COLLECTED" else word for word in words))
    assert isinstance(result.exception, error)
    assert text in str(result.exception)
    assert "\n" not in str(result.exception)
