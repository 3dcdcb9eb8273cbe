"""Which widths give a row the same bits at any place in its batch, as the exact mode assumes.

    python benchmarks/width_exactness.py model.gguf            # on the processor
    python benchmarks/width_exactness.py model.gguf --no-flash-attention
    python benchmarks/width_exactness.py model.gguf -ngl -1    # on the GPU

`nptool bench --calibrate` finds the classes of widths from a few rows in two seconds. Here every width decodes a text
as a loop would: a random number of a batch's rows belong to the text and stay in the cache, the others are junk and are
rolled back. This is repeated with other random numbers, and after contexts of several lengths. Two widths are in one
class if all logits have the same bits.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nptool.decoding.adaptive.cost import CONTEXTS, GRID, fitting
from nptool.decoding.loop.engine import Engine
from nptool.decoding.loop.timing import prefill
from nptool.decoding.text_model import load
from nptool.provenance import machine

# The first tokens of a vocabulary are special ones.
FIRST_TOKEN = 6


def main() -> None:
    """Measure and print."""
    options = parse()
    widths = [int(width) for width in options.widths.split(",")]
    with load(
        options.gguf,
        gpu_layers=options.gpu_layers,
        context_length=options.context_length,
        threads=options.threads,
        flash_attention=options.flash_attention,
    ) as model:
        engine = model.contexts.trunk(max(widths))
        found = compare_widths(engine, widths, fitting(engine, CONTEXTS), options.rows, options.repeats)
        found = {
            "gpu_layers": options.gpu_layers,
            "threads": engine.threads,
            "flash_attention": engine.settings.flash_attention,
            **found,
        }
    if options.json:
        print(json.dumps({"machine": machine(), **found}, indent=2))
    else:
        show(found)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("--widths", default=",".join(map(str, GRID)), help="[%(default)s]")
    parser.add_argument("--rows", type=int, default=96, help="of the text, after each context [%(default)s]")
    parser.add_argument("--repeats", type=int, default=3, help="how often each width decodes it [%(default)s]")
    parser.add_argument("-ngl", "--gpu-layers", type=int, default=0, help="layers on the GPU; -1 is all [%(default)s]")
    parser.add_argument("-c", "--context-length", type=int, default=1024, help="tokens [%(default)s]")
    parser.add_argument("-t", "--threads", type=int, default=None, help="[usable cores]")
    parser.add_argument("--flash-attention", action=argparse.BooleanOptionalAction, help="[as nptool decodes]")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def compare_widths(
    engine: Engine, widths: list[int], contexts: Iterable[int], rows: int, repeats: int
) -> dict[str, Any]:
    """Classes, widths whose repeats differ, and the differences from the first width."""
    generator = np.random.default_rng(0)
    steady = dict.fromkeys(widths, True)
    same = {(one, other): True for one in widths for other in widths}
    differences, changes = dict.fromkeys(widths, 0.0), dict.fromkeys(widths, 0)
    lengths = [min(length, engine.capacity - rows) for length in contexts]
    for length in lengths:
        text = generator.integers(FIRST_TOKEN, engine.vocabulary_size, length + rows, dtype=np.int32)
        found: dict[int, NDArray[np.float32]] = {}
        for width in widths:
            found[width], *others = (decode(engine, text, length, width, seed) for seed in range(repeats))
            steady[width] &= all(np.array_equal(found[width], logits_TV) for logits_TV in others)
            for other, logits_TV in found.items():
                same[other, width] &= np.array_equal(found[width], logits_TV)
            base_TV = found[widths[0]]
            differences[width] = max(differences[width], float(np.abs(found[width] - base_TV).max()))
            changes[width] += int(np.count_nonzero(found[width].argmax(axis=1) != base_TV.argmax(axis=1)))
    return {
        "contexts": lengths,
        "rows": rows * len(lengths),
        "repeats": repeats,
        "classes": classes_of([width for width in widths if steady[width]], same),
        "unsteady": [width for width in widths if not steady[width]],
        "largest_difference": {str(width): value for width, value in differences.items()},
        "argmax_changes": {str(width): value for width, value in changes.items()},
    }


def decode(engine: Engine, text: NDArray[np.int32], start: int, width: int, seed: int) -> NDArray[np.float32]:
    """Logits (T, V) of the text from `start` on, in batches of `width` rows that end in junk."""
    generator = np.random.default_rng(seed)
    prefill(engine, text[:start])
    logits = []
    place = start
    while place < len(text):
        kept = min(int(generator.integers(1, width, endpoint=True)), len(text) - place)
        batch = generator.integers(FIRST_TOKEN, engine.vocabulary_size, width, dtype=np.int32)
        batch[:kept] = text[place : place + kept]
        logits.append(engine.evaluate(batch, place)[:kept].copy())
        place += kept
        engine.rollback(place)
    return np.concatenate(logits)


def classes_of(widths: Iterable[int], same: dict[tuple[int, int], bool]) -> list[list[int]]:
    """Group the widths that equal a group's first."""
    groups: list[list[int]] = []
    for width in widths:
        for group in groups:
            if same[group[0], width]:
                group.append(width)
                break
        else:
            groups.append([width])
    return groups


def show(found: dict[str, Any]) -> None:
    """Print the classes and the differences."""
    attention = f"{'with' if found['flash_attention'] else 'no'} flash attention"
    print(f"{found['rows']} rows, {found['repeats']} times, after {found['contexts']} tokens, {attention}")
    for group in found["classes"]:
        print(f"same bits: {', '.join(map(str, group))}")
    if found["unsteady"]:
        print(f"depends on the place in the batch: {', '.join(map(str, found['unsteady']))}")
    for width, difference in found["largest_difference"].items():
        changes = found["argmax_changes"][width]
        print(f"  width {width:>3}: logits differ by at most {difference:.2g}, {changes} other likeliest tokens")


if __name__ == "__main__":
    main()
