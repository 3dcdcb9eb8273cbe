"""t(w) of models of different shapes and about equal size.

    python benchmarks/shapes.py 6x256x4x768 4x256x4x1280 3x256x4x1792

A shape is layers x hidden size x attention heads x feed-forward size. The models have random weights in F32 and are
measured in turns in one process. `nptool.pipeline.default` rests on these figures.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from random_model import Shape, write_random_model

from nptool.decoding.loop.timing import prefill, time_in_turns
from nptool.llama.context import Context
from nptool.llama.model import Model
from nptool.provenance import machine

# The first tokens of a vocabulary are special ones.
FIRST_TOKEN = 6


def main() -> None:
    """Measure and print."""
    options = parse()
    widths = [int(width) for width in options.widths.split(",")]
    found = measure(options, widths)
    if options.json:
        print(json.dumps({"machine": machine(), "shapes": found}, indent=2))
    else:
        show(found, widths)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="+", type=shape, metavar="LxHxAxF")
    parser.add_argument("--widths", default="1,4,8,16", help="the first is the unit [%(default)s]")
    parser.add_argument("--context", type=int, default=150, help="tokens in the cache [%(default)s]")
    parser.add_argument("--vocabulary", type=int, default=1024, help="[%(default)s]")
    parser.add_argument("--rounds", type=int, default=10, help="[%(default)s]")
    parser.add_argument("-t", "--threads", type=int, default=None, help="[usable cores]")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def shape(text: str) -> tuple[int, ...]:
    """Layers, hidden size, attention heads and feed-forward size."""
    sizes = tuple(int(size) for size in text.split("x"))
    if len(sizes) != 4:
        raise argparse.ArgumentTypeError(f"a shape is four numbers such as 4x256x4x1280, got {text}")
    return sizes


def measure(options: argparse.Namespace, widths: list[int]) -> list[dict[str, Any]]:
    """Parameters and median milliseconds by width for every shape."""
    times: list[dict[int, list[float]]] = [{width: [] for width in widths} for _ in options.shapes]
    text = np.random.default_rng(0).integers(FIRST_TOKEN, options.vocabulary, options.context, dtype=np.int32)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        models = []
        for number, (layers, hidden, heads, feed_forward) in enumerate(options.shapes):
            sizes = Shape(hidden, layers, heads, heads, feed_forward, options.vocabulary)
            path = write_random_model(folder / f"{number}.gguf", sizes, kind="f32")
            models.append(stack.enter_context(Model.load(path)))
        contexts = [
            stack.enter_context(Context(model, options.context + 1, width=max(widths), threads=options.threads))
            for model in models
        ]
        for context in contexts:
            prefill(context, text)
        for _ in range(options.rounds):
            for context, of_shape in zip(contexts, times, strict=True):
                for width, seconds in time_in_turns(context, text, widths, 3):
                    of_shape[width].append(seconds)
        return [
            {
                "shape": "x".join(map(str, sizes)),
                "parameters": model.parameters,
                "milliseconds_by_width": {str(width): 1e3 * median(values) for width, values in of_shape.items()},
            }
            for sizes, model, of_shape in zip(options.shapes, models, times, strict=True)
        ]


def show(found: list[dict[str, Any]], widths: list[int]) -> None:
    """Print a line per shape: milliseconds, and their ratio to those of the first width."""
    print(f"{'shape':<16}{'parameters':>11}" + "".join(f"{f't({width})':>16}" for width in widths))
    for entry in found:
        times = entry["milliseconds_by_width"]
        base = times[str(widths[0])]
        cells = "".join(f"{times[str(width)]:9.2f} {times[str(width)] / base:5.2f}x" for width in widths)
        print(f"{entry['shape']:<16}{entry['parameters']:11,}{cells}")


if __name__ == "__main__":
    main()
