"""Time of a batch by its width, and the share of a decoding step that is spent outside llama_decode.

    python benchmarks/loop_overhead.py                    # a random 11M-parameter model in F32, F16 and Q8_0
    python benchmarks/loop_overhead.py --size 134M        # larger ones, with a vocabulary of 32,000
    python benchmarks/loop_overhead.py runs/x/model.gguf  # a given file

Run it on an idle machine: with two threads on two cores, any other process makes llama.cpp's threads wait for each
other, and times grow many times over.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from random_model import Shape, write_random_model

from nptool.decoding.loop.sampling import Sampling
from nptool.decoding.text_model import load
from nptool.provenance import machine

SHAPES = {
    "11M": Shape(hidden=384, layers=6, heads=6, key_value_heads=6, feed_forward=1024, vocabulary=1024),
    "134M": Shape(hidden=768, layers=12, heads=12, key_value_heads=12, feed_forward=2048, vocabulary=32_000),
}
PROMPT = "What are the names of all the rows whose value is above the average of the table? " * 2
REPEATS = 3


def main() -> None:
    """Measure and print."""
    options = parse()
    results = []
    with files(options) as paths:
        for name, path in paths.items():
            results.append(
                {
                    "model": name,
                    "threads": options.threads,
                    "flash_attention": options.flash_attention,
                    "milliseconds_by_width": batch_times(path, options),
                    "loop": loop_overhead(path, options),
                }
            )
            if not options.json:
                show(results[-1])
    if options.json:
        print(json.dumps({"machine": machine(), "results": results}, indent=2))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", nargs="*", type=Path, help="GGUF files [random models]")
    parser.add_argument("--types", default="f32,f16,q8_0", help="types of the random models [%(default)s]")
    parser.add_argument("--size", default="11M", choices=SHAPES, help="of the random models [%(default)s]")
    parser.add_argument("--widths", default="1,2,4,8,16,32", help="[%(default)s]")
    parser.add_argument("-n", type=int, default=16, help="block length [%(default)s]")
    parser.add_argument("-t", "--threads", type=int, default=None, help="[usable cores]")
    parser.add_argument("--context", type=int, default=150, help="tokens in the cache [%(default)s]")
    parser.add_argument("--rounds", type=int, default=20, help="[%(default)s]")
    parser.add_argument("--flash-attention", action=argparse.BooleanOptionalAction, help="[as nptool decodes]")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


@contextmanager
def files(options: argparse.Namespace) -> Iterator[dict[str, Path]]:
    """The given files, or temporary random ones."""
    if options.gguf:
        yield {str(path): path for path in options.gguf}
        return
    with tempfile.TemporaryDirectory() as folder:
        kinds = options.types.split(",")
        yield {
            f"random {options.size} {kind}": write_random_model(
                Path(folder) / f"{kind}.gguf", SHAPES[options.size], kind=kind
            )
            for kind in kinds
        }


def batch_times(path: Path, options: argparse.Namespace) -> dict[int, float]:
    """Width to median milliseconds of a batch; the widths take turns."""
    widths = [int(width) for width in options.widths.split(",")]
    times: dict[int, list[float]] = {width: [] for width in widths}
    start = options.context
    with load(
        path, context_length=start + 1, threads=options.threads, flash_attention=options.flash_attention
    ) as model:
        engine = model.contexts.trunk(max(widths))
        tokens = np.random.default_rng(0).integers(6, engine.vocabulary_size, start + max(widths), dtype=np.int32)
        engine.evaluate(tokens[:start], 0, outputs=False)
        for _ in range(options.rounds):
            for width in widths:
                # Not timed: the first batch of another width builds a new graph, which a loop of fixed width does not.
                for repeat in range(1 + REPEATS):
                    before = engine.seconds
                    engine.evaluate(tokens[start : start + width], start)
                    engine.rollback(start)
                    if repeat:
                        times[width].append(engine.seconds - before)
    return {width: 1e3 * median(values) for width, values in times.items()}


def loop_overhead(path: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Time of a step outside llama_decode, greedy and sampled."""
    found = {}
    with load(path, threads=options.threads, flash_attention=options.flash_attention) as model:
        for name, temperature in (("greedy", 0.0), ("temperature 0.8", 0.8)):
            tallies = []
            for seed in range(5):
                sampling = Sampling(temperature, seed=seed)
                answer = model.generate(
                    PROMPT, method="jacobi", n=options.n, fixed=True, max_tokens=100, sampling=sampling
                )
                tallies.append(answer.tally)
            found[name] = {
                "share_outside_llama_decode": median(tally.overhead for tally in tallies),
                "microseconds_outside_per_step": 1e6
                * median((tally.decode_seconds - tally.engine_seconds) / tally.passes for tally in tallies),
                "milliseconds_per_step": 1e3 * median(tally.decode_seconds / tally.passes for tally in tallies),
            }
    return found


def show(result: dict[str, Any]) -> None:
    """Print the figures of one file."""
    times = result["milliseconds_by_width"]
    base = times[min(times)]
    print(result["model"])
    print("  width        " + "".join(f"{width:>9}" for width in times))
    print("  t(w) in ms   " + "".join(f"{value:9.2f}" for value in times.values()))
    print("  t(w) / t(1)  " + "".join(f"{value / base:9.2f}" for value in times.values()))
    for name, figures in result["loop"].items():
        print(
            f"  loop, {name}: {figures['share_outside_llama_decode']:.1%} of a step outside llama_decode "
            f"({figures['microseconds_outside_per_step']:.0f} microseconds of "
            f"{figures['milliseconds_per_step']:.2f} ms)"
        )


if __name__ == "__main__":
    main()
