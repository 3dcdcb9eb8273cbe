"""The page of `nptool trace --html`: one self-contained file without scripts, in light and dark colors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from nptool.bench.trace import BlockTrace, Trace
from nptool.cli.trace_output import NAMES, describe_row, token_text
from nptool.convergence import Mark

CLASSES = {Mark.WRONG: "w", Mark.RIGHT: "r", Mark.FAST_FORWARDED: "f", Mark.STATIONARY: "s"}
MEANINGS = {
    Mark.WRONG: "differs from the final token",
    Mark.RIGHT: "is the final token",
    Mark.FAST_FORWARDED: "became final in this iteration, after the first token that did",
    Mark.STATIONARY: "was final before a token to its left, and stayed so",
}
STYLE = """
:root { color-scheme: light dark; --page: #fafaf8; --ink: #1c1e21; --soft: #6b7076; --line: #dddfe2; --card: #fff;
  --w: #f7dcd8; --wi: #9b2c1f; --r: #d5ecd9; --ri: #1d5a2b; --f: #1f78c8; --fi: #fff; --s: #f2b632; --si: #3d2b00; }
@media (prefers-color-scheme: dark) { :root { --page: #15171a; --ink: #e7e9ec; --soft: #979da5; --line: #33373d;
  --card: #1c1f23; --w: #43241f; --wi: #f0a79b; --r: #1e3d27; --ri: #a5dcb2; --f: #2f8fe4; --s: #e0a526; } }
body { margin: 2.5rem auto; max-width: 90rem; padding: 0 1.5rem; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; } h2 { font-size: 1.15rem; margin: 2.5rem 0 .5rem; }
h3 { font-size: .9rem; color: var(--soft); margin: 1.25rem 0 .4rem; font-weight: 600; }
p { margin: .25rem 0; } .soft { color: var(--soft); }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .75rem 1rem;
  white-space: pre-wrap; overflow-wrap: anywhere; margin: .75rem 0; font: 13px/1.5 ui-monospace, monospace; }
ul { list-style: none; display: flex; flex-wrap: wrap; gap: .4rem 1.5rem; padding: 0; margin: 1rem 0; font-size: 13px; }
li i { display: inline-block; width: .9em; height: .9em; border-radius: 3px; margin-right: .5em; vertical-align: -1px; }
.glance { display: grid; grid-template-columns: repeat(auto-fit, minmax(22rem, 1fr)); gap: 1rem; margin: 1rem 0; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1rem 1.25rem; }
.card h2 { margin: 0 0 .5rem; overflow-wrap: anywhere; } dl { display: flex; flex-wrap: wrap; gap: .5rem 1.75rem;
  margin: 0 0 1rem; } dt { font-size: 12px; color: var(--soft); } dd { margin: 0; font-size: 1.35rem; font-weight: 600;
  font-variant-numeric: tabular-nums; }
.maps { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; } .map div { display: flex; }
.map i { width: 9px; height: 9px; margin: 0 1px 1px 0; border-radius: 2px; }
.scroll { overflow-x: auto; } table { border-spacing: 2px; font: 13px/1.45 ui-monospace, monospace; }
td { white-space: pre; border-radius: 4px; padding: .1rem .35rem; text-align: center; }
td.n, td.d { font: 12px system-ui, sans-serif; color: var(--soft); text-align: right; padding-right: .6rem; }
td.d { text-align: left; padding-left: .6rem; }
.w { background: var(--w); color: var(--wi); } .r { background: var(--r); color: var(--ri); }
.f { background: var(--f); color: var(--fi); font-weight: 600; } .s { background: var(--s); color: var(--si); }
"""


def page(prompt: str, traces: Sequence[Trace]) -> str:
    """The HTML page.

    Args:
        traces: the model's, or the base model's and the model's.
    """
    names = ["Base model", "Model"] if len(traces) > 1 else ["Model"]
    named = list(zip(names, traces, strict=True))
    parts = [
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'><title>Jacobi trace</title>",
        "<meta name='viewport' content='width=device-width, initial-scale=1'>",
        f"<style>{STYLE}</style></head><body>",
        f"<h1>Jacobi iteration, blocks of {traces[-1].n} tokens</h1>",
        "<p class='soft'>Each row is one forward pass over the whole block; each square is one token.</p>",
        f"<pre>{escape(prompt)}</pre>",
        _legend(),
        "<div class='glance'>",
        *(_card(name, trace) for name, trace in named),
        "</div>",
        *(_details(name, trace) for name, trace in named),
        "</body></html>\n",
    ]
    return "\n".join(parts)


def _legend() -> str:
    items = (f"<li><i class='{CLASSES[mark]}'></i><b>{NAMES[mark]}</b>: {MEANINGS[mark]}</li>" for mark in Mark)
    return f"<ul>{''.join(items)}</ul>"


def _card(name: str, trace: Trace) -> str:
    """The figures of a trace, and its blocks as small squares."""
    figures = trace.summary()
    shown = (
        ("tokens per forward", f"{figures['tokens_per_forward']:.2f}"),
        ("iterations", str(trace.iterations)),
        ("tokens", str(trace.tokens)),
        ("fast-forwarded per iteration", f"{figures['fast_forwarded_per_iteration']:.2f}"),
        ("stationary per iteration", f"{figures['stationary_per_iteration']:.2f}"),
    )
    terms = "".join(f"<div><dt>{term}</dt><dd>{value}</dd></div>" for term, value in shown)
    maps = "".join(_map(block) for block in trace.blocks)
    title = f"{name} <span class='soft'>{escape(trace.model)}</span>"
    return f"<section class='card'><h2>{title}</h2><dl>{terms}</dl><div class='maps'>{maps}</div></section>"


def _map(block: BlockTrace) -> str:
    rows = (
        "<div>" + "".join(f"<i class='{CLASSES[Mark(mark)]}'></i>" for mark in marks) + "</div>"
        for marks in block.marks_SN.tolist()
    )
    return f"<div class='map'>{''.join(rows)}</div>"


def _details(name: str, trace: Trace) -> str:
    blocks = "".join(
        f"<h3>block {number}</h3><div class='scroll'><table>{''.join(_rows(trace, block))}</table></div>"
        for number, block in enumerate(trace.blocks, start=1)
    )
    return f"<h2>{name}</h2><pre>{escape(trace.text)}</pre>{blocks}"


def _rows(trace: Trace, block: BlockTrace) -> Iterable[str]:
    for row, (state, marks) in enumerate(zip(block.states_SN.tolist(), block.marks_SN, strict=True)):
        cells = "".join(
            f"<td class='{CLASSES[Mark(mark)]}'>{escape(token_text(trace, token))}</td>"
            for token, mark in zip(state, marks.tolist(), strict=True)
        )
        yield f"<tr><td class='n'>{row or 'guess'}</td>{cells}<td class='d'>{describe_row(marks)}</td></tr>"
