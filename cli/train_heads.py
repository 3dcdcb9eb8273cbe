"""`nptool train heads`: extra heads for a finished model, which predict the tokens after the next one."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Literal

import typer

from nptool.cli import training_options as training
from nptool.cli.console import progress_bars
from nptool.cli.options import AsJson, ConfigFile, DryRun
from nptool.cli.training_output import print_estimates, print_heads_result
from nptool.processes import is_main_process
from nptool.settings import resolve
from nptool.training.heads.config import COUNT, HeadsConfig, heads_defaults

DEFAULTS = HeadsConfig


def train_heads(
    data: training.Data = None,
    more: training.MoreData = None,
    model: Annotated[
        str | None,
        typer.Option("-m", "--model", metavar="DIR|ID", help="model to add heads to [that of the trajectories]"),
    ] = None,
    kind: Annotated[
        Literal["shared", "separate", "nextn"] | None,
        typer.Option(
            help="one layer for all extra heads, a layer for each, or a block that llama.cpp itself drafts with "
            f"[{DEFAULTS.kind}]"
        ),
    ] = None,
    heads: Annotated[
        int | None,
        typer.Option(
            help="number of heads, including the model's own last layer ["
            + ", ".join(f"{kind} {count}" for kind, count in COUNT.items())
            + "]"
        ),
    ] = None,
    rank: Annotated[
        int | None, typer.Option(help=f"rank of what tells the depths of a shared layer apart [{DEFAULTS.rank}]")
    ] = None,
    joint: Annotated[
        bool | None, typer.Option("--joint/--no-joint", help="then train trunk and heads together [no]")
    ] = None,
    joint_lr: Annotated[
        float | None, typer.Option(help=f"peak learning rate of the joint stage [{DEFAULTS.joint_lr:g}]")
    ] = None,
    guard: Annotated[
        float | None,
        typer.Option(help=f"weight that keeps head 1 near the original model in the joint stage [{DEFAULTS.guard:g}]"),
    ] = None,
    answer_anew: Annotated[
        bool | None,
        typer.Option(
            "--answer-anew/--no-answer-anew",
            help="let the model answer the trajectories' prompts itself [only another model's, without --data]",
        ),
    ] = None,
    max_length: training.MaxLength = None,
    heldout: training.HeldOut = None,
    max_new_tokens: training.MaxNewTokens = None,
    limit: training.Limit = None,
    prompt_field: training.PromptField = None,
    response_field: training.ResponseField = None,
    steps: training.Steps = None,
    epochs: Annotated[float | None, typer.Option(help=f"passes over the data [{DEFAULTS.DEFAULT_PASSES:g}]")] = None,
    lr: training.LearningRate = None,
    batch_tokens: Annotated[int | None, typer.Option(help=f"tokens in a batch [{DEFAULTS.batch_tokens}]")] = None,
    accumulation: training.Accumulation = None,
    gradient_checkpointing: training.Checkpointing = None,
    precision: training.Precision = None,
    seed: training.Seed = None,
    save_every: training.SaveEvery = None,
    name: training.RunName = None,
    config: ConfigFile = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Add extra heads to a finished model: head k predicts the k-th token ahead, all of them in one pass.

    DATA is a file of `nptool collect`, or prompts that the model (-m) answers first. The model itself is unchanged, bit
    for bit, unless --joint is given. The result is runs/<name>/model: an ordinary Hugging Face checkpoint with the
    heads next to it. Run the same command again to resume an interrupted run.
    """
    given = training.given_fields(locals(), HeadsConfig)
    told = training.with_file(given, HeadsConfig, config)
    defaults = {field: value for field, value in heads_defaults(told).items() if field not in told}
    resolved = resolve(HeadsConfig, config, defaults | given)
    if dry_run:
        from nptool.training.heads.dry_run import dry_run as estimate

        print_estimates([estimate(resolved)], as_json)
        return

    from nptool.training.heads.train import train_heads as train

    with progress_bars() as progress:
        result = train(resolved, progress)
    if is_main_process():
        print_heads_result(asdict(result), as_json)
