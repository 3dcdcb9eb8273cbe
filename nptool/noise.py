"""Gumbel noise as a pure function of (seed, position, token): a counter-based hash, so nothing is stored.

Decoding and collection sample with it: `gumbel` is for one token, `gumbel_of` for many with numpy, and
`nptool.collection.picking` computes it in torch.
"""

from __future__ import annotations

from functools import lru_cache
from math import inf, log

import numpy as np
from numpy.typing import NDArray

# Weyl increment, shifts and multipliers of splitmix64 (Steele, Lea and Flood, OOPSLA 2014).
WEYL = 0x9E3779B97F4A7C15
_MULTIPLY_1, _MULTIPLY_2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
ROUNDS = ((30, _MULTIPLY_1), (27, _MULTIPLY_2))
LAST_SHIFT = 31
# The upper 53 bits of a hash become a double between 0 and 1.
LOW_BITS = 11
UNIT = 2.0**-53
_MASK = (1 << 64) - 1


def state_of(seed: int, position: int) -> int:
    """The 64-bit state of the noise of all tokens at `position`.

    Args:
        seed: any integer; only its lowest 64 bits count.
        position: index of the token in the sequence, prompt included.
    """
    return _mix(position * WEYL + _key(seed)) + WEYL & _MASK


def gumbel(state: int, token: int) -> float:
    """Standard Gumbel noise of a token, where `state` comes from `state_of`."""
    exponential = -log(((_mix(state + token * WEYL) >> LOW_BITS) + 0.5) * UNIT)
    return -log(exponential) if exponential else inf


def gumbel_of(state: int, tokens: NDArray[np.integer]) -> NDArray[np.float64]:
    """`gumbel` of many tokens, in any shape; the last bit of a logarithm may differ."""
    bits = tokens.astype(np.uint64)
    bits *= np.uint64(WEYL)
    bits += np.uint64(state)
    for shift, multiplier in ROUNDS:
        bits ^= bits >> np.uint64(shift)
        bits *= np.uint64(multiplier)
    bits ^= bits >> np.uint64(LAST_SHIFT)
    bits >>= np.uint64(LOW_BITS)
    uniform = bits.astype(np.float64)
    uniform += 0.5
    uniform *= UNIT
    for _ in range(2):
        np.log(uniform, out=uniform)
        np.negative(uniform, out=uniform)
    return uniform


def _mix(value: int) -> int:
    """splitmix64's finalizer on the lowest 64 bits: every bit of the input flips half of the output's."""
    value &= _MASK
    value = (value ^ value >> 30) * _MULTIPLY_1 & _MASK
    value = (value ^ value >> 27) * _MULTIPLY_2 & _MASK
    return value ^ value >> LAST_SHIFT


@lru_cache
def _key(seed: int) -> int:
    """The seed, mixed: neighbouring seeds must not give each other's noise one position later."""
    return _mix((seed & _MASK) * WEYL)
