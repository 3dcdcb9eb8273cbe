"""Options that several commands share and that are of no configuration, with one wording each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ModelGguf = Annotated[Path | None, typer.Option("-m", "--model", metavar="GGUF", help="GGUF file [newest run's]")]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", metavar="YAML", help="configuration file; flags override it")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="print the resolved configuration and an estimate, do nothing")]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object instead of text")]
