"""How `nptool bench` prints its report: two tables of at most 80 columns, and what stands behind the figures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import floor

from rich.console import Console
from rich.table import Table

from nptool.bench.report import BenchReport, MethodReport

# Positions of a draft whose acceptance is shown; --json has them all.
SHOWN_POSITIONS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)


def counted(count: int, noun: str) -> str:
    """A number with its noun: 1 round, 2 rounds."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def settings(gpu_layers: int, flash_attention: bool) -> str:
    """How llama.cpp computes, to follow the threads."""
    return f"{', layers on the GPU' if gpu_layers else ''}, {'with' if flash_attention else 'no'} flash attention"


def print_report(report: BenchReport) -> None:
    """Print the tables."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    processor = report.machine["processor"]
    console.print(f"{report.model}: {report.model_description}, {report.model_bytes / 2**20:.1f} MiB")
    console.print(
        f"{processor}, {counted(report.threads, 'thread')}{settings(report.gpu_layers, report.flash_attention)}"
    )
    console.print(
        f"{counted(report.prompts, 'prompt')} of {report.prompts_file} "
        f"(about {report.prompt_tokens_median:.0f} tokens each)"
        f", {counted(report.rounds, 'round')}, {_sampling(report)}"
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
            console.print(f"widths of the steps, {method.name} {method.n}: {_widths(method)}")
    for method in report.methods:
        if len(method.answers_by_method) > 1:
            used = "  ".join(f"{name}: {count}" for name, count in method.answers_by_method.items())
            console.print(f"answers by method, {method.name} {method.n}: {used}")
    console.print(f"t(w) behind {report.step_context} tokens, ms: {_steps(report)}")
    if report.peak_memory_bytes is not None:
        console.print(f"peak memory of the process: {report.peak_memory_bytes / 2**20:.0f} MiB")


def _speed(methods: Sequence[MethodReport]) -> Table:
    heads = (
        "tokens/s",
        "with\nprefill",
        "speed-up",
        "with\nprefill",
        "tokens/\nforward",
        "t(n)/\nt(1)",
        "pre-\ndicted",
    )
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
    heads = ("= AR of\nwidth n", "= AR of\nwidth 1", "logit margin\nmedian", "\nworst", "first token\nms")
    rows = (
        (
            _share(method.identical_equal_width),
            _share(method.identical_width_1),
            _number(method.margin_median),
            _number(method.margin_worst),
            f"{method.first_token_ms:.1f}",
            *([_share(method.accuracy)] if scored else []),
        )
        for method in methods
    )
    title = "text (margins where it leaves AR of width 1)"
    return _table(title, methods, (*heads, *(["execution\naccuracy"] if scored else [])), rows)


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
    return "  ".join(f"{place}: {shares[place - 1]:.0%}" for place in SHOWN_POSITIONS if place <= len(shares))


def _parts(method: MethodReport) -> str:
    heads = f"heads {method.heads_ms:.3f} ms, " if method.heads_ms else ""
    return f"model {method.trunk_ms:.3f} ms, {heads}loop {method.loop_ms:.3f} ms"


def _widths(method: MethodReport) -> str:
    return "  ".join(f"{rows}: {passes / method.forward_passes:.0%}" for rows, passes in method.passes_by_width.items())


def _steps(report: BenchReport) -> str:
    return "  ".join(f"{rows}: {milliseconds:.2f}" for rows, milliseconds in report.step_ms.items())


def _sampling(report: BenchReport) -> str:
    if not report.sampling["temperature"]:
        return "greedy"
    return f"temperature {report.sampling['temperature']:g}, seed {report.sampling['seed']}"


def _share(value: float | None) -> str:
    """A share in percent, rounded down: 100 % only where there is no exception."""
    return "-" if value is None else f"{floor(1000 * value) / 10:g}%"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
