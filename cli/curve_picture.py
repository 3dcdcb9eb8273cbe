"""The picture that `nptool train cllm --plot-file` writes: one SVG file, light and dark, no script.

Training time goes to the right, over all rounds; held-out tokens per forward go up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from nptool.cli.curve_output import describe_gain, duration
from nptool.errors import UsageError
from nptool.training.cllm.curve import Curve

WIDTH, HEIGHT = 760, 440
LEFT, RIGHT, TOP, BOTTOM = 60, 20, 64, 72
TICKS = 6
# Longest steps between ticks of a time axis that read well, in seconds.
TIME_STEPS = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 18000, 36000, 86400)
STYLE = """
svg { background: #fafaf8; font: 13px system-ui, sans-serif; }
text { fill: #1c1e21; } .soft { fill: #6b7076; } .title { font-size: 16px; font-weight: 600; }
.grid { stroke: #dddfe2; } .border { stroke: #6b7076; stroke-dasharray: 4 4; }
polyline { fill: none; stroke: #1f78c8; stroke-width: 2; } circle { fill: #1f78c8; }
@media (prefers-color-scheme: dark) { svg { background: #15171a; } text { fill: #e7e9ec; } .soft { fill: #979da5; }
  .grid { stroke: #33373d; } polyline { stroke: #4aa3ee; } circle { fill: #4aa3ee; } }
"""


def check_picture(path: Path) -> None:
    """Check the name of the picture before hours of training.

    Raises:
        UsageError: it is not one of an SVG file.
    """
    if path.suffix.lower() != ".svg":
        raise UsageError(f"--plot-file is {path}; the picture is an SVG, so its name must end in .svg")


@dataclass(frozen=True)
class _Scale:
    """From seconds and tokens per forward to places in the picture."""

    seconds: float
    """At the right edge."""
    highest: float
    """Tokens per forward at the top; the bottom is 0."""

    def x(self, seconds: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * seconds / self.seconds

    def y(self, tokens_per_forward: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * tokens_per_forward / self.highest


def picture(curves: Sequence[Curve], title: str) -> str:
    """The whole file.

    Args:
        curves: of each round, in order, each with at least one point.
    """
    starts = [0.0]
    for curve in curves:
        starts.append(starts[-1] + curve.points[-1].seconds)
    highest = max(point.tokens_per_forward for curve in curves for point in curve.points)
    step = _tick_step(highest)
    scale = _Scale(max(starts[-1], 1e-9), step * math.ceil(highest / step + 0.25))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}">',
        f"<style>{STYLE}</style>",
        _text(LEFT, 26, title, "title"),
        _text(LEFT, 46, describe_gain(curves[-1]), "soft"),
        *_axes(scale, step),
    ]
    for number, (curve, start) in enumerate(zip(curves, starts, strict=False), start=1):
        parts += _line(curve, start, scale, f"round {number}, n = {curve.block_size}" if len(curves) > 1 else "")
    return "\n".join([*parts, "</svg>\n"])


def _line(curve: Curve, start: float, scale: _Scale, name: str) -> list[str]:
    """One round: its points, joined, and where it begins."""
    places = [(scale.x(start + point.seconds), scale.y(point.tokens_per_forward)) for point in curve.points]
    joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    parts = [f'<polyline points="{joined}"/>']
    for (x, y), point in zip(places, curve.points, strict=True):
        note = f"step {point.step}, {duration(point.seconds)}: {point.tokens_per_forward:.2f}"
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5"><title>{note}</title></circle>')
    last_x, last_y = places[-1]
    parts.append(_text(last_x, last_y - 10, f"{curve.points[-1].tokens_per_forward:.2f}", anchor="end"))
    if name:
        x = scale.x(start)
        parts.append(f'<line class="border" x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(_text(x + 6, TOP + 12, name, "soft"))
    return parts


def _axes(scale: _Scale, step: float) -> list[str]:
    """Grid lines with their values, and what the axes are."""
    parts = []
    for number in range(round(scale.highest / step) + 1):
        y = scale.y(number * step)
        parts.append(f'<line class="grid" x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}"/>')
        parts.append(_text(LEFT - 8, y + 4, f"{number * step:g}", "soft", "end"))
    wide = next((one for one in TIME_STEPS if one * TICKS >= scale.seconds), math.ceil(scale.seconds / TICKS))
    for number in range(math.floor(scale.seconds / wide) + 1):
        when = duration(number * wide).replace(".0", "")
        parts.append(_text(scale.x(number * wide), HEIGHT - BOTTOM + 20, when, "soft", "middle"))
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(_text(middle, HEIGHT - BOTTOM + 46, "training time, measuring left out", "soft", "middle"))
    return parts


def _tick_step(highest: float) -> float:
    """1, 2 or 5 times a power of ten, so that at most `TICKS` steps reach the highest value."""
    power: float = 10.0 ** math.floor(math.log10(max(highest, 1e-9) / TICKS))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power * TICKS >= highest)


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    name = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{name}>{escape(text)}</text>'
