"""How the training commands print an estimate and a result."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

Rows = Iterable[tuple[str, str]]


def print_estimate(estimate: dict[str, Any], as_json: bool) -> None:
    """Print what `--dry-run` found: the resolved configuration, sizes, memory by purpose."""
    if as_json:
        print(json.dumps(estimate))
        return
    memory = estimate["memory"]
    parts = ", ".join(f"{name} {_bytes(size)}" for name, size in memory.items() if name != "total")
    print_table("configuration", ((name, _shown(value)) for name, value in estimate["config"].items()))
    print_table(
        "estimate",
        (
            ("run", f"runs/{estimate['run']}"),
            ("parameters", f"{estimate['parameters']:,}"),
            ("data", f"{estimate['data_tokens']:,} tokens in one pass"),
            ("steps", f"{estimate['steps']:,} of {estimate['tokens_per_step']:,} tokens"),
            ("memory", f"{_bytes(memory['total'])} ({parts})"),
        ),
    )


def print_base_result(result: dict[str, Any], as_json: bool) -> None:
    """Print what a base training gave."""
    if as_json:
        print(json.dumps(result))
        return
    rows = [
        ("model", result["model"]),
        ("parameters", f"{result['parameters']:,}"),
        ("trained", f"{result['steps']:,} steps, {result['tokens']:,} tokens"),
    ]
    if result["skipped_records"]:
        rows.append(("left out", f"{result['skipped_records']:,} records (longer than the context, or empty)"))
    if result["heldout_loss"] is not None:
        rows.append(("held-out loss", f"{result['heldout_loss']:.4f} nats per token"))
        rows.append(("perplexity", f"{result['perplexity']:.3f}"))
        if result["bits_per_byte"] is not None:
            rows.append(("bits per byte", f"{result['bits_per_byte']:.4f}"))
    speed = result["tokens_per_second"]
    rows.append(("speed", f"{speed:,.0f} tokens/s" if speed is not None else "-"))
    rows.append(("time", f"{result['seconds']:.1f} s"))
    print_table("result", rows)
    if result["head_loss"] is not None:
        print_head_figures(result["head_loss"], result["top1"], result["top5"])


def print_head_figures(losses: Iterable[float], top1: Iterable[float], top5: Iterable[float]) -> None:
    """Print held-out loss and accuracy of heads 1..n."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="held out", title_justify="left")
    for column in ("head", "loss", "top-1", "top-5"):
        table.add_column(column, justify="right")
    for head, (loss, first, five) in enumerate(zip(losses, top1, top5, strict=True), start=1):
        table.add_row(str(head), f"{loss:.4f}", f"{first:.1%}", f"{five:.1%}")
    Console().print(table, markup=False, highlight=False)


def print_table(title: str, rows: Rows) -> None:
    """Print labels and values."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value)
    console = Console()
    console.print(table, markup=False, highlight=False)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "-" if value is None else str(value)


def _bytes(size: float) -> str:
    """Bytes with a unit, in powers of 1,000."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
