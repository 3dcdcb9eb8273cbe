"""How a block's tokens converge: right, wrong, fast-forwarded, stationary (CLLM, arXiv 2403.00835, section 4.3).

Training counts these tokens, decoding shows them. Shapes: S states, N block.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray


class Mark(IntEnum):
    """How a token of a state compares with the fixed point."""

    WRONG = 0
    RIGHT = 1
    FAST_FORWARDED = 2
    """Fixed in this iteration, after the first token that was fixed in it."""
    STATIONARY = 3
    """Predicted right while a token before it was still wrong, and right in every later state."""


def mark_states(states_SN: NDArray[np.integer]) -> NDArray[np.uint8]:
    """The `Mark` of every token (S, N).

    Args:
        states_SN: states of one block up to the end token; the first is the initial guess, the last the fixed point.
    """
    right_SN = states_SN == states_SN[-1]
    prefix_S = np.logical_and.accumulate(right_SN, axis=1).sum(axis=1)
    fixed_S = np.concatenate([prefix_S[:1], prefix_S[:-1]])
    places_N = np.arange(states_SN.shape[1])
    stays_SN = np.logical_and.accumulate(right_SN[::-1], axis=0)[::-1]
    marks_SN = np.where(right_SN, Mark.RIGHT, Mark.WRONG).astype(np.uint8)
    marks_SN[(places_N > fixed_S[:, None]) & (places_N < prefix_S[:, None])] = Mark.FAST_FORWARDED
    stationary_SN = stays_SN & (places_N > prefix_S[:, None])
    # The initial guess is not a prediction, even where it happens to be right.
    stationary_SN[0] = False
    marks_SN[stationary_SN] = Mark.STATIONARY
    return marks_SN


def count_marks(marks_SN: NDArray[np.uint8]) -> tuple[int, int]:
    """Numbers of fast-forwarded and of stationary tokens in a block; a token counts once."""
    fast_forwarded = int(np.count_nonzero(marks_SN == Mark.FAST_FORWARDED))
    stationary = int((marks_SN == Mark.STATIONARY).any(axis=0).sum())
    return fast_forwarded, stationary
