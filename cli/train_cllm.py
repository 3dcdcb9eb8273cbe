"""`nptool train cllm`: a finished model taught to decode whole blocks in parallel."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from nptool.cli.console import progress_bars
from nptool.cli.curve_output import check_picture, draw, draw_finished
from nptool.cli.options import AsJson, RunOptions
from nptool.cli.signatures import Given, options
from nptool.cli.training_output import print_cllm_results, print_estimates
from nptool.options import option
from nptool.pipeline.rounds_config import RoundsConfig
from nptool.processes import is_main_process
from nptool.runs import Run
from nptool.settings import read_mapping, resolve
from nptool.training.cllm.curve import read_curve
from nptool.training.responses.config import run_defaults


@dataclass(frozen=True)
class PlotOptions:
    plot: bool = option(False, "draw the curve; without --data, a finished run's", "--plot")
    plot_file: Path | None = option(None, "draw the curve into a file", metavar="SVG")


@options
def train_cllm(
    given: Annotated[Given, RoundsConfig], picture: PlotOptions, run: RunOptions, as_json: AsJson = False
) -> None:
    """Teach a finished model to map any state of a Jacobi trajectory to its fixed point.

    DATA is a file of `nptool collect`, or prompts that the model (-m) answers first. The defaults are those of Jacobi
    Forcing; CLLM's are --schedule uniform --context clean. The result is runs/<name>/model, a Hugging Face checkpoint
    for `nptool convert`; a later round's is runs/<name>-round-2/model. Run the same command again to resume an
    interrupted run.
    """
    plot_file = picture.plot_file
    if plot_file is not None:
        check_picture(plot_file)
    told = given if run.config is None else read_mapping(RoundsConfig, run.config) | given
    drawn = picture.plot or plot_file is not None
    if drawn and told.get("curve") is None:
        told["curve"] = 0
    done = (told.get("name"), told.get("rounds", 1))
    if drawn and not run.dry_run and not {"data", "model"} & told.keys() and draw_finished(*done, plot_file, as_json):
        return
    resolved = resolve(RoundsConfig, None, told, run_defaults)
    if run.dry_run:
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
