"""Options that several commands share and that are of no configuration, with one wording each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from nptool.options import option

AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object instead of text")]


@dataclass(frozen=True)
class ModelOptions:
    """The GGUF of the commands that decode."""

    model: Path | None = option(None, "GGUF file", "-m", metavar="GGUF", shown="newest run's")
    hf: str | None = option(None, "or a GGUF on the Hugging Face Hub", "-hf", "--hf-repo", metavar="USER/REPO[:TYPE]")


@dataclass(frozen=True)
class RunOptions:
    """Of the commands that take a configuration file."""

    config: Path | None = option(None, "configuration file; flags override it", metavar="YAML")
    dry_run: bool = option(False, "print the resolved configuration and an estimate, do nothing", "--dry-run")
