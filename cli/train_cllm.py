"""`nptool train cllm`: a finished model taught to decode whole blocks in parallel."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from nptool.cli.cllm_output import print_estimates, print_results
from nptool.cli.console import progress_bars
from nptool.cli.curve_drawing import draw, draw_finished
from nptool.cli.curve_picture import check_picture
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
from nptool.pipeline.rounds_config import RoundsConfig
from nptool.processes import is_main_process
from nptool.runs import Run
from nptool.settings import read_mapping, resolve
from nptool.training.cllm.curve import read_curve
from nptool.training.cllm.divergences import DIVERGENCES
from nptool.training.responses.config import BLOCK_SIZE, run_defaults

DEFAULTS = RoundsConfig


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
    augment: Annotated[
        bool | None,
        typer.Option("--augment/--no-augment", help="copy right tokens into states at random [no]", show_default=False),
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
        str | None,
        typer.Option(
            metavar="|".join(DIVERGENCES),
            help=f"distance from teacher to student [{DEFAULTS.divergence}]",
            show_default=False,
        ),
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
    rounds: Annotated[
        int | None,
        typer.Option(help="rounds in all, each collected from the model of the one before [1]", show_default=False),
    ] = None,
    round_n: Annotated[
        int | None,
        typer.Option(metavar="N", help="block length of the second round [twice the first's]", show_default=False),
    ] = None,
    round_window: Annotated[
        int | None,
        typer.Option(metavar="N", help="window from the second round on [the first's]", show_default=False),
    ] = None,
    round_steps: Annotated[
        int | None,
        typer.Option(metavar="N", help="steps of each round from the second on [the first's]", show_default=False),
    ] = None,
    round_lr: Annotated[
        float | None,
        typer.Option(help="highest learning rate from the second round on [the first's]", show_default=False),
    ] = None,
    curve: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="measure held-out tokens per forward every N steps; 0: 20 times [never]",
            show_default=False,
        ),
    ] = None,
    curve_data: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="prompts to measure on [the run's held-out ones]", show_default=False),
    ] = None,
    plot: Annotated[bool, typer.Option("--plot", help="draw that curve; without --data, a finished run's")] = False,
    plot_file: Annotated[
        Path | None, typer.Option(metavar="SVG", help="draw that curve into a file", show_default=False)
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
    that `nptool convert` takes; that of a later round is runs/<name>-round-2/model. The same command goes on with an
    interrupted run.
    """
    if plot_file is not None:
        check_picture(plot_file)
    flags = {**given_fields(locals(), RoundsConfig), "data": data_paths(data, more)}
    given = {field: value for field, value in flags.items() if value is not None}
    in_file = read_mapping(RoundsConfig, config) if config is not None else {}
    drawn = plot or plot_file is not None
    if drawn and in_file.get("curve") is None:
        given.setdefault("curve", 0)
    told = {**in_file, **given}
    done = (told.get("name"), told.get("rounds", 1))
    if drawn and not dry_run and not {"data", "model"} & told.keys() and draw_finished(*done, plot_file, as_json):
        return
    resolved = resolve(RoundsConfig, config, run_defaults(told) | given)
    if dry_run:
        from nptool.pipeline.rounds import dry_run_rounds

        print_estimates(dry_run_rounds(resolved), as_json)
        return

    from nptool.pipeline.rounds import train_rounds

    with progress_bars() as progress:
        results = train_rounds(resolved, progress)
    if is_main_process():
        curves = [read_curve(Run(Path(result.run)).curve) for result in results]
        print_results([asdict(result) for result in results], curves, as_json)
        if drawn:
            draw(curves, results[-1].run, plot_file, bars=not as_json)
