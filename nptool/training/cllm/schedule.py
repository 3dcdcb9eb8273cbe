"""Which state of its trajectory each block shows in a training step.

`uniform` is CLLM's choice (arXiv 2403.00835): any state but the fixed point, with equal probability. `progressive` is
Jacobi Forcing's (arXiv 2512.14681): over a window of w blocks the target share of noise rises from `min_noise` to
`max_noise`, and a block shows the state whose share of tokens from its first wrong one on is nearest. `random` and
`reverse` are from the paper's ablation: the same levels, drawn at random for every block, or falling. The paper has
t_i = i / w; its released command spaces the levels from 0 to 1 inclusive, as the defaults do, so the random guess that
decoding starts with is taught too (max_noise = (w - 1) / w gives the paper's formula).

Legend: N block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nptool.training.cllm.recipe import Recipe


@dataclass(frozen=True)
class Choice:
    """One state for every block of a trajectory."""

    states: tuple[int, ...]
    """State of each block; 0 is the random guess."""
    phase: int
    """Position of the first block in the schedule's window."""


def generator(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The random generator of trajectory `index` in `epoch`: the same in every process and after a resume."""
    return np.random.default_rng([seed, epoch, index])


def choose(
    states: Sequence[npt.NDArray[np.int32]], response_length: int, recipe: Recipe, rng: np.random.Generator
) -> list[Choice]:
    """Draw a state for each block, `recipe.draws` times: different ones if there are enough.

    Args:
        states: for each block its states, shape (k + 1, N), the last one the fixed point.
        response_length: tokens of the response with its end token; later tokens of the last block do not count.
    """
    block = states[0].shape[1]
    noise = [
        noise_shares(trajectory, min(block, response_length - number * block))
        for number, trajectory in enumerate(states)
    ]
    if recipe.schedule == "uniform":
        by_block = [_uniform(shares, recipe.draws, rng) for shares in noise]
        return [Choice(chosen, 0) for chosen in zip(*by_block, strict=True)]
    start = int(rng.integers(recipe.window)) if recipe.random_phase and len(states) < recipe.window else 0
    choices = []
    for number in range(recipe.draws):
        # Evenly spread over the window, so the draws show different levels.
        phase = (start + number * recipe.window // recipe.draws) % recipe.window
        wanted = noise_levels(len(states), recipe, phase, rng)
        # The noisier state on a tie.
        nearest = (int(np.argmin(np.abs(shares - level))) for shares, level in zip(noise, wanted, strict=True))
        choices.append(Choice(tuple(nearest), phase))
    return choices


def noise_shares(states: npt.NDArray[np.int32], length: int) -> npt.NDArray[np.float64]:
    """For each state the share of the block's first `length` tokens from the first wrong one on, in [0, 1]."""
    wrong = states[:, :length] != states[-1, :length]
    first = np.where(wrong.any(axis=1), wrong.argmax(axis=1), length)
    return (length - first) / length


def noise_levels(blocks: int, recipe: Recipe, phase: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Target share of noise of each block, shape (blocks,), for all schedules but `uniform`."""
    levels = np.linspace(recipe.min_noise, recipe.max_noise, recipe.window)
    if recipe.schedule == "random":
        return levels[rng.integers(recipe.window, size=blocks)]
    place = (phase + np.arange(blocks)) % recipe.window
    return levels[::-1][place] if recipe.schedule == "reverse" else levels[place]


def _uniform(shares: npt.NDArray[np.float64], draws: int, rng: np.random.Generator) -> list[int]:
    """Different states that have a wrong token; the fixed point if there are too few."""
    unfinished = int(np.count_nonzero(shares))
    drawn: list[int] = rng.permutation(unfinished)[:draws].tolist()
    return drawn + [len(shares) - 1] * (draws - len(drawn))
