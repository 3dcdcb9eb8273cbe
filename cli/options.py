"""Options that several commands share and that are of no configuration, with one wording each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from nptool.options import option

ModelGguf = Annotated[Path | None, typer.Option("-m", "--model", metavar="GGUF", help="GGUF file [newest run's]")]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object instead of text")]


@dataclass(frozen=True)
class RunOptions:
    """Of the commands that take a configuration file."""

    config: Path | None = option(None, "configuration file; flags override it", metavar="YAML")
    dry_run: bool = option(False, "print the resolved configuration and an estimate, do nothing", "--dry-run")
