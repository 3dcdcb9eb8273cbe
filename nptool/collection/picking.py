"""From a row of logits to a token: argmax, or a sample by Gumbel noise that depends on the position alone.

DESIGN section 3: the noise of (seed, sequence, position, token id) comes from a counter-based hash, so whenever a
position is evaluated again its noise is the same, and the Jacobi fixed point is what one-by-one sampling with
the same noise gives. Knows no model.

Shapes: T rows, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

# Multipliers of the SplitMix64 finalizer, as signed 64-bit numbers.
_MIX = ((30, 0xBF58476D1CE4E5B9 - (1 << 64)), (27, 0x94D049BB133111EB - (1 << 64)))
_LAST_SHIFT = 31
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_UNIFORM_BITS = 24


@dataclass(frozen=True)
class Picker:
    """`pick` of DESIGN section 3: a pure function of the logits, the sequence and the position."""

    temperature: float
    """0 is greedy."""
    seed: int

    def __call__(self, logits_TV: torch.Tensor, sequences_T: torch.Tensor, positions_T: torch.Tensor) -> torch.Tensor:
        """Pick a token for every row.

        Args:
            sequences_T: number of the sequence each row belongs to (its own stream of noise).
            positions_T: position of the token that is picked.
        """
        if self.temperature == 0:
            return logits_TV.argmax(-1)
        noise_TV = gumbel_noise(self.seed, sequences_T, positions_T, logits_TV.shape[-1])
        return (logits_TV.to(noise_TV.dtype) / self.temperature + noise_TV).argmax(-1)


def gumbel_noise(seed: int, sequences_T: torch.Tensor, positions_T: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """Standard Gumbel noise (T, V), float64, a function of (seed, sequence, position, token id) only."""
    tokens_V = torch.arange(vocabulary, device=positions_T.device)
    start = _hash(torch.full_like(positions_T, seed))
    rows_T = _hash(_hash(start + sequences_T) + positions_T)
    bits_TV = _hash(rows_T[:, None] + tokens_V) >> (64 - _UNIFORM_BITS)
    uniform_TV = ((bits_TV & ((1 << _UNIFORM_BITS) - 1)).double() + 0.5) / (1 << _UNIFORM_BITS)
    return -torch.log(-torch.log(uniform_TV))


def _hash(values: torch.Tensor) -> torch.Tensor:
    """SplitMix64: 64 well-mixed bits for each 64-bit number (arithmetic modulo 2**64)."""
    values = (values + 1) * _GOLDEN
    for shift, multiplier in _MIX:
        values = (values ^ _shifted(values, shift)) * multiplier
    return values ^ _shifted(values, _LAST_SHIFT)


def _shifted(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Shift right without the sign."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)
