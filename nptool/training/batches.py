"""Batches of sequences of similar length, planned before training starts.

A plan is a list of index arrays, one per forward pass, in training order. It depends only on lengths and seed, so a
resumed run sees the same batches. Batches are padded on the right: with causal attention no token sees a pad after it,
so no mask is needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nptool.processes import process_count
from nptool.training.config import TrainingConfig

Rows = NDArray[np.int64]

GROUPED_BATCHES = 16
"""Rows are sorted by length within groups of this many batches: little padding, and batches of mixed lengths."""


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
    """One pass over the data: rows of similar length together, in a random grouping and order."""
    shuffled = generator.permutation(len(lengths))
    before = lengths[shuffled].cumsum() - lengths[shuffled]
    group = before // (GROUPED_BATCHES * batch_tokens)
    batches: list[Rows] = []
    for rows in np.split(shuffled, np.flatnonzero(np.diff(group)) + 1):
        batches += cut_batches(lengths, rows[np.argsort(lengths[rows], kind="stable")], batch_tokens)
    return [batches[index] for index in generator.permutation(len(batches))]


def plan_batches(lengths: Sequence[int] | NDArray[np.int64], batch_tokens: int, count: int, seed: int) -> list[Rows]:
    """The first `count` batches, over as many passes as that takes.

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
    """Batches in a pass over the data; passes differ by a few, since rows are grouped at random."""
    return len(plan_pass(np.asarray(lengths, dtype=np.int64), batch_tokens, np.random.default_rng(0)))


def count_steps(config: TrainingConfig, batches_per_pass: float) -> int:
    """Optimizer steps of the whole training."""
    if config.steps is not None:
        return config.steps
    passes = config.DEFAULT_PASSES if config.epochs is None else config.epochs
    return max(1, math.ceil(passes * batches_per_pass / batches_per_step(config)))


def batches_per_step(config: TrainingConfig) -> int:
    """Batches in one optimizer step, all processes together."""
    return config.accumulation * process_count()


def plan_steps(config: TrainingConfig, lengths: NDArray[np.int64]) -> tuple[int, list[Rows]]:
    """Optimizer steps, and the batches of all steps and processes."""
    steps = count_steps(config, batches_in_pass(lengths, config.batch_tokens))
    return steps, plan_batches(lengths, config.batch_tokens, steps * batches_per_step(config), config.seed)
