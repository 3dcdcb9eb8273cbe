"""`nptool bench`: decoding methods compared on one GGUF."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nptool.bench.config import BenchConfig, BenchOptions
from nptool.cli.console import progress_bars
from nptool.cli.decoding_options import model_path, picking
from nptool.cli.options import AsJson, ModelGguf
from nptool.cli.signatures import options
from nptool.decoding.loop.options import SamplingOptions
from nptool.errors import UsageError
from nptool.files import atomic_file
from nptool.llama.loading import LoadOptions

if TYPE_CHECKING:
    from nptool.bench.calibrate import CalibrationReport

CALIBRATE = Annotated[
    bool, typer.Option("--calibrate", help="only measure the cost of each width, and which widths give identical bits")
]
PLOT = Annotated[bool, typer.Option("--plot", help="with --calibrate: draw cost and predicted speed by width")]
PLOT_FILE = Annotated[
    Path | None,
    typer.Option("--plot-file", metavar="SVG", help="with --calibrate: draw both into a file", show_default=False),
]


@options
def bench(
    *,
    model: ModelGguf = None,
    comparison: BenchOptions,
    sampling: SamplingOptions,
    load: LoadOptions,
    calibrate: CALIBRATE = False,
    plot: PLOT = False,
    plot_file: PLOT_FILE = None,
    as_json: AsJson = False,
) -> None:
    """Measure decoding methods against autoregressive decoding: speed, tokens per forward, equality of the text."""
    if plot and (as_json or not calibrate):
        raise UsageError("--plot draws what --calibrate measures, in the terminal; give --calibrate and no --json")
    if plot_file is not None and not calibrate:
        raise UsageError("--plot-file draws what --calibrate measures; give --calibrate too")
    if calibrate:
        from nptool.bench.calibrate import run_calibration

        costs = run_calibration(model_path(model), **vars(load))
        _show_calibration(costs, as_json=as_json, plot=plot, plot_file=plot_file)
        return
    from nptool.bench.benchmark import run_bench

    config = BenchConfig(model=model_path(model), sampling=picking(sampling), **vars(comparison), **vars(load))
    try:
        with progress_bars() as progress:
            report = run_bench(config, progress)
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt("interrupted; a comparison is whole or nothing, so nothing was kept") from interrupt
    if as_json:
        typer.echo(json.dumps(report.to_json(), indent=2, ensure_ascii=False))
        return
    from nptool.cli.bench_output import print_report

    print_report(report)


def _show_calibration(report: CalibrationReport, *, as_json: bool, plot: bool, plot_file: Path | None) -> None:
    from nptool.cli.calibration_output import draw_calibration, print_calibration

    if plot_file is not None:
        with atomic_file(plot_file, "w") as stream:
            stream.write(draw_calibration(report))
    if as_json:
        typer.echo(json.dumps(report.to_json(), indent=2, ensure_ascii=False))
    else:
        print_calibration(report, plot=plot)
