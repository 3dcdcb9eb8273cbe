"""How `nptool trace` prints: a row for each iteration, with a colored sign and the text of each token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nptool.bench.trace import BlockTrace, Trace
from nptool.convergence import Mark

# Signs tell the marks apart without colors.
SIGNS = {Mark.WRONG: ".", Mark.RIGHT: "+", Mark.FAST_FORWARDED: ">", Mark.STATIONARY: "="}
STYLES = {
    Mark.WRONG: "red",
    Mark.RIGHT: "green",
    Mark.FAST_FORWARDED: "bold black on bright_cyan",
    Mark.STATIONARY: "black on bright_yellow",
}
NAMES = {mark: mark.name.lower().replace("_", "-") for mark in Mark}
NO_TEXT = "<none>"
"""Text of a position that has no token in the initial guess."""
_CONTROL = str.maketrans({"\n": "\\n", "\r": "\\r", "\t": "\\t"})


def print_traces(traces: Sequence[Trace]) -> None:
    """Print every trace, then their figures in one table."""
    console = Console(highlight=False, markup=False)
    for trace in traces:
        console.print(Text(f"{trace.model}, n = {trace.n}", style="bold"), soft_wrap=True)
        for number, block in enumerate(trace.blocks, start=1):
            console.print(f"\nblock {number}")
            for row in range(block.iterations + 1):
                line = _line(trace, block, row)
                line.truncate(console.width, overflow="ellipsis")
                console.print(line)
        console.print()
    console.print(_legend())
    console.print(_figures(traces))


def token_text(trace: Trace, token: int) -> str:
    """The text of a token, with line breaks and tabs escaped."""
    return trace.pieces.get(token, NO_TEXT).translate(_CONTROL)


def _line(trace: Trace, block: BlockTrace, row: int) -> Text:
    marks_N = block.marks_SN[row]
    line = Text(f"{row or 'guess':>5}  ")
    for mark in marks_N.tolist():
        line.append(SIGNS[Mark(mark)], STYLES[Mark(mark)])
    line.append("  ")
    for token, mark in zip(block.states_SN[row].tolist(), marks_N.tolist(), strict=True):
        line.append(token_text(trace, token), STYLES[Mark(mark)])
    return line


def describe_row(marks_N: NDArray[np.uint8]) -> str:
    """The fast-forwarded and stationary tokens of an iteration, in words."""
    counts = {mark: int(np.count_nonzero(marks_N == mark)) for mark in (Mark.FAST_FORWARDED, Mark.STATIONARY)}
    return ", ".join(f"{count} {NAMES[mark]}" for mark, count in counts.items() if count)


def _legend() -> Text:
    legend = Text()
    for mark in Mark:
        legend.append(SIGNS[mark], STYLES[mark]).append(f" {NAMES[mark]}   ")
    legend.rstrip()
    return legend


def _figures(traces: Sequence[Trace]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("", no_wrap=True)
    heads = ("tokens", "iterations", "tokens/\nforward", "fast-forwarded\nper iteration", "stationary\nper iteration")
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    names = ["base", "model"] if len(traces) > 1 else ["model"]
    for name, trace in zip(names, traces, strict=True):
        figures = trace.summary()
        table.add_row(
            name,
            str(trace.tokens),
            str(trace.iterations),
            f"{figures['tokens_per_forward']:.2f}",
            f"{figures['fast_forwarded_per_iteration']:.2f}",
            f"{figures['stationary_per_iteration']:.2f}",
        )
    return table
