"""`nptool bench`: decoding methods compared on one GGUF."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from nptool.bench.config import BenchConfig, BenchOptions
from nptool.cli.console import progress_bars
from nptool.cli.decoding_options import model_path, picking
from nptool.cli.options import AsJson, ModelOptions
from nptool.cli.signatures import options
from nptool.decoding.loop.options import SamplingOptions
from nptool.errors import UsageError
from nptool.files import atomic_file
from nptool.llama.loading import LoadOptions
from nptool.options import option

if TYPE_CHECKING:
    from nptool.bench.calibrate import CalibrationReport


@dataclass(frozen=True, kw_only=True)
class CalibrationOptions:
    calibrate: bool = option(
        False, "only measure the cost of each width, and which widths give identical bits", "--calibrate"
    )
    plot: bool = option(False, "with --calibrate: draw cost and predicted speed by width", "--plot")
    plot_file: Path | None = option(None, "with --calibrate: draw both into a file", metavar="SVG")


@options
def bench(
    *,
    model: ModelOptions,
    comparison: BenchOptions,
    sampling: SamplingOptions,
    load: LoadOptions,
    calibration: CalibrationOptions,
    as_json: AsJson = False,
) -> None:
    """Measure decoding methods against autoregressive decoding: speed, tokens per forward, equality of the text."""
    calibrate, plot_file = calibration.calibrate, calibration.plot_file
    if calibration.plot and (as_json or not calibrate):
        raise UsageError("--plot draws what --calibrate measures, in the terminal; give --calibrate and no --json")
    if plot_file is not None and not calibrate:
        raise UsageError("--plot-file draws what --calibrate measures; give --calibrate too")
    if calibrate:
        from nptool.bench.calibrate import run_calibration

        costs = run_calibration(model_path(model), load)
        _show_calibration(costs, as_json=as_json, plot=calibration.plot, plot_file=plot_file)
        return
    from nptool.bench.benchmark import run_bench

    config = BenchConfig(model=model_path(model), sampling=picking(sampling), load=load, **vars(comparison))
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
