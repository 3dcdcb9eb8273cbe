"""`nptool bench`: decoding methods compared on one GGUF."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nptool.bench.config import BenchConfig
from nptool.cli.console import progress_bars
from nptool.cli.decoding_options import MinP, RepeatPenalty, Temperature, TopK, TopP, model_path
from nptool.cli.options import AsJson, ContextLength, FlashAttention, GpuLayers, MaxTokens, ModelGguf, Seed, Threads
from nptool.errors import UsageError
from nptool.files import atomic_file

if TYPE_CHECKING:
    from nptool.bench.calibrate import CalibrationReport

PROMPTS = Annotated[
    Path | None,
    typer.Option("--prompts", metavar="FILE", help="prompts [the run's held-out ones]", show_default=False),
]
METHODS = Annotated[
    str,
    typer.Option(
        "--methods",
        metavar="NAMES",
        help="comma-separated methods; NAME-auto and NAME-free choose the width of each step, auto the method too",
    ),
]
LENGTHS = Annotated[
    str | None,
    typer.Option(
        "-n",
        "--block-lengths",
        metavar="LIST",
        help="block lengths in tokens, or heads used [4,8,16, and all heads]",
        show_default=False,
    ),
]
CALIBRATE = Annotated[
    bool, typer.Option("--calibrate", help="only measure the cost of each width, and which widths give identical bits")
]
PLOT = Annotated[bool, typer.Option("--plot", help="with --calibrate: draw cost and predicted speed by width")]
PLOT_FILE = Annotated[
    Path | None,
    typer.Option("--plot-file", metavar="SVG", help="with --calibrate: draw both into a file", show_default=False),
]
ROUNDS = Annotated[int, typer.Option("--rounds", help="times each method answers each prompt")]
COUNT = Annotated[int, typer.Option("--count", help="number of prompts, from the start of the file")]
DEFAULT_METHODS = ",".join(BenchConfig.methods)


def bench(
    model: ModelGguf = None,
    prompts: PROMPTS = None,
    methods: METHODS = DEFAULT_METHODS,
    n: LENGTHS = None,
    max_tokens: MaxTokens = BenchConfig.max_tokens,
    rounds: ROUNDS = BenchConfig.rounds,
    count: COUNT = BenchConfig.count,
    temperature: Temperature = 0.0,
    top_k: TopK = 40,
    top_p: TopP = 0.95,
    min_p: MinP = 0.05,
    repeat_penalty: RepeatPenalty = 1.0,
    seed: Seed = 0,
    gpu_layers: GpuLayers = 0,
    context_length: ContextLength = None,
    threads: Threads = None,
    flash_attention: FlashAttention = None,
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

        costs = run_calibration(
            model_path(model),
            gpu_layers=gpu_layers,
            context_length=context_length,
            threads=threads,
            flash_attention=flash_attention,
        )
        _show_calibration(costs, as_json=as_json, plot=plot, plot_file=plot_file)
        return
    lengths = None if n is None else _numbers(n)
    from nptool.bench.benchmark import run_bench
    from nptool.decoding.loop.sampling import Sampling

    config = BenchConfig(
        model=model_path(model),
        prompts=prompts,
        methods=tuple(_names(methods)),
        n=lengths,
        max_tokens=max_tokens,
        rounds=rounds,
        count=count,
        sampling=Sampling(temperature, top_k, top_p, min_p, repeat_penalty, seed=seed),
        gpu_layers=gpu_layers,
        context_length=context_length,
        threads=threads,
        flash_attention=flash_attention,
    )
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


def _names(text: str) -> list[str]:
    return [name for name in (part.strip() for part in text.split(",")) if name]


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in _names(text))
    except ValueError as error:
        raise UsageError(f"-n must be whole numbers separated by commas, such as 4,8,16; got {text!r}") from error
