"""The documents' commands, options, links and paths exist, and CI runs the README's test command."""

import re
import shlex
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from nptool.cli.app import app

ROOT = Path(__file__).resolve().parent.parent
README, CONTRIBUTING = ((ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md"))
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))


def test_ci_runs_the_test_command_of_the_readme() -> None:
    environment = r"python3 -m venv \.venv && \. \.venv/bin/activate"
    (command,) = re.findall(rf"^    {environment} && (.* nox -s tests)$", README, re.M)
    assert f"\n{command}\n" in (ROOT / ".ci" / "run").read_text()


def test_contributing_has_the_same_test_command() -> None:
    (command,) = re.findall(r"^    (python3 .* nox -s tests)$", README, re.M)
    assert f"    {command}\n" in CONTRIBUTING


def test_every_path_of_contributing_exists() -> None:
    named = re.findall(r"`((?:nptool|convert|cli|tests|benchmarks|docs)/[\w./]*)`", CONTRIBUTING)
    assert len(named) > 30
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_every_command_of_the_documents_exists_with_its_options() -> None:
    checked = [check_command(words) for page in PAGES for words in commands_of(page.read_text())]
    assert len(checked) > 40


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("`nptool trian`", "nptool trian"),
        ("    nptool train clm --data x", "nptool train clm"),
        ("`nptool chat --jacobbi`", "--jacobbi"),
        ("    accelerate launch -m nptool convert --fast    # now", "--fast"),
    ],
)
def test_an_unknown_command_or_option_is_found(text: str, message: str) -> None:
    (words,) = commands_of(text)
    with pytest.raises(AssertionError, match=message):
        check_command(words)


def commands_of(text: str) -> Iterator[list[str]]:
    """The words after `nptool` of every command in code, in blocks and inline."""
    text = re.sub(r"```python\n.*?```", "", text, flags=re.S)
    blocks = re.findall(r"^    (?:.* )?nptool (\S.*)$", text, re.M)
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^    .*$", "", text, flags=re.M))
    inline = [found[1] for span in spans if (found := re.match(r"(?:.* )?nptool (\S.*)$", span))]
    for command in blocks + inline:
        words = shlex.split(command, comments=True)
        # A pipe or a second command on the line.
        yield list(takewhile(lambda word: word not in ("|", "&&", ";"), words))


def check_command(words: list[str]) -> None:
    """Assert that a command exists and has the options that are named."""
    command: Any = get_command(app)
    rest = iter(words)
    path = ["nptool"]
    while hasattr(command, "commands") and (word := next(rest, "-")) and not word.startswith("-"):
        path.append(word)
        assert word in command.commands, " ".join(path)
        command = command.commands[word]
    known = {flag for option in command.params for flag in (*option.opts, *option.secondary_opts)}
    for word in words:
        if re.match(r"--?[a-zA-Z]", word):
            assert word in known | {"--help"}, f"{' '.join(path)} has no {word}"


def test_every_link_to_a_file_of_the_repository_leads_there() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
