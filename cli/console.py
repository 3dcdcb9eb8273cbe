"""Where the command line prints: results on stdout, progress and remarks on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from nptool.progress import Progress

REDRAW_SECONDS = 0.2


@contextmanager
def progress_bars() -> Iterator[Progress]:
    """Bars on stderr, one for each step, with the time that remains; plain lines when stderr is no terminal.

    They are drawn only when the step reports: a thread that redraws would compete with what is being timed.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TaskID,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
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
    """A line for every tenth of a step: what a log file wants instead of a moving bar."""

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
