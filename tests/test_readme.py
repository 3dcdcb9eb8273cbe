"""The README's commands are the ones that CI runs, and its file map is the tree."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_ci_runs_the_test_command_of_the_readme() -> None:
    environment = r"python3 -m venv \.venv && \. \.venv/bin/activate"
    (command,) = re.findall(rf"^    {environment} && (.* nox -s tests)$", README, re.M)
    assert f"\n{command}\n" in (ROOT / ".ci" / "run").read_text()


def test_contributing_has_the_same_test_command() -> None:
    (command,) = re.findall(r"^    (python3 .* nox -s tests)$", README, re.M)
    assert f"    {command}\n" in (ROOT / "CONTRIBUTING.md").read_text()


def test_every_folder_of_the_file_map_exists() -> None:
    table = README.partition("| folder | what |")[2]
    folders = [name for line in re.findall(r"^\| (`.*?) \|", table, re.M) for name in re.findall(r"`([a-z_/]+)`", line)]
    assert "nptool/decoding" in folders
    assert all((ROOT / folder).is_dir() for folder in folders)


def test_every_command_of_the_readme_exists() -> None:
    from typer.main import get_command

    from nptool.cli.app import app

    root = get_command(app)
    text = README + "".join(page.read_text() for page in (ROOT / "docs").glob("*.md"))
    named = set(re.findall(r"(?:`|^    (?:\S+ )?)nptool ([a-z-]+)", text, re.M))
    assert {"train", "convert", "chat"} <= named
    assert named <= set(root.commands)


def test_every_link_to_a_file_of_the_repository_leads_there() -> None:
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
