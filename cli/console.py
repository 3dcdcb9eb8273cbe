"""What commands print with: tables and bars on stdout, progress on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING, Any

from nptool.progress import Progress

if TYPE_CHECKING:
    from nptool.heads_sample import HeadsFigures
    from nptool.pipeline.type_choice import TypeChoice

REDRAW_SECONDS = 0.2
LONGEST_BAR = 48
"""Columns."""


def print_table(title: str, rows: Mapping[str, Any]) -> None:
    """Print labels and values; None is a dash, a list its items."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        shown = ", ".join(map(str, value)) if isinstance(value, list) else value
        table.add_row(name, "-" if shown is None else str(shown))
    Console().print(table, markup=False, highlight=False)


def bar(value: float, highest: float) -> str:
    """A bar as long as the value's share of the highest one, followed by the value."""
    return f"{'█' * max(1, round(LONGEST_BAR * value / highest))} {value:.2f}"


def chain_figures(figures: HeadsFigures) -> str:
    """Tokens per forward and acceptance of a chain of heads, in a few words."""
    accepted = ", ".join(f"{share:.0%}" for share in figures.acceptance)
    return f"{figures.tokens_per_forward:.2f} tokens per forward; drafts accepted: {accepted}"


def print_choice(choice: TypeChoice) -> None:
    """What `--type auto` chose, and the types that were not possible."""
    print(choice.sentence)
    for name, reason in choice.impossible.items():
        print(f"note: {name} is not possible: {reason}")


@contextmanager
def progress_bars() -> Iterator[Progress]:
    """Progress bars on stderr, one for each stage, with the remaining time; plain lines if stderr is not a terminal.

    Bars are redrawn only when a stage reports progress: a redrawing thread would disturb what is being timed.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _PlainLines()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Bars(*columns, console=console, auto_refresh=False) as bars:
        tasks: dict[str, TaskID] = {}
        drawn = 0.0

        def report(step: str, done: float, total: float, note: str = "") -> None:
            nonlocal drawn
            if step not in tasks:
                tasks[step] = bars.add_task(step, total=total, note=note)
            bars.update(tasks[step], completed=done, total=total, note=note)
            if done >= total or monotonic() - drawn > REDRAW_SECONDS:
                drawn = monotonic()
                bars.refresh()

        yield report


class _PlainLines:
    """A line for every tenth of a stage, for log files."""

    def __init__(self) -> None:
        self._start: dict[str, float] = {}
        self._tenth: dict[str, int] = {}

    def __call__(self, step: str, done: float, total: float, note: str = "") -> None:
        now = monotonic()
        start = self._start.setdefault(step, now)
        tenth = int(10 * done / total) if total else 10
        if self._tenth.get(step) == tenth:
            return
        self._tenth[step] = tenth
        elapsed = now - start
        left = f", about {elapsed * (total - done) / done:.0f} s left" if 0 < done < total else ""
        tail = f"  {note}" if note else ""
        print(f"{step}: {done:.0f} of {total:.0f} ({elapsed:.0f} s{left}){tail}", file=sys.stderr, flush=True)
