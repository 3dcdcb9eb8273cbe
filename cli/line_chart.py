"""Line charts as one self-contained SVG without scripts, in light and dark colors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log2, log10

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 72, 56
"""Margins in pixels, for titles, legend and tick labels."""
MOST_TICKS = 7
# Colour-blind safe on white and on black (Okabe and Ito, 2008).
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
STYLE = """
svg { color-scheme: light dark; font: 13px system-ui, sans-serif; }
.page { fill: #fff; } text { fill: #1c1e21; } .soft { fill: #6b7076; } .grid { stroke: #dddfe2; }
.title { font-size: 16px; font-weight: 600; } .line { fill: none; stroke-width: 2; stroke-linejoin: round; }
@media (prefers-color-scheme: dark) { .page { fill: #15171a; } text { fill: #e7e9ec; } .soft { fill: #979da5; }
  .grid { stroke: #33373d; } }
"""

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Chart:
    """Lines over one x axis. The y axis includes 0."""

    title: str
    x_title: str
    y_title: str
    series: Mapping[str, Points]
    """Name to points (x, y), in the order in which a line joins them."""
    doubling: bool = False
    """Draw x, which must be positive, on a logarithmic scale with ticks at powers of two."""
    note: str = ""
    """A line below the title."""


def svg(*charts: Chart) -> str:
    """An SVG file with the charts one below the other.

    Raises:
        ValueError: a chart without a point.
    """
    height = HEIGHT * len(charts)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}">',
        f"<style>{STYLE}</style>",
        f'<rect class="page" width="{WIDTH}" height="{height}"/>',
        *(f'<g transform="translate(0 {place * HEIGHT})">{_chart(chart)}</g>' for place, chart in enumerate(charts)),
        "</svg>\n",
    ]
    return "\n".join(parts)


@dataclass(frozen=True)
class _Axis:
    """A scale from values to pixels."""

    low: float
    high: float
    start: float
    """Pixel of `low`; `end` is that of `high`."""
    end: float
    ticks: Sequence[float]
    doubling: bool = False

    def at(self, value: float) -> float:
        low, high = self.low, self.high
        if self.doubling:
            low, high, value = log2(low), log2(high), log2(value)
        share = (value - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.end - self.start)


def _chart(chart: Chart) -> str:
    points = [point for line in chart.series.values() for point in line]
    if not points:
        raise ValueError(f"{chart.title}: there is no point to draw")
    x_axis = _x_axis([x for x, _ in points], chart.doubling)
    y_axis = _y_axis([y for _, y in points])
    parts = [
        f'<text class="title" x="{LEFT}" y="26">{escape(chart.title)}</text>',
        *([f'<text class="soft" x="{LEFT}" y="42">{escape(chart.note)}</text>'] if chart.note else []),
        *_grid(x_axis, y_axis),
        f'<text class="soft" x="{WIDTH - RIGHT}" y="{HEIGHT - 14}" text-anchor="end">{escape(chart.x_title)}</text>',
        f'<text class="soft" x="{LEFT - 44}" y="{TOP - 14}">{escape(chart.y_title)}</text>',
    ]
    # The legend is right-aligned, on the line of the y axis's title.
    ends = WIDTH - RIGHT
    for place, (name, line) in reversed(list(enumerate(chart.series.items()))):
        color = COLORS[place % len(COLORS)]
        parts += _line(line, x_axis, y_axis, color)
        if len(chart.series) > 1:
            parts.append(
                f'<text x="{ends}" y="{TOP - 14}" text-anchor="end"><tspan style="fill: {color}">●</tspan> '
                f"{escape(name)}</text>"
            )
            ends -= 8 * len(name) + 32
    return "\n".join(parts)


def _grid(x_axis: _Axis, y_axis: _Axis) -> list[str]:
    parts = []
    for value in y_axis.ticks:
        y = f"{y_axis.at(value):.1f}"
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="soft" x="{LEFT - 10}" y="{y}" dy="4" text-anchor="end">{value:g}</text>')
    for value in x_axis.ticks:
        x = f"{x_axis.at(value):.1f}"
        parts.append(f'<text class="soft" x="{x}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{value:g}</text>')
    return parts


def _line(points: Points, x_axis: _Axis, y_axis: _Axis, color: str) -> list[str]:
    """The line, and a dot for each point with its values as a tooltip."""
    places = [(f"{x_axis.at(x):.1f}", f"{y_axis.at(y):.1f}") for x, y in points]
    path = " ".join(f"{x},{y}" for x, y in places)
    dots = (
        f'<circle cx="{x}" cy="{y}" r="3.5" fill="{color}"><title>{values[0]:g}: {values[1]:.3g}</title></circle>'
        for (x, y), values in zip(places, points, strict=True)
    )
    return [f'<polyline class="line" stroke="{color}" points="{path}"/>', *dots]


def _x_axis(values: Sequence[float], doubling: bool) -> _Axis:
    low, high = min(values), max(values)
    if doubling:
        ticks = [2.0**power for power in range(ceil(log2(low)), floor(log2(high)) + 1)]
    else:
        ticks = _multiples(low, high)
    return _Axis(low, high, LEFT, WIDTH - RIGHT, ticks, doubling)


def _y_axis(values: Sequence[float]) -> _Axis:
    """Widened to the next ticks."""
    low, high = min(0.0, *values), max(0.0, *values)
    step = _step(high - low)
    low, high = floor(low / step) * step, ceil(high / step) * step
    return _Axis(low, max(high, low + step), HEIGHT - BOTTOM, TOP, _multiples(low, max(high, low + step)))


def _multiples(low: float, high: float) -> list[float]:
    step = _step(high - low)
    # The tolerance keeps a bound that is a multiple up to rounding.
    return [number * step for number in range(ceil(low / step - 1e-9), floor(high / step + 1e-9) + 1)]


def _step(span: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that divides `span` into at most `MOST_TICKS` parts."""
    if span <= 0:
        return 1.0
    unit: float = 10.0 ** floor(log10(span / MOST_TICKS))
    return next(unit * factor for factor in (1, 2, 5, 10) if span / (unit * factor) <= MOST_TICKS)
