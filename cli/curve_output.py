"""How `nptool train cllm --plot` draws held-out tokens per forward in the terminal: a bar for each measurement."""

from __future__ import annotations

from collections.abc import Sequence

from nptool.training.cllm.curve import LAST_SHARE, Curve, CurvePoint

# Columns of the longest bar, and bars of one round.
BAR = 48
MOST_BARS = 24


def print_curves(curves: Sequence[Curve | None]) -> None:
    """Draw the curve of every round that has one, all to the same scale."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, soft_wrap=True)
    drawn = [(number, curve) for number, curve in enumerate(curves, start=1) if curve is not None and curve.points]
    highest = max((point.tokens_per_forward for _, curve in drawn for point in curve.points), default=1.0)
    for number, curve in drawn:
        name = f"round {number}: " if len(curves) > 1 else ""
        console.print(
            f"\n{name}held-out tokens per forward, blocks of {curve.block_size}, {curve.prompts} prompts", style="bold"
        )
        console.print(f"{'step':>7} {'training':>10}")
        for point in _thinned(curve.points):
            bar = "█" * max(1, round(BAR * point.tokens_per_forward / highest))
            console.print(f"{point.step:>7} {duration(point.seconds):>10} {bar} {point.tokens_per_forward:.2f}")
        console.print(describe_gain(curve))


def describe_gain(curve: Curve) -> str:
    """What the last stretch of the training brought, in words."""
    gain = curve.last_gain
    if gain is None:
        return "too few measurements to say whether more training helps; give a smaller --curve"
    before = curve.points[-1].tokens_per_forward - gain
    return f"the last {LAST_SHARE:.0%} of the time brought {gain:+.2f} tokens per forward ({gain / before:+.1%})"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, whichever reads best."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _thinned(points: Sequence[CurvePoint]) -> list[CurvePoint]:
    """At most `MOST_BARS` points, evenly spread, the first and the last among them."""
    if len(points) <= MOST_BARS:
        return list(points)
    last = len(points) - 1
    return [points[round(bar * last / (MOST_BARS - 1))] for bar in range(MOST_BARS)]
