"""How a block's tokens converge: right, wrong, fast-forwarded, stationary (CLLM, arXiv 2403.00835, section 4.3).

Pure, on the states a block passed through. Training counts by it and decoding shows by it, so neither is known here.
Shapes: S states, N block.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray


class Mark(IntEnum):
    """What a token of a state is, measured by the fixed point."""

    WRONG = 0
    RIGHT = 1
    FAST_FORWARDED = 2
    """Fixed in this iteration, behind the first one that was."""
    STATIONARY = 3
    """Predicted right while a token before it was still wrong, and right ever after."""


def mark_states(states_SN: NDArray[np.integer]) -> NDArray[np.uint8]:
    """The `Mark` (S, N) of every token of a block's states, the first of which is the guess, the last the fixed point.

    Args:
        states_SN: without what is behind the end token.
    """
    right_SN = states_SN == states_SN[-1]
    prefix_S = np.logical_and.accumulate(right_SN, axis=1).sum(axis=1)
    fixed_S = np.concatenate([prefix_S[:1], prefix_S[:-1]])
    places_N = np.arange(states_SN.shape[1])
    stays_SN = np.logical_and.accumulate(right_SN[::-1], axis=0)[::-1]
    marks_SN = np.where(right_SN, Mark.RIGHT, Mark.WRONG).astype(np.uint8)
    marks_SN[(places_N > fixed_S[:, None]) & (places_N < prefix_S[:, None])] = Mark.FAST_FORWARDED
    stationary_SN = stays_SN & (places_N > prefix_S[:, None])
    # Where the random guess happens to be right, nothing was predicted.
    stationary_SN[0] = False
    marks_SN[stationary_SN] = Mark.STATIONARY
    return marks_SN


def count_marks(marks_SN: NDArray[np.uint8]) -> tuple[int, int]:
    """Fast-forwarded and stationary tokens of a block, each token once however many iterations it stood still."""
    fast_forwarded = int(np.count_nonzero(marks_SN == Mark.FAST_FORWARDED))
    stationary = int((marks_SN == Mark.STATIONARY).any(axis=0).sum())
    return fast_forwarded, stationary
