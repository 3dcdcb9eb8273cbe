"""Gumbel noise as a pure function of seed, position and token: a counter-based hash, computed where it is asked for.

For one token in Python's own numbers, for many with numpy: a single call of numpy takes as long as a token here. Knows
no logits.
"""

from __future__ import annotations

from functools import lru_cache
from math import inf, log

import numpy as np
from numpy.typing import NDArray

# Weyl increment and multipliers of splitmix64 (Steele, Lea and Flood, OOPSLA 2014).
_WEYL = 0x9E3779B97F4A7C15
_MULTIPLY_1 = 0xBF58476D1CE4E5B9
_MULTIPLY_2 = 0x94D049BB133111EB
_MASK = (1 << 64) - 1
# The upper 53 bits of a hash become a double between 0 and 1.
_LOW_BITS = 11
_UNIT = 2.0**-53


def state_of(seed: int, position: int) -> int:
    """What any seed and a position bring to the noise, 64 bits."""
    return _mix(position * _WEYL + _key(seed)) + _WEYL & _MASK


def gumbel(state: int, token: int) -> float:
    """Standard Gumbel noise of a token, where `state_of` is `state`."""
    exponential = -log(((_mix(state + token * _WEYL) >> _LOW_BITS) + 0.5) * _UNIT)
    return -log(exponential) if exponential else inf


def gumbel_of(state: int, tokens: NDArray[np.integer]) -> NDArray[np.float64]:
    """The same for many tokens, of any shape; a logarithm's last bit may differ."""
    bits = tokens.astype(np.uint64)
    bits *= np.uint64(_WEYL)
    bits += np.uint64(state)
    for shift, multiplier in ((30, _MULTIPLY_1), (27, _MULTIPLY_2)):
        bits ^= bits >> np.uint64(shift)
        bits *= np.uint64(multiplier)
    bits ^= bits >> np.uint64(31)
    bits >>= np.uint64(_LOW_BITS)
    uniform = bits.astype(np.float64)
    uniform += 0.5
    uniform *= _UNIT
    for _ in range(2):
        np.log(uniform, out=uniform)
        np.negative(uniform, out=uniform)
    return uniform


def _mix(value: int) -> int:
    """splitmix64's finalizer on the lowest 64 bits: every bit of the input flips half of the output's."""
    value &= _MASK
    value = (value ^ value >> 30) * _MULTIPLY_1 & _MASK
    value = (value ^ value >> 27) * _MULTIPLY_2 & _MASK
    return value ^ value >> 31


@lru_cache
def _key(seed: int) -> int:
    """The seed, mixed: neighbouring seeds must not give each other's noise one position later."""
    return _mix((seed & _MASK) * _WEYL)
