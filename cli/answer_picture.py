"""The picture of `nptool generate --compare --plot-file`: which forward pass made which token, and when."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nptool.decoding.answer import Answer

WIDTH, MARGIN = 880, 16
CHARACTER, LINE = 7.8, 26
"""Of 13-pixel monospace text."""
INSIDE, BETWEEN = 1, 5
"""Space between tokens of one pass, and of two."""
SHOWN_SECONDS, PAUSE = 8.0, 3.0
"""The slowest answer takes this long in the picture; then it stands still before it begins again."""
TINTS = 5
LONGEST = 120
"""Characters of the prompt's last line that are shown."""
STYLE = """
text { font: 13px ui-monospace, Menlo, Consolas, monospace; fill: #1c1e21; }
.title { font: 600 14px system-ui, sans-serif; } .soft { font: 12px system-ui, sans-serif; fill: #6b7076; }
.page { fill: #ffffff; }
.t0 { fill: #cfe3f7; } .t1 { fill: #d8efd3; } .t2 { fill: #fbe3b6; } .t3 { fill: #f6d3dd; } .t4 { fill: #e0d6f5; }
@media (prefers-color-scheme: dark) {
  text { fill: #e7e9ec; } .soft { fill: #979da5; } .page { fill: #15171a; }
  .t0 { fill: #1d4468; } .t1 { fill: #23512f; } .t2 { fill: #5f4512; } .t3 { fill: #5d2837; } .t4 { fill: #43336b; }
}
"""


@dataclass(frozen=True)
class Arrival:
    """A token of an answer."""

    text: str
    passes: int
    """Forward passes up to the one that made it."""
    seconds: float
    """Decoding time up to there."""


@dataclass(frozen=True)
class Lane:
    """One way of decoding."""

    title: str
    arrivals: Sequence[Arrival]


def watch(answer: Answer) -> list[Arrival]:
    """Read an answer to its end."""
    return [Arrival(token.text, answer.tally.passes, answer.tally.decode_seconds) for token in answer]


def draw(prompt: str, lanes: Sequence[Lane]) -> str:
    """An SVG whose tokens appear in the measured rhythm, slowed down; tokens of one pass have one tint.

    Without animation it shows the finished answers.
    """
    slowest = max(lane.arrivals[-1].seconds for lane in lanes)
    slower = SHOWN_SECONDS / slowest
    question = "".join(map(_visible, prompt.strip().rpartition("\n")[2]))
    parts = [_text(MARGIN, 24, question if len(question) <= LONGEST else question[: LONGEST - 1] + "…", "soft")]
    top = 52.0
    for lane in lanes:
        last = lane.arrivals[-1]
        figures = f"{last.passes} forward passes, {1e3 * last.seconds:.0f} ms"
        parts += [_text(MARGIN, top, lane.title, "title"), _text(WIDTH - MARGIN, top, figures, "soft", "end")]
        for arrival, x, line in _places(lane.arrivals):
            parts.append(_token(arrival, MARGIN + x, top + 12 + LINE * line, slower))
        top += 12 + LINE * (line + 1) + 28
    parts.append(_text(MARGIN, top - 8, f"One tint is one forward pass. Slowed down {slower:.0f} times.", "soft"))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top + 8:.0f}" width="{WIDTH}" role="img">'
        f"<title>{' against '.join(escape(lane.title) for lane in lanes)}</title><style>{STYLE}</style>"
        f'<rect class="page" width="{WIDTH}" height="{top + 8:.0f}"/>{"".join(parts)}</svg>\n'
    )


def _places(arrivals: Sequence[Arrival]) -> Iterator[tuple[Arrival, float, int]]:
    """The tokens that have text, with their place in a line and the number of the line."""
    x, line, passes = 0.0, 0, 0
    for arrival in arrivals:
        if not arrival.text:
            continue
        x += 0 if not x else INSIDE if arrival.passes == passes else BETWEEN
        if x and x + _width(arrival) > WIDTH - 2 * MARGIN:
            x, line = 0.0, line + 1
        yield arrival, x, line
        x, passes = x + _width(arrival), arrival.passes


def _width(arrival: Arrival) -> float:
    return CHARACTER * len(arrival.text) + 6


def _token(arrival: Arrival, x: float, y: float, slower: float) -> str:
    whole = SHOWN_SECONDS + PAUSE
    begin = min(slower * arrival.seconds / whole, 1.0)
    shown = escape("".join(map(_visible, arrival.text)))
    return (
        f'<g><animate attributeName="opacity" calcMode="discrete" values="0;1" keyTimes="0;{begin:.4f}" '
        f'dur="{whole:g}s" repeatCount="indefinite"/><rect class="t{arrival.passes % TINTS}" x="{x:.1f}" y="{y:.1f}" '
        f'width="{_width(arrival):.1f}" height="{LINE - 4}" rx="4"/>'
        f'<text x="{x + 3:.1f}" y="{y + 16:.1f}" textLength="{CHARACTER * len(arrival.text):.1f}">{shown}</text></g>'
    )


def _visible(character: str) -> str:
    """Lines end with a sign, spaces keep their width, and what XML forbids is replaced."""
    if character.isprintable():
        return "\u00a0" if character == " " else character
    return "\u21b5" if character == "\n" else "\ufffd"


def _text(x: float, y: float, text: str, kind: str, anchor: str = "start") -> str:
    return f'<text x="{x}" y="{y:.0f}" class="{kind}" text-anchor="{anchor}">{escape(text)}</text>'
