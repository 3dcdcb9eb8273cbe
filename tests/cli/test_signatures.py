"""Commands whose options are fields of dataclasses."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import typer
from typer.testing import CliRunner

from nptool.cli.signatures import Given, options
from nptool.options import described, option


@dataclass(frozen=True, kw_only=True)
class Config:
    PASSES = 3

    data: tuple[Path, ...] = field(metadata=described("files", rest=True))
    rate: float = option(1e-4, "speed")
    epochs: int | None = option(None, "passes", shown="{config.PASSES}")
    kind: Literal["all", "some"] = option("all", "tokens")
    chat: bool = option(True, "template")
    tied: bool = option(True, "one matrix", "--tied/--untied")
    exclude: tuple[str, ...] | None = option(None, "left out")
    n: tuple[int, ...] = option((4, 8), "lengths", "-n", parse=lambda text: tuple(map(int, text.split(","))))
    saved: int = 5


@dataclass(frozen=True)
class Switches:
    fast: bool = option(False, "be quick", "--fast")
    place: Path = option(Path("here"), "where", "-p")


def call(*words: str) -> Any:
    """What a command with both dataclasses receives."""
    seen: list[Any] = []

    @options
    def command(given: Annotated[Given, Config], switches: Switches, own: int = 7) -> None:
        seen.append((given, switches, own))

    app = typer.Typer(rich_markup_mode=None, add_completion=False)
    app.command()(command)
    result = CliRunner().invoke(app, list(words), catch_exceptions=False, env={"COLUMNS": "200"})
    return seen[0] if seen else result.output


def test_only_what_is_given_arrives() -> None:
    assert call() == ({}, Switches(), 7)
    assert call("--rate", "1e-4", "--no-chat", "--own", "2", "--fast", "-p", "there") == (
        {"rate": 1e-4, "chat": False},
        Switches(True, Path("there")),
        2,
    )


@pytest.mark.parametrize(
    ("words", "given"),
    [
        (["--data", "a", "b", "c"], {"data": (Path("a"), Path("b"), Path("c"))}),
        (["--data", "a", "--data", "b"], {"data": (Path("a"), Path("b"))}),
        (["--exclude", "a", "--exclude", "b"], {"exclude": ("a", "b")}),
        (["-n", "1,2"], {"n": (1, 2)}),
        (["--untied", "--kind", "some"], {"tied": False, "kind": "some"}),
    ],
)
def test_values(words: list[str], given: dict[str, Any]) -> None:
    assert call(*words)[0] == given


@pytest.mark.parametrize(("words", "message"), [(["--kind", "none"], "'all', 'some'"), (["--saved", "1"], "No such")])
def test_mistakes(words: list[str], message: str) -> None:
    assert message in call(*words)


def test_the_help_shows_the_defaults_of_the_dataclass() -> None:
    lines = dict(re.findall(r"^  (-\S.*?)  +(\S.*)$", call("--help"), re.M))
    assert lines == {
        "--data FILE": "files",
        "-n, --n TEXT": "lengths [4,8]",
        "--rate X": "speed [0.0001]",
        "--epochs N": "passes [3]",
        "--kind <all|some>": "tokens [all]",
        "--chat / --no-chat": "template [yes]",
        "--tied / --untied": "one matrix [tied]",
        "--exclude TEXT": "left out",
        "-p, --place FILE": "where [here]",
        "--fast": "be quick",
        "--own <int>": "[default: 7]",
        "--help": "Show this message and exit.",
    }
