"""More candidates per pass: branches beside a Jacobi window, and two blocks in flight, against wider windows.

    python benchmarks/candidates.py runs/x/model.gguf runs/x/heldout.jsonl

Every prompt is decoded greedily by every variant, in batches that have the same number of rows at every step, so that
its text must be that of autoregressive decoding in batches of so many rows: it is compared. What is counted does not
depend on the machine; only the predicted speed-up does, which is tokens per forward * t(1) / t(rows), with t from the
model's calibration (`--counts FILE` predicts it anew from an earlier run's JSON). It is given for the rows that a step
had (`fixed`), and for those it needed (`needed`), since a step for which there are few candidates could be narrower.

Two blocks in flight are Jacobi Forcing's. In a sliding window the second one would just be the window's second half.

The fair rival of a variant is a plain window that costs as much. A variant is worth keeping where it is predicted to be
faster than the best plain window by `FASTER`, or saves `FEWER` of the passes of the best window of no more rows.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from candidate_drafts import SOURCES, Blocks, Branches, rows_in_flight
from numpy.typing import NDArray

from nptool.bench.prompts import read_prompts
from nptool.decoding.calibration import Calibration
from nptool.decoding.engine import Engine
from nptool.decoding.generate import TextModel
from nptool.decoding.jacobi import JacobiWindow
from nptool.decoding.loop import decode
from nptool.decoding.proposers import Autoregressive, Proposer
from nptool.decoding.sampling import Sampling
from nptool.decoding.sequence import Sequence as Text
from nptool.decoding.tally import Tally
from nptool.decoding.verification import Step, Verify, verify_line
from nptool.provenance import provenance, usable_cores

FASTER, FEWER = 0.03, 0.10
WINDOW = "window"
COMBINATIONS = ("recycled", "lookup", "recycled+lookup", "lookahead", "lookahead+lookup")
# Share of a block accepted when the next one enters: never, Jacobi Forcing's, at once.
IN_FLIGHT = {"block": 2.0, "2 blocks": 0.85, "2 blocks at once": 0.0}

Tokens = tuple[int, ...]
Propose = Callable[[Text], Proposer[Any]]


@dataclass(frozen=True)
class Variant:
    """One way to decode."""

    name: str
    n: int
    """Length of the window or the block."""
    rows: int
    """Of every batch."""
    propose: Propose
    """Makes the proposer for one text."""


@dataclass
class Count:
    """What a variant did, over all prompts."""

    name: str
    n: int
    rows: int
    tokens: int = 0
    forwards: int = 0
    different: int = 0
    """Answers that are not those of autoregressive decoding in batches of as many rows."""
    again: int = 0
    """Rows of tokens that were accepted on a branch and had to be evaluated again."""
    needed: Counter[int] = field(default_factory=Counter)
    """Rows that a step needed to the number of such steps."""

    @property
    def tokens_per_forward(self) -> float:
        """Tokens of all answers over the passes of the model."""
        return self.tokens / self.forwards


def main() -> None:
    """Count what every variant brings and costs, and print it."""
    options = parse()
    with TextModel(options.gguf, threads=options.threads) as model:
        # First of all, as it uses the contexts.
        calibration = model.calibration
        counted = known_counts(options.counts) if options.counts else count_all(model, options)
    costs = Costs(calibration, counted["context"])
    result = counted | {
        "threads": options.threads or usable_cores(),
        "relative_seconds": {rows: costs.ratio(rows) for rows in calibration.widths},
        "variants": judge(counted["variants"], costs),
        "provenance": provenance(),
    }
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        show(result)


def count_all(model: TextModel, options: argparse.Namespace) -> dict[str, Any]:
    """What does not depend on the machine; the counts of all variants are under `variants`."""
    variants = list_variants(options)
    records = read_prompts(options.prompts, options.count)
    prompts = [model.encode(record.turns, raw=record.raw) for record in records]
    decoding = Decoding(model, max(variant.rows for variant in variants), options.max_tokens)
    return {
        "model": options.gguf.name,
        "prompts": len(prompts),
        "context": sum(map(len, prompts)) / len(prompts),
        "branch_length": options.length,
        "branch_places": options.places,
        "variants": count(decoding, prompts, variants),
    }


def known_counts(path: Path) -> dict[str, Any]:
    """What an earlier run counted."""
    found: dict[str, Any] = json.loads(path.read_text())
    counts = [Count(**{item.name: row[item.name] for item in fields(Count)}) for row in found["variants"]]
    for counted in counts:
        counted.needed = Counter({int(rows): steps for rows, steps in counted.needed.items()})
    return found | {"variants": counts}


def parse() -> argparse.Namespace:
    """The options of the line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("prompts", type=Path, help="data file of any known format")
    parser.add_argument("--count", type=int, default=100, help="prompts [%(default)s]")
    parser.add_argument("--max-tokens", type=int, default=256, help="of an answer [%(default)s]")
    parser.add_argument("-n", type=numbers, default=[4, 8, 16], help="windows and blocks [4,8,16]")
    parser.add_argument("--branches", type=numbers, default=[1, 2, 4], help="that a step has rows for [1,2,4]")
    parser.add_argument("--length", type=int, default=4, help="tokens of a branch [%(default)s]")
    parser.add_argument("--places", type=int, default=1, help="of the window that branch [%(default)s: the text's end]")
    parser.add_argument("--counts", type=Path, help="JSON of an earlier run: nothing is decoded, only costs are new")
    parser.add_argument("-t", "--threads", type=int, default=None, help="[usable cores]")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def numbers(text: str) -> list[int]:
    """Whole numbers, separated by commas."""
    return [int(number) for number in text.split(",")]


