"""Time of steps and prefill with and without llama.cpp's fused attention ("flash attention"), by width and length.

    python benchmarks/attention.py model.gguf

Both run in turns in one process. `nptool.llama.attention` rests on these figures.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nptool.decoding.loop.timing import prefill, time_in_turns
from nptool.llama.context import Context
from nptool.llama.model import Model
from nptool.provenance import machine

# The first tokens of a vocabulary are special ones.
FIRST_TOKEN = 6


def main() -> None:
    """Measure and print."""
    options = parse()
    widths, lengths = numbers(options.widths), numbers(options.lengths)
    with (
        Model.load(options.gguf) as model,
        Context(model, max(lengths) + 1, width=max(widths), threads=options.threads) as fused,
        Context(model, max(lengths) + 1, width=max(widths), threads=options.threads, flash_attention=False) as unfused,
    ):
        tokens = np.random.default_rng(0).integers(
            FIRST_TOKEN, model.vocabulary_size, max(lengths) + max(widths), dtype=np.int32
        )
        rows = [compare(fused, unfused, tokens[:length], widths, options.rounds) for length in lengths]
        found = {"model": model.description, "threads": fused.threads, "lengths": rows}
    if options.json:
        print(json.dumps({"machine": machine(), **found}, indent=2))
    else:
        show(found, widths)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("--widths", default="1,4,8,16", help="[%(default)s]")
    parser.add_argument("--lengths", default="64,128,256,512,1024,2048", help="tokens before a step [%(default)s]")
    parser.add_argument("--rounds", type=int, default=5, help="[%(default)s]")
    parser.add_argument("-t", "--threads", type=int, default=None, help="[usable cores]")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def compare(
    fused: Context, unfused: Context, text: NDArray[np.int32], widths: list[int], rounds: int
) -> dict[str, Any]:
    """Median milliseconds, both ways: a step of each width after one text, and the prefill of the text."""
    steps: dict[str, dict[int, list[float]]] = {}
    reading: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, engine in (("fused", fused), ("unfused", unfused)):
            engine.rollback(0)
            began = perf_counter()
            prefill(engine, text)
            reading.setdefault(name, []).append(perf_counter() - began)
            for width, seconds in time_in_turns(engine, text, widths, 3):
                steps.setdefault(name, {}).setdefault(width, []).append(seconds)
    return {
        "length": len(text),
        "prefill_ms": {name: 1e3 * median(times) for name, times in reading.items()},
        "step_ms": {
            name: {str(width): 1e3 * median(times) for width, times in of_way.items()} for name, of_way in steps.items()
        },
    }


def show(found: dict[str, Any], widths: list[int]) -> None:
    """The table: milliseconds with the fused kernel / without it."""
    print(f"{found['model']}, {found['threads']} threads; milliseconds with flash attention / without it")
    titles = ("prefill", *(f"{width} rows" for width in widths))
    print(f"{'tokens before':>14}" + "".join(f"{title:>19}" for title in titles))
    for row in found["lengths"]:
        cells = [
            row["prefill_ms"],
            *({name: row["step_ms"][name][str(width)] for name in row["step_ms"]} for width in widths),
        ]
        print(f"{row['length']:14}" + "".join(f"{cell['fused']:9.2f} /{cell['unfused']:8.2f}" for cell in cells))


if __name__ == "__main__":
    main()
