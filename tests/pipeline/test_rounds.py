"""Rounds of collection and training: the same results as by hand, and no round is repeated."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner, Result

from nptool.checkpoints import load_model
from nptool.cli.train_cllm import train_cllm as command
from nptool.collection import collect as collect_module
from nptool.collection.collect import collect
from nptool.collection.config import CollectConfig
from nptool.collection.journal import parts_folder
from nptool.collection.store import Trajectory, read_collected
from nptool.errors import UsageError
from nptool.pipeline.rounds import dry_run_rounds, train_rounds
from nptool.pipeline.rounds_config import RoundsConfig, finished_rounds
from nptool.runs import Run, latest_run
from nptool.training.cllm.config import CllmConfig
from nptool.training.cllm.curve import read_curve
from nptool.training.cllm.train import train_cllm

ONE, TWO = Run(Path("runs/one")), Run(Path("runs/one-round-2"))

SETTINGS: dict[str, Any] = {
    "n": 4,
    "max_new_tokens": 16,
    "steps": 6,
    "save_every": 2,
    "lr": 1e-2,
    "heldout": 0.2,
    "batch_tokens": 600,
    "collect_batch_size": 4,
}


@pytest.fixture
def config(checkpoint: Path, texts: Path) -> RoundsConfig:
    return RoundsConfig(
        data=(texts,),
        model=str(checkpoint),
        **SETTINGS,
        name="one",
        rounds=2,
    )


def rows_of(path: Path) -> list[list[Any]]:
    def to_lists(row: Trajectory) -> list[Any]:
        return [row.prompt_ids.tolist(), row.response_ids.tolist(), [block.tolist() for block in row.states]]

    return [to_lists(row) for row in read_collected(path).rows()]


def assert_same_weights(one: Path | str, other: Path | str) -> None:
    weights = load_model(other).state_dict()
    for name, weight in load_model(one).state_dict().items():
        assert torch.equal(weight, weights[name]), name


def test_the_second_round_collects_longer_blocks_from_the_first_one_s_model(
    config: RoundsConfig, checkpoint: Path, texts: Path
) -> None:
    first, second = train_rounds(config)
    assert (first.run, second.run) == ("runs/one", "runs/one-round-2")
    assert (first.block_size, second.block_size) == (4, 8)
    assert latest_run().path == TWO.path
    assert json.loads((TWO.model / "nptool.json").read_text()) == {"method": "cllm", "block_size": 8}
    assert TWO.heldout.read_bytes() == ONE.heldout.read_bytes()
    # By hand, stage by stage.
    alone = CllmConfig(
        data=(texts,),
        model=str(checkpoint),
        **SETTINGS,
        name="alone",
    )
    by_hand = train_cllm(alone)
    assert_same_weights(first.model, by_hand.model)
    output = Path("again.parquet")
    collect(CollectConfig(model=by_hand.model, data=(texts,), output=output, n=8, max_new_tokens=16, batch_size=4))
    assert rows_of(TWO.collected) == rows_of(output)
    continued = replace(alone, data=(output,), model=by_hand.model, n=None, name="continued")
    assert_same_weights(second.model, train_cllm(continued).model)


def test_one_round_is_the_training_without_rounds(config: RoundsConfig) -> None:
    (result,) = train_rounds(replace(config, rounds=1))
    alone = train_cllm(replace(config.first, name="alone"))
    assert_same_weights(result.model, alone.model)
    assert json.loads(ONE.config.read_text())["config"].keys() == {field.name for field in fields(CllmConfig)}
    assert not TWO.path.exists()


class Interrupt:
    """A progress that raises KeyboardInterrupt at a given point of a step."""

    def __init__(self, step: str, done: int) -> None:
        self.at = (step, done)

    def __call__(self, step: str, done: float, total: float, note: str = "") -> None:
        if (step, done) == self.at:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("step", "done"),
    [
        ("round 1: consistency training", 5),
        ("round 2: collecting trajectories", 0),
        ("round 2: collecting trajectories", 9),
        ("round 2: planning batches", 0),
        ("round 2: consistency training", 0),
        ("round 2: consistency training", 3),
    ],
)
def test_interrupted_rounds_end_as_if_nothing_had_happened(
    config: RoundsConfig, monkeypatch: pytest.MonkeyPatch, step: str, done: int
) -> None:
    monkeypatch.setattr(collect_module, "PART_PROMPTS", 4)
    with pytest.raises(KeyboardInterrupt):
        train_rounds(config, Interrupt(step, done))
    if done == 9:
        # Two parts of four prompts are kept at least; the third may be the one that was cut off.
        assert len(list(parts_folder(TWO.collected).glob("part-*.json"))) >= 1
    assert not TWO.results.exists()
    # A command that takes its data from the newest run must find the same one when it goes on.
    assert not Path("runs/latest").exists()
    steps: list[str] = []
    resumed = train_rounds(config, lambda step, *_, **__: steps.append(step))
    if step.startswith("round 2"):
        assert not [step for step in steps if step.startswith("round 1")]
    if step not in ("round 1: consistency training", "round 2: collecting trajectories"):
        assert "round 2: collecting trajectories" not in steps
    whole = train_rounds(replace(config, name="whole"))
    for one, other in zip(resumed, whole, strict=True):
        assert_same_weights(one.model, other.model)
        assert (one.trajectories, one.tokens) == (other.trajectories, other.tokens)


def test_done_rounds_are_not_repeated_and_more_may_follow(config: RoundsConfig) -> None:
    (first,) = train_rounds(replace(config, rounds=1))
    steps: list[str] = []

    def report(step: str, done: float, total: float, note: str = "") -> None:
        steps.append(step)

    assert train_rounds(config, report)[0] == first
    done = ["collecting trajectories", "planning batches", "consistency training"]
    assert list(dict.fromkeys(steps)) == [f"round 2: {step}" for step in done]
    steps.clear()
    three = train_rounds(replace(config, rounds=3), report)
    assert list(dict.fromkeys(steps)) == [f"round 3: {step}" for step in done]
    assert [result.block_size for result in three] == [4, 8, 16]
    assert [result.run for result in three] == ["runs/one", "runs/one-round-2", "runs/one-round-3"]
    steps.clear()
    assert train_rounds(replace(config, rounds=3), report) == three
    assert not steps


def test_a_collected_file_is_trained_on_first_and_its_prompts_are_answered_again(
    config: RoundsConfig, checkpoint: Path, texts: Path
) -> None:
    data = Path("collected.parquet")
    collect(
        CollectConfig(
            model=str(checkpoint), data=(texts,), output=data, n=4, max_new_tokens=12, text_prompt_tokens=40, seed=3
        )
    )
    later = {"round_steps": 4, "round_lr": 1e-3}
    _, second = train_rounds(
        replace(config, data=(data,), model=None, n=None, max_new_tokens=512, round_n=6, round_window=3, **later)
    )
    before, after = read_collected(data), read_collected(TWO.collected)
    assert (after.metadata.n, after.metadata.model) == (6, "runs/one/model")
    # Blocks of 6 have no room after prompts of more than 250 tokens.
    kept = replace(
        before.metadata,
        n=6,
        model="runs/one/model",
        model_digest=after.metadata.model_digest,
        max_prompt_tokens=250,
    )
    assert after.metadata == kept
    prompts = {tuple(row[0]) for row in rows_of(data)}
    answered = {tuple(row[0]) for row in rows_of(TWO.collected)}
    assert answered
    assert answered <= prompts
    assert second.steps == 4

    def settings(run: Run) -> list[object]:
        saved = json.loads(run.config.read_text())["config"]
        return [saved[name] for name in ("window", "steps", "lr")]

    assert (settings(ONE), settings(TWO)) == ([8, 6, 1e-2], [3, 4, 1e-3])


def test_the_dry_run_shows_every_round_and_does_nothing(config: RoundsConfig, checkpoint: Path) -> None:
    options = {"round_n": 12, "round_window": 4, "round_steps": 5, "round_lr": 1e-3}
    first, second, third = dry_run_rounds(replace(config, rounds=3, **options))
    assert (first["config"]["n"], second["config"]["n"], third["config"]["n"]) == (4, 12, 24)
    assert (first["config"]["window"], second["config"]["window"], third["config"]["window"]) == (8, 4, 4)
    assert (first["config"]["model"], second["config"]["model"]) == (str(checkpoint), "runs/one/model")
    assert second["config"]["data"] == ["runs/one-round-2/collected.parquet"]
    assert third["config"]["model"] == "runs/one-round-2/model"
    assert (second["run"], second["steps"], second["memory"]) == ("one-round-2", 5, first["memory"])
    assert (first["config"]["lr"], second["config"]["lr"], second["config"]["steps"]) == (1e-2, 1e-3, 5)
    assert not Path("runs").exists()


def test_another_setting_does_not_go_on_in_the_same_round(config: RoundsConfig) -> None:
    with pytest.raises(KeyboardInterrupt):
        train_rounds(config, Interrupt("round 2: collecting trajectories", 0))
    with pytest.raises(UsageError) as error:
        train_rounds(replace(config, round_n=12))
    assert str(error.value) == (
        "runs/one-round-2 holds a round with --round-n 8, now it is 12; give the same to go on, "
        "or remove that directory"
    )
    with pytest.raises(UsageError, match="runs/one-round-2 holds a round with --round-window 8, now it is 2; give"):
        train_rounds(replace(config, round_window=2))
    with pytest.raises(UsageError, match="runs/one-round-2 holds a round with --round-steps 6, now it is 7; give the"):
        train_rounds(replace(config, round_steps=7))


def test_a_directory_of_another_run_is_not_touched(config: RoundsConfig) -> None:
    TWO.path.mkdir(parents=True)
    TWO.config.write_text("{}")
    with pytest.raises(UsageError) as error:
        train_rounds(config)
    assert str(error.value) == ("runs/one-round-2 holds another run; choose another --name, or remove that directory")
    assert [path.name for path in TWO.path.iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": 0}, "--rounds is 0; it must be at least 1"),
        ({"round_n": 1}, "--round-n is 1; it must be at least 2"),
        ({"round_window": 0}, "--round-window is 0; it must be at least 1"),
        ({"round_lr": 0.0}, "--round-lr is 0.0; it must be above 0"),
        ({"rounds": 1, "round_steps": 8}, "--round-steps is about a second round; give --rounds 2 too"),
        ({"rounds": 1, "round_n": 8}, "--round-n is about a second round; give --rounds 2 too"),
        ({"rounds": 1, "round_window": 4}, "--round-window is about a second round; give --rounds 2 too"),
        (
            {"draws": 4, "round_window": 3},
            "--draws 4 of --window 3 levels show states twice; lower --draws",
        ),
    ],
)
def test_rounds_that_make_no_sense_are_refused(config: RoundsConfig, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as error:
        replace(config, **options)
    assert str(error.value) == message


def test_blocks_that_outgrow_the_context_are_refused_before_the_first_round(
    config: RoundsConfig, checkpoint: Path
) -> None:
    for attempt in (train_rounds, dry_run_rounds):
        with pytest.raises(UsageError) as error:
            attempt(replace(config, rounds=3, round_n=128))
        assert str(error.value) == (
            f"round 3 has blocks of 256 tokens, and the context of {checkpoint} has 256; "
            "give a smaller --round-n, or fewer --rounds"
        )
    assert not Path("runs").exists()


def test_several_processes_are_refused(config: RoundsConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="--rounds collects between trainings, in one process; train each round by"):
        train_rounds(config)


def test_every_round_has_its_curve(config: RoundsConfig) -> None:
    questions = Path("questions.jsonl")
    questions.write_text('{"prompt": "select", "response": "7"}\n')
    train_rounds(replace(config, curve=3, curve_data=questions))
    curves = [read_curve(run.curve) for run in (ONE, TWO)]
    assert [curve.block_size for curve in curves if curve] == [4, 8]
    assert [[point.step for point in curve.points] for curve in curves if curve] == [[0, 3, 6], [0, 3, 6]]


def test_finished_rounds_are_those_of_the_newest_training(config: RoundsConfig) -> None:
    assert finished_rounds(None, 1) == []
    train_rounds(config)
    for name in (None, "one", "one-round-2"):
        assert [run.path for run in finished_rounds(name, 1)] == [ONE.path, TWO.path]
    assert [run.path for run in finished_rounds("one", 2)] == [ONE.path, TWO.path]
    assert finished_rounds("one", 3) == finished_rounds("other", 1) == []
    TWO.results.unlink()
    assert [run.path for run in finished_rounds("one", 1)] == [ONE.path]
    assert finished_rounds("one", 2) == []


@pytest.fixture
def invoke(checkpoint: Path, texts: Path) -> Callable[..., Result]:
    app = typer.Typer()
    app.command()(command)
    words = f"--data {texts} -m {checkpoint} -n 4 --max-new-tokens 16 --steps 3 --heldout 0.2 --batch-tokens 600"

    def run(*more: str) -> Result:
        return CliRunner().invoke(app, [*words.split(), "--name", "one", *more], catch_exceptions=True)

    return run


def test_the_command_prints_every_round(invoke: Callable[..., Result]) -> None:
    result = invoke("--rounds", "2")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert [line.strip() for line in lines if line.startswith("round")] == ["round 1", "round 2"]
    assert [line.split()[4] for line in lines if "block length" in line] == ["4", "8"]
    value = json.loads(invoke("--rounds", "2", "--json").stdout)
    assert [one["run"] for one in value["rounds"]] == ["runs/one", "runs/one-round-2"]
    assert json.loads(invoke("--json").stdout) == value["rounds"][0]


def test_the_command_s_dry_run_shows_every_round(invoke: Callable[..., Result]) -> None:
    value = json.loads(invoke("--rounds", "2", "--round-n", "6", "--dry-run", "--json").stdout)
    assert [one["config"]["n"] for one in value["rounds"]] == [4, 6]
    text = invoke("--rounds", "2", "--dry-run").stdout
    assert [line for line in text.splitlines() if line.startswith("round ")] == ["round 1", "round 2"]
    assert "runs/one-round-2" in text
    assert not Path("runs").exists()