def list_variants(options: argparse.Namespace) -> list[Variant]:
    """Everything that is measured, beginning with a plain window of every number of rows that there is."""
    found = []
    for n in options.n:
        for rows in (n + options.length * number for number in options.branches):
            for name in COMBINATIONS:
                make = partial(branches, n=n, rows=rows, kinds=name.split("+"), options=options)
                found.append(Variant(name, n, rows, make))
        for name, begin in IN_FLIGHT.items():
            if begin > 1 or rows_in_flight(n, begin) > n:
                found.append(Variant(name, n, rows_in_flight(n, begin), partial(blocks, n=n, begin=begin)))
    widths = sorted({*options.n}.union(variant.rows for variant in found))
    return [Variant(WINDOW, rows, rows, partial(window, n=rows)) for rows in widths] + found


def window(text: Text, n: int) -> JacobiWindow:
    """A plain window of n rows."""
    return JacobiWindow(n, text.tokens, seed=0)


def branches(text: Text, n: int, rows: int, kinds: Iterable[str], options: argparse.Namespace) -> Branches:
    """A window of n rows with branches of these kinds beside it, `rows` in all."""
    return Branches(n, rows, text, [SOURCES[kind](options.length) for kind in kinds], options.places)


def blocks(text: Text, n: int, begin: float) -> Blocks:
    """Blocks of n tokens, the next one in flight once the share `begin` of the first is accepted."""
    return Blocks(n, text.tokens, begin)


class Decoding:
    """Answers prompts by any variant, each from an empty cache."""

    def __init__(self, model: TextModel, widest: int, max_tokens: int) -> None:
        self._engine, self._text, _ = model.engines.open(widest)
        self._max_tokens = max_tokens
        self._end_tokens = model.model.end_tokens

    def answer(self, prompt: NDArray[np.int32], rows: int, propose: Propose, counted: Count) -> Tokens:
        """The tokens of the answer in batches of `rows` rows."""
        self._text.truncate(0)
        self._text.open(prompt)
        self._text.prefill()
        proposer = propose(self._text)
        steps = decode(
            self._engine,
            self._text,
            proposer,
            Sampling(),
            Tally(proposer.width),
            limit=min(self._engine.capacity, len(prompt) + self._max_tokens),
            end_tokens=self._end_tokens,
            width=rows,
            verify=counting(proposer.verify if isinstance(proposer, Branches) else verify_line, counted),
        )
        tokens = tuple(token for added in steps for token in added.tolist())
        counted.tokens += len(tokens)
        return tokens


