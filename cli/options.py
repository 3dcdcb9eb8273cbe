"""Options that several commands share, with one wording each."""

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
Seed = Annotated[int, typer.Option("--seed", help="random seed")]
Jacobi = Annotated[bool, typer.Option("--jacobi", help="decode n tokens in parallel by Jacobi iteration")]
Heads = Annotated[
    bool, typer.Option("--heads", help="draft with the model's extra heads; with --jacobi, the better of the two")
]
MaxTokens = Annotated[int, typer.Option("--max-tokens", metavar="N", help="longest answer in tokens")]
Threads = Annotated[int | None, typer.Option("-t", "--threads", help="threads [usable cores]")]
ContextLength = Annotated[
    int | None, typer.Option("-c", "--ctx-size", help="context in tokens [the model's, at most 4096]")
]
FlashAttention = Annotated[
    bool | None,
    typer.Option(
        "--flash-attention/--no-flash-attention",
        help="llama.cpp's fused attention [on a GPU, and for very small models]",
    ),
]
GpuLayers = Annotated[int, typer.Option("-ngl", "--gpu-layers", help="layers on the GPU; -1 is all")]
