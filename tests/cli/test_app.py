"""`nptool` itself: help, version, wrong options."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import pytest

from nptool.cli.app import run


@pytest.mark.parametrize("words", [("-h",), ("bench", "-h"), ("train", "cllm", "-h")])
def test_help_has_a_short_name(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(words, debug=False) == 0
    assert capsys.readouterr().out.startswith("Usage: nptool")


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"], debug=False) == 0
    assert capsys.readouterr().out == f"nptool {version('nptool')}\n"


def test_a_wrong_option_names_the_help_of_its_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "cllm", "--wrong"], debug=False) == 2
    assert capsys.readouterr().err.endswith("(see `nptool train cllm --help`)\n")


def test_a_near_option_is_suggested(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["generate", "--jacobbi"], debug=False) == 2
    assert "No such option: --jacobbi (Possible options: --jacobi)" in capsys.readouterr().err


@pytest.mark.parametrize("command", [(), ("train",), ("train", "base"), ("generate",), ("bench",)])
def test_help_loads_nothing_heavy(command: tuple[str, ...]) -> None:
    program = (
        "import sys\n"
        "from nptool.cli.app import run\n"
        f"run([*{command!r}, '--help'], debug=False)\n"
        "print({'torch', 'transformers', 'llama_cpp', 'numpy'} & set(sys.modules), file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert result.stderr == "set()\n"
    assert result.stdout.startswith("Usage: nptool")
