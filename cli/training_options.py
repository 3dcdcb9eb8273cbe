"""Options that `collect` and the training commands share. An option that is not given is None."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from nptool.settings import read_mapping
from nptool.training.config import TrainingConfig
from nptool.training.responses.config import ResponsesConfig

Data = Annotated[
    list[Path] | None, typer.Option("--data", metavar="FILE", help="data file or directory; several may follow")
]
MoreData = Annotated[list[Path] | None, typer.Argument(metavar="FILE", hidden=True)]
PromptField = Annotated[str | None, typer.Option(help="field with the prompt, if it is not recognized")]
ResponseField = Annotated[str | None, typer.Option(help="field with the response, if it is not recognized")]
Steps = Annotated[int | None, typer.Option(help="optimizer steps")]
Epochs = Annotated[float | None, typer.Option(help="passes over the data")]
LearningRate = Annotated[float | None, typer.Option("--lr", help="peak learning rate")]
BatchTokens = Annotated[int | None, typer.Option(help=f"tokens in a batch [{TrainingConfig.batch_tokens}]")]
Accumulation = Annotated[int | None, typer.Option(help=f"batches in a step [{TrainingConfig.accumulation}]")]
Checkpointing = Annotated[
    bool | None,
    typer.Option("--gradient-checkpointing/--no-gradient-checkpointing", help="less memory for a third more time [no]"),
]
Precision = Annotated[
    Literal["auto", "float32", "bfloat16"] | None,
    typer.Option(help="auto is bfloat16 on a GPU, float32 on a CPU [auto]"),
]
Seed = Annotated[int | None, typer.Option(help="random seed [0]")]
SaveEvery = Annotated[int | None, typer.Option(help=f"steps between checkpoints [{TrainingConfig.save_every}]")]
RunName = Annotated[str | None, typer.Option("--name", metavar="RUN", help="directory in runs/ [a new one]")]

Augment = Annotated[
    bool | None,
    typer.Option("--augment/--no-augment", help="copy correct tokens into states at random [no]"),
]
MaxLength = Annotated[int | None, typer.Option(help="skip longer trajectories [the model's context]")]
HeldOut = Annotated[
    float | None, typer.Option(help=f"share of the prompts kept for testing [{ResponsesConfig.heldout:g}]")
]
MaxNewTokens = Annotated[
    int | None, typer.Option(help=f"longest response to collect, in tokens [{ResponsesConfig.max_new_tokens}]")
]
Limit = Annotated[int | None, typer.Option(metavar="N", help="collect from the first N records only")]


def given_fields(arguments: dict[str, Any], config: type[Any]) -> dict[str, Any]:
    """The fields of `config` that a command's arguments give.

    The shell splits `--data A B C`: A is the option's value, B and C are the arguments `more`.
    """
    data = (*(arguments["data"] or ()), *(arguments["more"] or ()))
    values = {**arguments, "data": data or None}
    return {field.name: values[field.name] for field in fields(config) if values.get(field.name) is not None}


def with_file(given: dict[str, Any], config: type[Any], path: Path | None) -> dict[str, Any]:
    """The fields of `config` from the configuration file, overridden by those on the command line."""
    return given if path is None else {**read_mapping(config, path), **given}
