"""`nptool doctor`: what it prints, its exit code, and packages that are missing."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from nptool.cli.app import run
from nptool.doctor.facts import NewestRun, RunState
from nptool.doctor.gather import gather

FACTS = gather()


def test_a_problem_is_a_line_and_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ill = replace(FACTS, run=NewestRun(RunState.UNCONVERTED, "runs/one"))
    monkeypatch.setattr("nptool.doctor.gather.gather", lambda: ill)
    assert run(["doctor"], debug=False) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("versions   nptool ")
    assert "newest run runs/one: not converted" in lines
    assert "problem: the newest run, runs/one, is not converted: nptool convert" in lines
    assert lines[-1].endswith(" found")


def test_json_without_problems(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("nptool.doctor.gather.gather", lambda: FACTS)
    monkeypatch.setattr("nptool.doctor.checks.CHECKS", ())
    assert run(["doctor", "--json"], debug=False) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["problems"], found["run"]["state"]) == ([], FACTS.run.state)
    assert found["machine"]["usable_cores"] == FACTS.machine.usable_cores
    assert run(["doctor"], debug=False) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "no problem found"


def test_the_help_names_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--help"], debug=False) == 0
    assert "exit with 1 if there is a problem" in " ".join(capsys.readouterr().out.split())


def test_missing_packages_are_problems_without_a_traceback(tmp_path: Path) -> None:
    """In a process that cannot import them, from the first line on."""
    program = (
        "import sys\n"
        "for name in ('torch', 'llama_cpp', 'gguf', 'numpy', 'transformers', 'rich'):\n"
        "    sys.modules[name] = None\n"
        "from nptool.cli.app import run\n"
        "sys.exit(run(['doctor'], debug=True))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "")
    assert "problem: torch " in done.stdout
    assert "problem: llama-cpp-python " in done.stdout
