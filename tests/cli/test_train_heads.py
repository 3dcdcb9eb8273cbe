"""`nptool train heads`: options, output, and one clear line for every mistake."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from nptool.cli.train import train_app
from nptool.collection.store import read_collected
from nptool.errors import CheckpointError, DataError, UsageError
from nptool.runs import Run
from nptool.training.heads.config import HeadsConfig
from nptool.training.heads.preparation import split_heldout

pytestmark = pytest.mark.usefixtures("wide")


@pytest.fixture
def invoke() -> Callable[..., Result]:
    def run(*arguments: str | Path | int | float) -> Result:
        return CliRunner().invoke(train_app, ["heads", *map(str, arguments)], catch_exceptions=True)

    return run


def test_a_training_ends_with_each_head_s_figures(invoke: Callable[..., Result], collected: Path) -> None:
    result = invoke("--data", collected, "--steps", 3, "--batch-tokens", 300, "--heads", 3, "--name", "one")
    assert result.exit_code == 0, result.output
    for label in ("runs/one/model", "head 1 before", "top-1", "top-5", "held out"):
        assert label in result.stdout
    figures = [line.split()[1] for line in result.stdout.splitlines() if line.endswith("% │") and "│" in line[:2]]
    assert figures[-3:] == ["1", "2", "3"]
    assert "tokens per forward; accepted: " in result.stdout


def test_json_is_the_result_alone(invoke: Callable[..., Result], collected: Path) -> None:
    result = invoke("--data", collected, "--steps", 2, "--batch-tokens", 300, "--name", "one", "--json")
    value = json.loads(result.stdout)
    assert (value["heads"], value["steps"], len(value["loss"]), value["joint"]) == (8, 2, 8, False)


def test_without_arguments_the_newest_run_gets_heads(
    invoke: Callable[..., Result], collected: Path, checkpoint: Path
) -> None:
    run = Run.create("base")
    run.config.write_text(json.dumps({"kind": "base", "config": {}}))
    run.publish()
    run.collected.write_bytes(collected.read_bytes())
    checkpoint.rename(run.model)
    first = invoke("--json")
    assert first.exit_code == 0, first.output
    value = json.loads(first.stdout)
    assert value["run"].startswith("runs/heads-base-")
    rows = list(read_collected(collected).rows())
    trained, _ = split_heldout(rows, HeadsConfig.heldout)
    assert value["tokens"] == 3 * trained.lengths.sum()
    assert json.loads(invoke("--json").stdout) == json.loads(first.stdout)


def test_every_option_has_a_flag_and_wins_over_the_file(
    invoke: Callable[..., Result], collected: Path, tmp_path: Path
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"data: {collected}\nheads: 8\nsteps: 7\nmax-length: 50\n")
    words = ("--heads", 2, "--joint", "--joint-lr", 1e-6, "--guard", 3, "--heldout", 0.2)
    result = invoke("--config", path, *words, "--dry-run", "--json")
    config = json.loads(result.stdout)["config"]
    expected = {"heads": 2, "joint": True, "joint_lr": 1e-6, "guard": 3.0, "heldout": 0.2, "steps": 7, "lr": 1e-6}
    assert {name: config[name] for name in expected} == expected
    assert config["max_length"] == 50
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("words", "error", "text"),
    [
        (("--data", "COLLECTED", "--heads", "1"), UsageError, "--heads is 1; the model's own last layer is head 1"),
        (("--data", "COLLECTED", "-m", "./gone"), CheckpointError, "./gone does not exist; expected a Hugging Face"),
        (("--data", "gone.parquet"), DataError, "gone.parquet does not exist; expected a file of `nptool collect`, or"),
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


def test_as_many_heads_as_the_model_has(invoke: Callable[..., Result], collected: Path) -> None:
    common = ("--data", collected, "--steps", 1, "--batch-tokens", 300, "--json")
    assert json.loads(invoke(*common, "--name", "one", "--heads", 3).stdout)["heads"] == 3
    assert json.loads(invoke(*common, "--name", "two", "-m", "runs/one/model").stdout)["heads"] == 3
    result = invoke(*common, "--name", "three", "-m", "runs/one/model", "--heads", 5)
    assert str(result.exception) == (
        "runs/one/model has 3 shared heads, and 5 shared ones were asked for; give --heads 3 --kind shared to train "
        "them further, or start from the plain model"
    )


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("heads.json", {"hidden_size": 8}, "are for a model with hidden_size 8, the one beside them has 32"),
        ("heads.json", {"trunk_layer": 0}, "are for a model with trunk_layer 0, the one beside them has 1"),
        ("heads.json", {"count": "4"}, "heads.json is damaged: count is '4'"),
        ("heads.safetensors", None, "heads.safetensors is truncated or not a safetensors file; copy it again"),
    ],
)
def test_an_estimate_of_damaged_heads_fails_as_the_training_would(
    invoke: Callable[..., Result], collected: Path, name: str, content: dict[str, Any] | None, text: str
) -> None:
    common = ("--data", collected, "--steps", 1, "--batch-tokens", 300)
    assert invoke(*common, "--name", "one").exit_code == 0
    file = Path("runs/one/model") / name
    file.write_text("no file" if content is None else json.dumps(json.loads(file.read_text()) | content))
    messages = [
        str(invoke(*common, "-m", file.parent, "--name", "two", *more).exception) for more in ((), ("--dry-run",))
    ]
    assert text in messages[0]
    assert messages[0] == messages[1]
