"""Options that all training commands share. A flag that is not given is None: file and defaults come after it."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from nptool.training.config import TrainingConfig

DataFiles = Annotated[
    list[Path] | None,
    typer.Option("--data", metavar="FILE", help="data file or directory; several may follow", show_default=False),
]
MoreData = Annotated[list[Path] | None, typer.Argument(metavar="FILE", hidden=True, show_default=False)]
PromptField = Annotated[
    str | None, typer.Option(help="field of the prompt, where it is not recognized", show_default=False)
]
ResponseField = Annotated[
    str | None, typer.Option(help="field of the response, where it is not recognized", show_default=False)
]
Steps = Annotated[int | None, typer.Option("--steps", help="optimizer steps", show_default=False)]
Epochs = Annotated[float | None, typer.Option("--epochs", help="passes over the data", show_default=False)]
LearningRate = Annotated[float | None, typer.Option("--lr", help="highest learning rate", show_default=False)]
BatchTokens = Annotated[
    int | None,
    typer.Option("--batch-tokens", help=f"tokens in a batch [{TrainingConfig.batch_tokens}]", show_default=False),
]
Accumulation = Annotated[
    int | None,
    typer.Option("--accumulation", help=f"batches in a step [{TrainingConfig.accumulation}]", show_default=False),
]
Checkpointing = Annotated[
    bool | None,
    typer.Option(
        "--gradient-checkpointing/--no-gradient-checkpointing",
        help="less memory, a third more time",
        show_default=False,
    ),
]
PrecisionChoice = Annotated[
    Literal["auto", "float32", "bfloat16"] | None,
    typer.Option("--precision", help="auto is bfloat16 on a GPU, float32 on a CPU [auto]", show_default=False),
]
TrainingSeed = Annotated[int | None, typer.Option("--seed", help="seed of everything random [0]", show_default=False)]
SaveEvery = Annotated[
    int | None,
    typer.Option("--save-every", help=f"steps between checkpoints [{TrainingConfig.save_every}]", show_default=False),
]
RunName = Annotated[
    str | None, typer.Option("--name", metavar="RUN", help="directory in runs/ [one of its own]", show_default=False)
]


def data_paths(data: list[Path] | None, more: list[Path] | None) -> tuple[Path, ...] | None:
    """`--data A B C`: the option takes A, the shell leaves B and C as arguments."""
    return (*(data or ()), *(more or ())) or None


def given_fields(arguments: dict[str, Any], config: type[Any]) -> dict[str, Any]:
    """Of a command's arguments, those that are fields of its configuration."""
    names = {field.name for field in fields(config)}
    return {name: value for name, value in arguments.items() if name in names}