def count(decoding: Decoding, prompts: Sequence[NDArray[np.int32]], variants: Sequence[Variant]) -> list[Count]:
    """Answer every prompt by every variant."""
    counts = [Count(variant.name, variant.n, variant.rows) for variant in variants]
    for prompt in prompts:
        expected: dict[int, Tokens] = {}
        for variant, counted in zip(variants, counts, strict=True):
            if variant.rows not in expected:
                plain = Count("ar", 1, variant.rows)
                expected[variant.rows] = decoding.answer(prompt, variant.rows, lambda text: Autoregressive(), plain)
            answer = decoding.answer(prompt, variant.rows, variant.propose, counted)
            counted.different += answer != expected[variant.rows]
    return counts


def counting(verify: Verify, counted: Count) -> Verify:
    """`verify`, and what its steps need is counted."""

    def judged(engine: Engine, sequence: Text, draft: Any, sampling: Sampling, width: int | None) -> Step:
        counted.forwards += 1
        counted.again += sequence.pending
        counted.needed[sequence.pending + 1 + len(draft)] += 1
        return verify(engine, sequence, draft, sampling, width)

    return judged


class Costs:
    """Predicted speed-ups over autoregressive decoding, from t(rows) behind `length` tokens."""

    def __init__(self, calibration: Calibration, length: float) -> None:
        self._seconds = partial(calibration.at, context=length)

    def ratio(self, rows: int) -> float:
        """t(rows) / t(1)."""
        return self._seconds(rows) / self._seconds(1)

    def fixed(self, counted: Count) -> float:
        """Where every batch has all rows."""
        return counted.tokens_per_forward / self.ratio(counted.rows)

    def needed(self, counted: Count) -> float:
        """Where a batch has the rows that it needs."""
        return counted.tokens / sum(steps * self.ratio(rows) for rows, steps in counted.needed.items())


def judge(counts: Sequence[Count], costs: Costs) -> list[dict[str, Any]]:
    """The figures of every variant, and how they compare with those of plain windows."""
    windows = [counted for counted in counts if counted.name == WINDOW]
    fastest = max(map(costs.fixed, windows))
    judged = []
    for counted in counts:
        fewest = min(window.forwards for window in windows if window.rows <= counted.rows)
        faster = max(costs.fixed(counted), costs.needed(counted)) / fastest - 1
        saved = 1 - counted.forwards / fewest
        judged.append(
            vars(counted)
            | {
                "tokens_per_forward": counted.tokens_per_forward,
                "rows_needed": sum(rows * steps for rows, steps in counted.needed.items()) / counted.forwards,
                "rows_again": counted.again / counted.forwards,
                "speedup_fixed": costs.fixed(counted),
                "speedup_needed": costs.needed(counted),
                "faster_than_best_window": faster,
                "forwards_saved": saved,
                "worth_keeping": counted.name != WINDOW and (faster >= FASTER or saved >= FEWER),
            }
        )
    return judged


def show(result: dict[str, Any]) -> None:
    """Print the table."""
    print(f"{result['model']}, {result['prompts']} prompts; branches of {result['branch_length']} tokens")
    print("t(w)/t(1): " + ", ".join(f"{width}: {ratio:.2f}" for width, ratio in result["relative_seconds"].items()))
    print(
        f"{'':18} {'n':>3} {'rows':>4} {'needed':>6} {'again':>5} {'TPF':>5} {'fixed':>6} {'needed':>6} "
        f"{'faster':>7} {'saved':>6}  differ"
    )
    for row in result["variants"]:
        print(
            f"{row['name']:18} {row['n']:3} {row['rows']:4} {row['rows_needed']:6.1f} {row['rows_again']:5.2f} "
            f"{row['tokens_per_forward']:5.2f} {row['speedup_fixed']:6.2f} {row['speedup_needed']:6.2f} "
            f"{row['faster_than_best_window']:+7.1%} {row['forwards_saved']:+6.1%}  {row['different']}"
            + (" worth keeping" if row["worth_keeping"] else "")
        )


if __name__ == "__main__":
    main()
