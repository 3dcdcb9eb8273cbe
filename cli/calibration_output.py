"""How `nptool bench --calibrate` prints and draws the cost of a step, t(w), and the width classes."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from nptool.bench.advice import Advice, Way
from nptool.bench.calibrate import CalibrationReport
from nptool.cli.bench_output import counted, settings
from nptool.cli.console import bar
from nptool.cli.line_chart import Chart, svg


def print_calibration(report: CalibrationReport, *, plot: bool) -> None:
    """Print the table, and with `plot` bars."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    measured = report.calibration
    console.print(f"{report.model}: {report.model_description}")
    computed = f"{counted(report.threads, 'thread')}{settings(report.gpu_layers, report.flash_attention)}"
    console.print(f"{report.machine['processor']}, {computed}, measured in {measured.spent:.1f} s")
    if not measured.complete:
        console.print(f"time ran out before all widths were measured; the widest is {measured.widths[-1]}")
    console.print()
    console.print(_table(report))
    console.print()
    for members in measured.classes:
        console.print(f"same bits: {', '.join(map(str, members))}")
    console.print("\ntokens per forward from which a width pays, and what models trained on text-to-SQL reach:")
    console.print(_advice_table(report.advice))
    for own in report.advice.own:
        speed = own.rate / report.plain_rate
        console.print(
            f"this file by {own.method}: {own.tokens:.2f} at {own.width} rows, predicted {speed:.2f} times AR"
        )
    console.print(f"\n{report.advice.sentence}")
    if plot:
        _bars(console, "t(w) / t(1)", measured.widths, [report.cost_ratio(width) for width in measured.widths])
        title = f"predicted speed-up with w^{report.exponent:.2f} tokens per step"
        _bars(console, title, measured.widths, [report.predicted_speedup(width) for width in measured.widths])


def draw_calibration(report: CalibrationReport) -> str:
    """An SVG with the cost and the tokens of a step by width, and the speed they predict."""
    measured, exponent = report.calibration, report.exponent
    cost = {
        f"after {length} tokens": [(w, measured.at(w, length) / measured.at(1, length)) for w in measured.widths]
        for length in measured.contexts
    }
    tokens = {"predicted tokens": [(w, report.predicted_speedup(w) * report.cost_ratio(w)) for w in measured.widths]}
    speed = {"speed": [(w, report.predicted_speedup(w)) for w in measured.widths]}
    place = f"{report.model_description}, {report.machine['processor']}, {counted(report.threads, 'thread')}"
    return svg(
        Chart(f"Cost of a step: {place}", "width", "t(w) / t(1)", cost | tokens, doubling=True),
        Chart(f"Predicted speed with w^{exponent:.2f} tokens per step", "width", "times AR", speed, doubling=True),
    )


def _table(report: CalibrationReport) -> Table:
    measured = report.calibration
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    heads = [f"ms after\n{length} tokens" for length in measured.contexts]
    for head in ("width", *heads, "t(w)/\nt(1)", "predicted\nspeed-up"):
        table.add_column(head, justify="right", no_wrap=True)
    for width, *seconds in zip(measured.widths, *measured.seconds, strict=True):
        times = (f"{1e3 * second:.2f}" for second in seconds)
        ratio, speed = report.cost_ratio(width), report.predicted_speedup(width)
        table.add_row(str(width), *times, f"{ratio:.2f}", f"{speed:.2f}")
    return table


def _advice_table(advice: Advice) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for head in ("width", "CLLM\nneeds", "at most", "reach", "heads\nneed", "at most", "reach"):
        table.add_column(head, justify="right", no_wrap=True)
    for found in advice.widths:
        table.add_row(str(found.width), *_cells(found.cllm), *_cells(found.heads))
    return table


def _cells(way: Way | None) -> tuple[str, ...]:
    return () if way is None else (f"{way.needed:.2f}", f"{way.most:.1f}", f"{way.low:.2f}-{way.high:.2f}")


def _bars(console: Console, title: str, widths: Sequence[int], values: Sequence[float]) -> None:
    console.print(f"\n{title}")
    for width, value in zip(widths, values, strict=True):
        console.print(f"{width:>5} {bar(value, max(values))}")
