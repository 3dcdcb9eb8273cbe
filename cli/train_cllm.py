"""`nptool train cllm`: a finished model taught to decode whole blocks in parallel."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import typer

from nptool.cli.console import progress_bars
from nptool.cli.options import AsJson, ConfigFile, DryRun
from nptool.cli.training_options import (
    Accumulation,
    BatchTokens,
    Checkpointing,
    DataFiles,
    Epochs,
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
from nptool.cli.training_output import print_estimate
from nptool.training.cllm.config import CllmConfig
from nptool.training.config_file import read_mapping, resolve
from nptool.training.processes import is_main_process
from nptool.training.responses.config import BLOCK_SIZE, run_defaults

DEFAULTS = CllmConfig


def train_cllm(
    data: DataFiles = None,
    more: MoreData = None,
    model: Annotated[
        str | None,
        typer.Option(
            "-m",
            "--model",
            metavar="DIR|ID",
            help="model to train [the one the trajectories are of]",
            show_default=False,
        ),
    ] = None,
    n: Annotated[
        int | None,
        typer.Option(
            "-n",
            "--block-length",
            help=f"block length in tokens [the collection's, or {BLOCK_SIZE}]",
            show_default=False,
        ),
    ] = None,
    schedule: Annotated[
        Literal["progressive", "uniform", "random", "reverse"] | None,
        typer.Option(help=f"which state a block shows [{DEFAULTS.schedule}]", show_default=False),
    ] = None,
    window: Annotated[
        int | None, typer.Option(help=f"blocks in a window of the schedule [{DEFAULTS.window}]", show_default=False)
    ] = None,
    random_phase: Annotated[
        bool | None,
        typer.Option(
            "--random-phase/--no-random-phase",
            help="start short responses anywhere in the window [yes]",
            show_default=False,
        ),
    ] = None,
    min_noise: Annotated[
        float | None,
        typer.Option(help=f"smallest noise level of the schedule [{DEFAULTS.min_noise:g}]", show_default=False),
    ] = None,
    max_noise: Annotated[
        float | None,
        typer.Option(help=f"largest noise level of the schedule [{DEFAULTS.max_noise:g}]", show_default=False),
    ] = None,
    draws: Annotated[
        int | None, typer.Option(help=f"states of a block in one sequence [{DEFAULTS.draws}]", show_default=False)
    ] = None,
    decay: Annotated[
        float | None,
        typer.Option(
            help=f"weight of a row for each token behind the first wrong one [{DEFAULTS.decay:g}]", show_default=False
        ),
    ] = None,
    context: Annotated[
        Literal["noisy", "window", "clean"] | None,
        typer.Option(help=f"what a block sees of the blocks before it [{DEFAULTS.context}]", show_default=False),
    ] = None,
    consistency: Annotated[
        Literal["global", "local"] | None,
        typer.Option(help=f"teacher: the fixed point, or the next state [{DEFAULTS.consistency}]", show_default=False),
    ] = None,
    divergence: Annotated[
        Literal["forward-kl", "reverse-kl", "jensen-shannon", "fixed-point"] | None,
        typer.Option(help=f"distance from teacher to student [{DEFAULTS.divergence}]", show_default=False),
    ] = None,
    ar_target: Annotated[
        Literal["response", "reference"] | None,
        typer.Option(
            help=f"text of the next-token term: the model's, or the data's [{DEFAULTS.ar_target}]", show_default=False
        ),
    ] = None,
    ar_weight: Annotated[
        float | None, typer.Option(help=f"weight of the next-token term [{DEFAULTS.ar_weight:g}]", show_default=False)
    ] = None,
    label_smoothing: Annotated[
        float | None, typer.Option(help="of the next-token term [0]", show_default=False)
    ] = None,
    lora_rank: Annotated[
        int | None, typer.Option(help="train adapters of this rank [the whole model]", show_default=False)
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
    epochs: Epochs = None,
    lr: LearningRate = None,
    batch_tokens: BatchTokens = None,
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
    """Teach a finished model to map any state of a Jacobi trajectory to its fixed point.

    DATA is a file of `nptool collect`, or prompts that the model (-m) answers first. The defaults are those of Jacobi
    Forcing; CLLM's are --schedule uniform --context clean. The result is runs/<name>/model, a Hugging Face checkpoint
    that `nptool convert` takes. The same command goes on with an interrupted run.
    """
    flags = {**given_fields(locals(), CllmConfig), "data": data_paths(data, more)}
    given = {field: value for field, value in flags.items() if value is not None}
    in_file = read_mapping(CllmConfig, config) if config is not None else {}
    resolved = resolve(CllmConfig, config, run_defaults({**in_file, **given}) | given)
    if dry_run:
        from nptool.training.cllm.dry_run import dry_run as estimate

        print_estimate(estimate(resolved), as_json)
        return

    from dataclasses import asdict

    from nptool.training.cllm.train import train_cllm as train

    with progress_bars() as progress:
        result = train(resolved, progress)
    if is_main_process():
        print_cllm_result(asdict(result), as_json)


def print_cllm_result(result: dict[str, Any], as_json: bool) -> None:
    """Print what a consistency training gave."""
    if as_json:
        print(json.dumps(result))
        return
    from rich.console import Console
    from rich.table import Table

    speed = result["tokens_per_second"]
    left_out = f", {result['left_out']:,} left out as too long" if result["left_out"] else ""
    rows = {
        "model": result["model"],
        "parameters": f"{result['trained_parameters']:,} trained of {result['parameters']:,}",
        "block length": f"{result['block_size']} tokens",
        "trajectories": f"{result['trajectories']:,}{left_out}",
        "trained": f"{result['steps']:,} steps, {result['tokens']:,} tokens",
        "consistency loss": f"{result['consistency_first']:.4f} -> {result['consistency_last']:.4f} nats per noisy row",
        "next-token loss": f"{result['ar_first']:.4f} -> {result['ar_last']:.4f} nats per token",
        "noisy rows right": f"{result['right_first']:.1%} -> {result['right_last']:.1%}",
        "speed": "-" if speed is None else f"{speed:,.0f} tokens/s",
        "time": f"{result['seconds']:.1f} s",
    }
    table = Table(title="result", title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for label, value in rows.items():
        table.add_row(label, value)
    Console().print(table, markup=False, highlight=False)
