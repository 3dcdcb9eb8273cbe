"""Whether parallel decoding pays for a model on a machine, and for which of the two ways to train it.

A step of w rows pays from t(w) / t(1) tokens per forward on. What training reaches is known from the models of this
project, on narrow tasks: `benchmarks/results/embedded_default.md`, `shared_heads.md`, `cuda.md`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import log2

import numpy as np

from nptool.bench.prediction import Prediction
from nptool.heads import SHARED_LIMIT
from nptool.llama.gguf_summary import PartSummary

PAYS = 1.2
"""Times autoregressive speed that are worth a training."""
CLLM_REACHED = {4: (2.37, 2.44), 8: (3.79, 4.19), 16: (5.49, 7.59), 32: (6.19, 11.82), 64: (6.12, 14.25)}
"""Rows of a Jacobi window to tokens per forward: the embedded default, and a CLLM of 114M parameters."""
HEADS_REACHED = {4: (3.24, 3.72), 6: (4.17, 5.16), 8: (4.77, 6.27), 16: (7.07, 8.89)}
"""Number of shared heads to tokens per forward: on a model without consistency training, and on the embedded default.
At 16 both are of the default."""
UNQUANTIZED = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class Way:
    """One way to train, at one width."""

    needed: float
    """Tokens per forward from which it pays."""
    most: float
    """Tokens per forward that are possible."""
    low: float
    high: float
    """Tokens per forward that trained models reach."""

    @property
    def least_speed(self) -> float:
        """Times autoregressive speed, by the least that trained models reach."""
        return self.low / self.needed

    @property
    def most_speed(self) -> float:
        """The same by the most that they reach."""
        return self.high / self.needed


@dataclass(frozen=True)
class WidthAdvice:
    width: int
    cllm: Way
    heads: Way | None
    """None beyond `SHARED_LIMIT` rows."""


@dataclass(frozen=True)
class Advice:
    widths: tuple[WidthAdvice, ...]
    own: tuple[Prediction, ...]
    """What the file's own measurements predict, the fastest first; empty if it has none."""
    sentence: str


def advise(
    seconds: Mapping[int, float], part: PartSummary, own: tuple[Prediction, ...] = (), *, on_gpu: bool = False
) -> Advice:
    """
    Args:
        seconds: t(w) by width, from 1.
        part: the model's part of the file.
        own: see `Advice`.
        on_gpu: whether layers are on a GPU.
    """
    share, one = draft_share(part), seconds[1]
    widths = tuple(_width(width, spent / one, share) for width, spent in seconds.items() if width > 1)
    remedy = _remedy(next(iter(part.parameters_by_type)), on_gpu)
    return Advice(widths, own, _own_sentence(own[0], one, remedy) if own else _sentence(widths, remedy))


def draft_share(part: PartSummary) -> float:
    """The time of a draft of shared heads, which are a layer and an unembedding, as a share of the model's step."""
    sizes = {tensor.name: int(np.prod(tensor.shape)) for tensor in part.tensors if len(tensor.shape) > 1}
    layers = sum(size for name, size in sizes.items() if name.startswith("blk."))
    # Without a matrix of its own, the unembedding is the embedding's.
    unembedding = sizes.get("output.weight", sizes.get("token_embd.weight", 0))
    return (layers / (part.layers or 1) + unembedding) / (layers + unembedding)


def _width(width: int, ratio: float, share: float) -> WidthAdvice:
    cllm = _way(ratio, (width + 1) / 2, width, {rows: (rows + 1) / 2 for rows in CLLM_REACHED}, CLLM_REACHED)
    if width > SHARED_LIMIT:
        return WidthAdvice(width, cllm, None)
    heads = _way(ratio * (1 + share), float(width), width, {rows: float(rows) for rows in HEADS_REACHED}, HEADS_REACHED)
    return WidthAdvice(width, cllm, heads)


def _way(
    needed: float, most: float, width: int, bounds: Mapping[int, float], reached: Mapping[int, tuple[float, float]]
) -> Way:
    """Between measured widths, the share of what is possible is linear in the logarithm of the width."""
    places = [log2(rows) for rows in reached]
    low, high = (
        most * float(np.interp(log2(width), places, [reached[rows][side] / bounds[rows] for rows in reached]))
        for side in (0, 1)
    )
    # One token of every step is certain.
    return Way(needed, most, max(1.0, low), max(1.0, high))


def _sentence(widths: tuple[WidthAdvice, ...], remedy: str) -> str:
    if not widths:
        return "no advice: the time for measuring sufficed for one row only"
    pairs = [*_best(widths)]
    name, width, way = max(pairs, key=lambda pair: pair[2].least_speed)
    others = [pair for pair in pairs if pair[0] != name]
    text = (
        f"at {width} rows {name} needs {way.needed:.1f} tokens per forward, of at most {way.most:.1f}, and trained "
        f"ones reach {way.low:.1f} to {way.high:.1f}: {_speed(way)} times autoregressive decoding"
    )
    text += "".join(f"; {other}, at {rows} rows, {_speed(found)} times" for other, rows, found in others)
    return _verdict(way.least_speed, way.most_speed, text, remedy)


def _best(widths: tuple[WidthAdvice, ...]) -> Iterator[tuple[str, int, Way]]:
    """Each way to train at its best width."""
    for name, ways in (
        ("a CLLM", {found.width: found.cllm for found in widths}),
        ("a model with shared heads", {found.width: found.heads for found in widths if found.heads is not None}),
    ):
        width = max(ways, key=lambda rows: ways[rows].least_speed)
        yield name, width, ways[width]


def _own_sentence(own: Prediction, one: float, remedy: str) -> str:
    needed = own.seconds / one
    text = (
        f"at {own.width} rows this file needs {needed:.1f} tokens per forward and has {own.tokens:.1f} by its own "
        f"measurement ({own.method}): {own.tokens / needed:.2f} times autoregressive decoding"
    )
    return _verdict(own.tokens / needed, own.tokens / needed, text, remedy)


def _verdict(low: float, high: float, text: str, remedy: str) -> str:
    if low >= PAYS:
        return f"worth it: {text}"
    return f"perhaps: {text}; {remedy}" if high >= PAYS else f"not on this machine in this type: {text}; {remedy}"


def _speed(way: Way) -> str:
    return f"{way.least_speed:.2f} to {way.most_speed:.2f}"


def _remedy(kind: str, on_gpu: bool) -> str:
    """Where wide batches cost less."""
    if kind not in UNQUANTIZED:
        return "try F16"
    return "try a larger model" if on_gpu else "try a GPU (-ngl -1) or more cores"
