"""`nptool train cllm`: a finished model taught to decode whole blocks in parallel."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from nptool.cli import training_options as training
from nptool.cli.console import progress_bars
from nptool.cli.curve_output import check_picture, draw, draw_finished
from nptool.cli.options import AsJson, ConfigFile, DryRun
from nptool.cli.training_output import print_cllm_results, print_estimates
from nptool.pipeline.rounds_config import RoundsConfig
from nptool.processes import is_main_process
from nptool.runs import Run
from nptool.settings import resolve
from nptool.training.cllm.curve import read_curve
from nptool.training.cllm.divergences import DIVERGENCES
from nptool.training.cllm.recipe import ArTarget, Consistency, Context, Schedule
from nptool.training.responses.config import BLOCK_SIZE, run_defaults

DEFAULTS = RoundsConfig


def train_cllm(
    data: training.Data = None,
    more: training.MoreData = None,
    model: Annotated[
        str | None, typer.Option("-m", "--model", metavar="DIR|ID", help="model to train [that of the trajectories]")
    ] = None,
    n: Annotated[
        int | None,
        typer.Option("-n", "--block-length", help=f"block length in tokens [the collection's, or {BLOCK_SIZE}]"),
    ] = None,
    schedule: Annotated[
        Schedule | None, typer.Option(help=f"which state of its trajectory a block shows [{DEFAULTS.schedule}]")
    ] = None,
    window: Annotated[int | None, typer.Option(help=f"blocks in a window of the schedule [{DEFAULTS.window}]")] = None,
    random_phase: Annotated[
        bool | None,
        typer.Option("--random-phase/--no-random-phase", help="start short responses anywhere in the window [yes]"),
    ] = None,
    min_noise: Annotated[
        float | None, typer.Option(help=f"smallest noise level of the schedule [{DEFAULTS.min_noise:g}]")
    ] = None,
    max_noise: Annotated[
        float | None, typer.Option(help=f"largest noise level of the schedule [{DEFAULTS.max_noise:g}]")
    ] = None,
    augment: training.Augment = None,
    draws: Annotated[int | None, typer.Option(help=f"states of each block in a sequence [{DEFAULTS.draws}]")] = None,
    decay: Annotated[
        float | None,
        typer.Option(help=f"weight per token of distance after a block's first wrong token [{DEFAULTS.decay:g}]"),
    ] = None,
    context: Annotated[
        Context | None, typer.Option(help=f"what a block sees of the blocks before it [{DEFAULTS.context}]")
    ] = None,
    consistency: Annotated[
        Consistency | None,
        typer.Option(help=f"target: the fixed point, or the next state [{DEFAULTS.consistency}]"),
    ] = None,
    divergence: Annotated[
        str | None,
        typer.Option(metavar="|".join(DIVERGENCES), help=f"distance from teacher to student [{DEFAULTS.divergence}]"),
    ] = None,
    ar_target: Annotated[
        ArTarget | None,
        typer.Option(help=f"text of the next-token term: the model's, or the data's [{DEFAULTS.ar_target}]"),
    ] = None,
    ar_weight: Annotated[
        float | None, typer.Option(help=f"weight of the next-token term [{DEFAULTS.ar_weight:g}]")
    ] = None,
    label_smoothing: Annotated[float | None, typer.Option(help="of the next-token term [0]")] = None,
    lora_rank: Annotated[int | None, typer.Option(help="train adapters of this rank [the whole model]")] = None,
    max_length: training.MaxLength = None,
    heldout: training.HeldOut = None,
    max_new_tokens: training.MaxNewTokens = None,
    limit: training.Limit = None,
    rounds: Annotated[
        int | None, typer.Option(help="number of rounds; each trains the previous round's model on its answers [1]")
    ] = None,
    round_n: Annotated[
        int | None, typer.Option(metavar="N", help="block length of the second round [twice the first's]")
    ] = None,
    round_window: Annotated[
        int | None, typer.Option(metavar="N", help="window of the later rounds [the first's]")
    ] = None,
    round_steps: Annotated[
        int | None, typer.Option(metavar="N", help="steps of each later round [the first's]")
    ] = None,
    round_lr: Annotated[float | None, typer.Option(help="peak learning rate of the later rounds [the first's]")] = None,
    curve: Annotated[
        int | None,
        typer.Option(metavar="N", help="measure held-out tokens per forward every N steps; 0: 20 times [never]"),
    ] = None,
    curve_data: Annotated[
        Path | None, typer.Option(metavar="FILE", help="prompts to measure on [the run's held-out ones]")
    ] = None,
    plot: Annotated[bool, typer.Option("--plot", help="draw that curve; without --data, a finished run's")] = False,
    plot_file: Annotated[Path | None, typer.Option(metavar="SVG", help="draw that curve into a file")] = None,
    prompt_field: training.PromptField = None,
    response_field: training.ResponseField = None,
    steps: training.Steps = None,
    epochs: training.Epochs = None,
    lr: training.LearningRate = None,
    batch_tokens: training.BatchTokens = None,
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
    """Teach a finished model to map any state of a Jacobi trajectory to its fixed point.

    DATA is a file of `nptool collect`, or prompts that the model (-m) answers first. The defaults are those of Jacobi
    Forcing; CLLM's are --schedule uniform --context clean. The result is runs/<name>/model, a Hugging Face checkpoint
    for `nptool convert`; a later round's is runs/<name>-round-2/model. Run the same command again to resume an
    interrupted run.
    """
    given = training.given_fields(locals(), RoundsConfig)
    if plot_file is not None:
        check_picture(plot_file)
    told = training.with_file(given, RoundsConfig, config)
    drawn = plot or plot_file is not None
    if drawn and told.get("curve") is None:
        given["curve"] = 0
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
        print_cllm_results([asdict(result) for result in results], curves, as_json)
        if drawn:
            draw(curves, results[-1].run, plot_file, bars=not as_json)
