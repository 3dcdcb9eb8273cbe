"""`nptool train heads`: extra heads for a finished model, which say the tokens behind the next one."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from nptool.cli.console import progress_bars
from nptool.cli.options import AsJson, ConfigFile, DryRun
from nptool.cli.training_options import (
    Accumulation,
    Checkpointing,
    DataFiles,
    LearningRate,
    MoreData,
    PrecisionChoice,
    PromptField,
    ResponseField,
    RunName,
    SaveEvery,
    Steps,
    TrainingSeed,
    data_paths,
    given_fields,
)
from nptool.cli.training_output import print_estimate, print_head_figures, print_table
from nptool.processes import is_main_process
from nptool.settings import read_mapping, resolve
from nptool.training.heads.config import HeadsConfig, heads_defaults

DEFAULTS = HeadsConfig


def train_heads(
    data: DataFiles = None,
    more: MoreData = None,
    model: Annotated[
        str | None,
        typer.Option(
            "-m",
            "--model",
            metavar="DIR|ID",
            help="model that gets the heads [the one the trajectories are of]",
            show_default=False,
        ),
    ] = None,
    heads: Annotated[
        int | None,
        typer.Option(help=f"heads in all, the model's last layer included [{DEFAULTS.heads}]", show_default=False),
    ] = None,
    joint: Annotated[
        bool | None,
        typer.Option("--joint/--no-joint", help="train trunk and heads together afterwards [no]", show_default=False),
    ] = None,
    joint_lr: Annotated[
        float | None,
        typer.Option(help=f"highest learning rate of the joint stage [{DEFAULTS.joint_lr:g}]", show_default=False),
    ] = None,
    guard: Annotated[
        float | None,
        typer.Option(
            help=f"how firmly the joint stage holds head 1 to the original [{DEFAULTS.guard:g}]", show_default=False
        ),
    ] = None,
    answer_anew: Annotated[
        bool | None,
        typer.Option(
            "--answer-anew/--no-answer-anew",
            help="the model answers the prompts of the trajectories itself [without --data, where they are another's]",
            show_default=False,
        ),
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(help="leave out longer trajectories [the model's context]", show_default=False)
    ] = None,
    heldout: Annotated[
        float | None, typer.Option(help=f"share of prompts kept for testing [{DEFAULTS.heldout:g}]", show_default=False)
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help=f"longest response to collect [{DEFAULTS.max_new_tokens}]", show_default=False)
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="collect from the first so many records only", show_default=False)
    ] = None,
    prompt_field: PromptField = None,
    response_field: ResponseField = None,
    steps: Steps = None,
    epochs: Annotated[
        float | None, typer.Option(help=f"passes over the data [{DEFAULTS.DEFAULT_PASSES:g}]", show_default=False)
    ] = None,
    lr: LearningRate = None,
    batch_tokens: Annotated[
        int | None, typer.Option(help=f"tokens in a batch [{DEFAULTS.batch_tokens}]", show_default=False)
    ] = None,
    accumulation: Accumulation = None,
    gradient_checkpointing: Checkpointing = None,
    precision: PrecisionChoice = None,
    seed: TrainingSeed = None,
    save_every: SaveEvery = None,
    name: RunName = None,
    config: ConfigFile = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Put extra heads on a finished model: head k says the k-th token ahead, all of them in one pass.

    DATA is a file of `nptool collect`, or prompts that the model (-m) answers first. The model itself stays as it is,
    bit for bit, unless --joint is given. The result is runs/<name>/model: an ordinary Hugging Face checkpoint, the
    heads beside it. The same command goes on with an interrupted run.
    """
    flags = {**given_fields(locals(), HeadsConfig), "data": data_paths(data, more)}
    given = {field: value for field, value in flags.items() if value is not None}
    in_file = read_mapping(HeadsConfig, config) if config is not None else {}
    defaults = {name: value for name, value in heads_defaults({**in_file, **given}).items() if name not in in_file}
    resolved = resolve(HeadsConfig, config, defaults | given)
    if dry_run:
        from nptool.training.heads.dry_run import dry_run as estimate

        print_estimate(estimate(resolved), as_json)
        return

    from dataclasses import asdict

    from nptool.training.heads.train import train_heads as train

    with progress_bars() as progress:
        result = train(resolved, progress)
    if is_main_process():
        print_heads_result(asdict(result), as_json)


def print_heads_result(result: dict[str, Any], as_json: bool) -> None:
    """Print what a training of heads gave: each head's figures last."""
    if as_json:
        print(json.dumps(result))
        return
    speed = result["tokens_per_second"]
    left_out = f", {result['left_out']:,} left out as too long" if result["left_out"] else ""
    rows = [
        ("model", result["model"]),
        ("parameters", f"{result['trained_parameters']:,} trained, {result['parameters']:,} of the plain model"),
        ("trajectories", f"{result['trajectories']:,} and {result['heldout']:,} held out{left_out}"),
        ("trained", f"{result['steps']:,} steps, {result['tokens']:,} tokens"),
        ("speed", "-" if speed is None else f"{speed:,.0f} tokens/s"),
        ("time", f"{result['seconds']:.1f} s"),
    ]
    if result["loss_before"] is not None:
        rows.append(("head 1 before", f"loss {result['loss_before']:.4f}"))
    print_table("result", rows)
    if result["loss"] is not None:
        print_head_figures(result["loss"], result["top1"], result["top5"])
