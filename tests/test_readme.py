"""The documents' commands, options, links and paths exist, and CI runs the README's test command."""

import re
import shlex
from collections.abc import Iterator
from itertools import groupby
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
    assert sum(check_commands(page.read_text()) for page in PAGES) > 40


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("`nptool trian`", "nptool trian"),
        ("    nptool train clm --data x", "nptool train clm"),
        ("`nptool chat --jacobbi`", "--jacobbi"),
        ("    accelerate launch -m nptool convert --fast    # now", "--fast"),
        ("    nptool trian && nptool convert", "nptool trian"),
        ("    pip install x && nptool doctor --deep | head", "--deep"),
        ("```\nnptool trian\n```", "nptool trian"),
        ("```sh\nnptool bench --speed=9\n```", "--speed"),
        ("1. text\n\n       nptool trian", "nptool trian"),
        ("| `nptool train heads --heds 8` | x |", "--heds"),
        ("`nptool --fast`", "--fast"),
        ("a command that\nwraps: `nptool\ntrian`", "nptool trian"),
    ],
)
def test_an_unknown_command_or_option_is_found(text: str, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_commands(text)


def test_python_and_words_about_nptool_are_no_commands() -> None:
    assert [*commands_of("```python\nimport nptool\n```\nnptool is `nptool/cli`, `nptool.load`, `NPTOOL_CACHE`.")] == []


def commands_of(text: str) -> Iterator[list[str]]:
    """The words after `nptool` of every command in code, in indented and fenced blocks and inline."""
    text = re.sub(r"```python\n.*?```", "", text, flags=re.S)
    fenced = [line for block in re.findall(r"```\w*\n(.*?)```", text, re.S) for line in block.splitlines()]
    text = re.sub(r"```.*?```", "", text, flags=re.S)
    indented = re.findall(r"^    +(\S.*)$", text, re.M)
    paragraphs = re.sub(r"^    .*$", "", text, flags=re.M).split("\n\n")
    inline = [span for one in paragraphs for span in re.findall(r"`([^`]+)`", one.replace("\n", " "))]
    for code in fenced + indented + inline:
        if re.search(r"(^| )nptool \S", code):
            words = shlex.split(code, comments=True)
            # Several commands on the line.
            for ends, command in groupby(words, lambda word: word in ("|", "&&", "||", ";")):
                found = [*command]
                if not ends and "nptool" in found:
                    yield found[found.index("nptool") + 1 :]


def check_commands(text: str) -> int:
    """Check every command of a page; returns how many there are."""
    commands = [*commands_of(text)]
    for words in commands:
        check_command(words)
    return len(commands)


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
        name = word.partition("=")[0]
        if re.match(r"--?[a-zA-Z]", name):
            assert name in known | {"--help"}, f"{' '.join(path)} has no {name}"


def test_every_link_to_a_file_of_the_repository_leads_there() -> None:
    for page in PAGES:
        for target, heading in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", page.read_text()):
            named = page.parent / target if target else page
            assert named.exists(), f"{page.name}: {target}"
            assert not heading or heading in anchors(named.read_text()), f"{page.name}: {target}#{heading}"


def anchors(text: str) -> set[str]:
    """What links to the headings of a page end in, as GitHub makes it."""
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
