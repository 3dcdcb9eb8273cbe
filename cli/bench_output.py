"""How `nptool bench` prints its report: two tables of at most 80 columns, then details."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import floor
from typing import Any

from rich.console import Console
from rich.table import Table

from nptool.bench.report import BenchReport, MethodReport

# Draft positions whose acceptance is printed; --json has all.
SHOWN_POSITIONS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)


def counted(count: int, noun: str) -> str:
    """A count with its noun: 1 round, 2 rounds."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def settings(gpu_layers: int, flash_attention: bool) -> str:
    """llama.cpp's settings as the end of a list."""
    return f"{', layers on the GPU' if gpu_layers else ''}, {'with' if flash_attention else 'no'} flash attention"


def print_report(report: BenchReport) -> None:
    """Print the tables and details."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(f"{report.model}: {report.model_description}, {report.model_bytes / 2**20:.1f} MiB")
    computed = f"{counted(report.threads, 'thread')}{settings(report.gpu_layers, report.flash_attention)}"
    console.print(f"{report.machine['processor']}, {computed}")
    console.print(
        f"{counted(report.prompts, 'prompt')} of {report.prompts_file} "
        f"(about {report.prompt_tokens_median:.0f} tokens each), {counted(report.rounds, 'round')}, {_sampling(report)}"
    )
    console.print()
    console.print(_speed(report.methods))
    console.print()
    console.print(_equality(report.methods))
    console.print()
    for method in report.methods:
        if method.acceptance_by_position:
            console.print(f"accepted drafts by position, {method.name} {method.n}: {_acceptance(method)}")
    for method in report.methods:
        console.print(f"time of a step, {method.name} {method.n}: {_parts(method)}")
    for method in report.methods:
        if len(method.passes_by_width) > 1:
            total = method.forward_passes
            shares = {width: f"{passes / total:.0%}" for width, passes in method.passes_by_width.items()}
            console.print(f"widths of the steps, {method.name} {method.n}: {_listed(shares)}")
    for method in report.methods:
        if len(method.answers_by_method) > 1:
            console.print(f"answers by method, {method.name} {method.n}: {_listed(method.answers_by_method)}")
    times = {width: f"{milliseconds:.2f}" for width, milliseconds in report.step_ms.items()}
    console.print(f"t(w) after {report.step_context} tokens, ms: {_listed(times)}")
    if report.peak_memory_bytes is not None:
        console.print(f"peak memory of the process: {report.peak_memory_bytes / 2**20:.0f} MiB")


def _speed(methods: Sequence[MethodReport]) -> Table:
    with_prefill = "with\nprefill"
    heads = ("tokens/s", with_prefill, "speed-up", with_prefill, "tokens/\nforward", "t(n)/\nt(1)", "pre-\ndicted")
    rows = (
        (
            f"{method.tokens_per_second:.1f}",
            f"{method.tokens_per_second_with_prefill:.1f}",
            f"{method.speedup:.2f}",
            f"{method.speedup_with_prefill:.2f}",
            f"{method.tokens_per_forward:.2f}",
            f"{method.cost_ratio:.2f}",
            f"{method.predicted_speedup:.2f}",
        )
        for method in methods
    )
    return _table("speed (predicted: tokens per forward * t(1) / (t(n) + heads))", methods, heads, rows)


def _equality(methods: Sequence[MethodReport]) -> Table:
    scored = any(method.accuracy is not None for method in methods)
    heads = ["= AR of\nwidth n", "= AR of\nwidth 1", "logit margin\nmedian", "\nworst", "first token\nms"]
    if scored:
        heads.append("execution\naccuracy")
    rows = (
        (
            _share(method.identical_equal_width),
            _share(method.identical_width_1),
            "-" if method.margin_median is None else f"{method.margin_median:.3g}",
            "-" if method.margin_worst is None else f"{method.margin_worst:.3g}",
            f"{method.first_token_ms:.1f}",
            *([_share(method.accuracy)] if scored else []),
        )
        for method in methods
    )
    return _table("text (margins at the first difference from AR of width 1)", methods, heads, rows)


def _table(title: str, methods: Sequence[MethodReport], heads: Iterable[str], rows: Iterable[Iterable[str]]) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("method", no_wrap=True)
    table.add_column("n", justify="right", no_wrap=True)
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for method, row in zip(methods, rows, strict=True):
        table.add_row(method.name, str(method.n), *row)
    return table


def _acceptance(method: MethodReport) -> str:
    shares = method.acceptance_by_position
    return _listed({place: f"{shares[place - 1]:.0%}" for place in SHOWN_POSITIONS if place <= len(shares)})


def _parts(method: MethodReport) -> str:
    heads = f"heads {method.heads_ms:.3f} ms, " if method.heads_ms else ""
    return f"model {method.trunk_ms:.3f} ms, {heads}loop {method.loop_ms:.3f} ms"


def _listed(values: Mapping[Any, Any]) -> str:
    return "  ".join(f"{name}: {value}" for name, value in values.items())


def _sampling(report: BenchReport) -> str:
    if not report.sampling["temperature"]:
        return "greedy"
    return f"temperature {report.sampling['temperature']:g}, seed {report.sampling['seed']}"


def _share(value: float | None) -> str:
    """In percent, rounded down: 100% only without exceptions."""
    return "-" if value is None else f"{floor(1000 * value) / 10:g}%"
