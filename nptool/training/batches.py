"""Batches of sequences of similar length, planned before training starts.

A plan is a list of index arrays, one for each forward pass, in the order of training. It depends on lengths and seed
only, so a run that is continued sees the batches it would have seen. Rows of one batch are padded on the right: with
causal attention no token ever sees a pad behind it, so no mask is needed and the fast causal kernel serves. On CPU this
is faster than packing several records into one row, whose block mask makes attention compute the whole square.

Legend: B rows of a batch, T tokens of its longest row.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]

GROUPED_BATCHES = 16
"""Batches whose rows are sorted by length among themselves. Sorting a whole pass would save little more padding, and
fill a batch with rows of one length. Whether that slows learning was suspected, not measured."""


def cut_batches(lengths: NDArray[np.int64], order: Rows, batch_tokens: int) -> list[Rows]:
    """Cut rows, taken in `order`, into batches of at most `batch_tokens` padded tokens (at least one row each)."""
    batches: list[Rows] = []
    start = longest = 0
    for end, row in enumerate(order):
        longest = max(longest, int(lengths[row]))
        if end > start and (end - start + 1) * longest > batch_tokens:
            batches.append(order[start:end])
            start, longest = end, int(lengths[row])
    if start < len(order):
        batches.append(order[start:])
    return batches


def plan_pass(lengths: NDArray[np.int64], batch_tokens: int, generator: np.random.Generator) -> list[Rows]:
    """One pass over the data: rows of similar length together, in a new random grouping and order each time."""
    shuffled = generator.permutation(len(lengths))
    before = lengths[shuffled].cumsum() - lengths[shuffled]
    group = before // (GROUPED_BATCHES * batch_tokens)
    batches: list[Rows] = []
    for rows in np.split(shuffled, np.flatnonzero(np.diff(group)) + 1):
        batches += cut_batches(lengths, rows[np.argsort(lengths[rows], kind="stable")], batch_tokens)
    return [batches[index] for index in generator.permutation(len(batches))]


def plan_batches(lengths: Sequence[int] | NDArray[np.int64], batch_tokens: int, count: int, seed: int) -> list[Rows]:
    """The first `count` batches of as many passes as that takes.

    Args:
        lengths: tokens of each row.
        batch_tokens: padded tokens of a batch.
    """
    generator = np.random.default_rng(seed)
    sizes = np.asarray(lengths, dtype=np.int64)
    plan: list[Rows] = []
    while len(plan) < count:
        plan += plan_pass(sizes, batch_tokens, generator)
    return plan[:count]


def batches_in_pass(lengths: Sequence[int] | NDArray[np.int64], batch_tokens: int) -> int:
    """Batches that a pass over the data takes; passes, grouped at random, differ by a few."""
    return len(plan_pass(np.asarray(lengths, dtype=np.int64), batch_tokens, np.random.default_rng(0)))
