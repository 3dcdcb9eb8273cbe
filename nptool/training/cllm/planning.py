"""All batches of a training, planned before it starts: which trajectories, and which states of them.

Every pass over the data draws new states; a batch holds packed sequences of similar length. The plan depends only on
data, recipe and seed, so a resumed run and every process see the same batches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from nptool.collection.store import Trajectory
from nptool.collection.trajectories import augment_state
from nptool.progress import Progress, silent
from nptool.training.batches import Rows, plan_pass
from nptool.training.cllm.batching import Batch, collate
from nptool.training.cllm.packing import Packed, pack
from nptool.training.cllm.recipe import Recipe
from nptool.training.cllm.schedule import Choice, choose, generator

STEP = "planning batches"
# Reports of progress in a pass.
_REPORTS = 100
_ORDER_STREAM = 2**32
"""Seed, instead of a trajectory's number, for the order of a pass."""


@dataclass(frozen=True)
class Plan:
    """Batches in the order of training."""

    trajectories: Sequence[Trajectory]
    recipe: Recipe
    seed: int
    batches: list[tuple[int, Rows]]
    """Pass over the data, and trajectories, of each batch."""
    tokens: list[int]
    """Tokens of each batch, without padding."""

    def batch(self, number: int, pad_id: int) -> Batch:
        epoch, rows = self.batches[number]
        return collate([draw(self.trajectories, int(row), self.recipe, self.seed, epoch) for row in rows], pad_id)


def draw(trajectories: Sequence[Trajectory], row: int, recipe: Recipe, seed: int, epoch: int) -> Packed:
    """A packed trajectory with the states that it shows in a pass over the data."""
    trajectory, rng = trajectories[row], generator(seed, epoch, row)
    choices = choose(trajectory.states, len(trajectory.response_ids), recipe, rng)
    if recipe.augment:
        trajectory = augmented(trajectory, choices, rng)
    return pack(trajectory, choices, recipe)


def augmented(trajectory: Trajectory, choices: Sequence[Choice], rng: np.random.Generator) -> Trajectory:
    """A copy of a trajectory whose chosen states are augmented; their first wrong tokens stay wrong."""
    blocks = []
    for number, states_SN in enumerate(trajectory.states):
        changed_SN = states_SN.copy()
        for state in sorted({choice.states[number] for choice in choices}):
            augment_state(changed_SN[state], states_SN[-1], rng)
        blocks.append(changed_SN)
    return replace(trajectory, states=tuple(blocks))


def plan(
    trajectories: Sequence[Trajectory],
    recipe: Recipe,
    seed: int,
    batch_tokens: int,
    count: Callable[[int], int],
    progress: Progress = silent,
) -> Plan:
    """Plan a training.

    Args:
        batch_tokens: padded tokens of a batch; a longer sequence is a batch of its own.
        count: maps the batches in the first pass to those of the training.
    """
    batches: list[tuple[int, Rows]] = []
    tokens: list[int] = []
    wanted = epoch = 0
    while not epoch or len(batches) < wanted:
        lengths = _lengths(trajectories, recipe, seed, epoch, progress)
        of_pass = plan_pass(lengths, batch_tokens, generator(seed, epoch, _ORDER_STREAM))
        wanted = wanted or count(len(of_pass))
        batches += [(epoch, rows) for rows in of_pass]
        tokens += [int(lengths[rows].sum()) for rows in of_pass]
        epoch += 1
    return Plan(trajectories, recipe, seed, batches[:wanted], tokens[:wanted])


def _lengths(trajectories: Sequence[Trajectory], recipe: Recipe, seed: int, epoch: int, progress: Progress) -> Rows:
    lengths = np.empty(len(trajectories), dtype=np.int64)
    every = max(1, len(trajectories) // _REPORTS)
    for row in range(len(trajectories)):
        lengths[row] = len(draw(trajectories, row, recipe, seed, epoch))
        if row % every == 0:
            progress(STEP, row, len(trajectories), f"pass {epoch + 1}")
    progress(STEP, len(trajectories), len(trajectories), f"pass {epoch + 1}")
    return lengths
