"""Gumbel noise as a pure function of seed, position and token: a counter-based hash, computed where it is asked for.

A position's part of the hash is kept, since the positions of a window come again step after step, and a batch looks up
its whole line of them at once. Knows no logits.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

# Weyl increment and multipliers of splitmix64 (Steele, Lea and Flood, OOPSLA 2014).
_WEYL = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLY_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLY_2 = np.uint64(0x94D049BB133111EB)
_SHIFT_1, _SHIFT_2, _SHIFT_3 = np.uint64(30), np.uint64(27), np.uint64(31)
_MASK = (1 << 64) - 1
# The upper 53 bits of a hash become a double between 0 and 1.
_LOW_BITS = np.uint64(11)
_UNIT = 2.0**-53
# Positions whose part is computed at once.
_PAGE = 1024


def gumbel(seed: int, positions: NDArray[np.integer], tokens: NDArray[np.integer]) -> NDArray[np.float64]:
    """Standard Gumbel noise, one value for each pair of `positions` and `tokens` (broadcast against each other)."""
    return gumbel_of(_states(seed, positions), tokens)


def gumbel_of(states: NDArray[np.uint64], tokens: NDArray[np.integer]) -> NDArray[np.float64]:
    """The same from the positions' states."""
    bits = tokens.astype(np.uint64)
    bits *= _WEYL
    bits = _mix(states + bits)
    bits >>= _LOW_BITS
    uniform = bits.astype(np.float64)
    uniform += 0.5
    uniform *= _UNIT
    for _ in range(2):
        np.log(uniform, out=uniform)
        np.negative(uniform, out=uniform)
    return uniform


def line_states(seed: int, position: int, count: int) -> NDArray[np.uint64]:
    """States (count) of `position` and those behind it: a view."""
    size = max(_PAGE, count)
    page, start = divmod(position, size)
    return _page(seed, page, size)[start : start + count]


@lru_cache(maxsize=16)
def _page(seed: int, page: int, size: int) -> NDArray[np.uint64]:
    """States of `size` positions and of as many behind them, so that every line lies within one page."""
    states = _states(seed, np.arange(page * size, (page + 2) * size))
    states.flags.writeable = False
    return states


def _states(seed: int, positions: NDArray[np.integer]) -> NDArray[np.uint64]:
    """What a seed and a position bring to the noise, that of token 0 included."""
    states = positions.astype(np.uint64)
    states *= _WEYL
    states += _key(seed)
    return _mix(states) + _WEYL


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's finalizer: every bit of the input flips half of the output's."""
    values = values ^ (values >> _SHIFT_1)
    values *= _MULTIPLY_1
    values ^= values >> _SHIFT_2
    values *= _MULTIPLY_2
    values ^= values >> _SHIFT_3
    return values


@lru_cache
def _key(seed: int) -> np.uint64:
    """The seed, mixed: neighbouring seeds must not give each other's noise one position later."""
    return np.uint64(_mix(np.array([seed & _MASK], dtype=np.uint64) * _WEYL)[0])
