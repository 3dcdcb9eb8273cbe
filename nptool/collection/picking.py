"""From logits to tokens in torch: argmax, or a sample with the noise of `nptool.noise`.

A pick depends on its row, seed and position only, so the fixed point of a Jacobi iteration is the text that decoding
gives with that seed and no filters. Shapes: T rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from nptool.noise import LAST_SHIFT, LOW_BITS, ROUNDS, UNIT, WEYL, state_of


def pick_rows(
    logits_TV: torch.Tensor, temperature: float, seeds_T: Sequence[int], positions_T: Sequence[int]
) -> torch.Tensor:
    """Pick a token (T) for every row; positions count from the start of the prompt. Temperature 0 is greedy."""
    if temperature == 0:
        return logits_TV.argmax(-1)
    scores_TV = gumbel_noise(seeds_T, positions_T, logits_TV.shape[-1], logits_TV.device)
    scores_TV += logits_TV.double() / temperature
    return scores_TV.argmax(-1)


def gumbel_noise(
    seeds_T: Sequence[int], positions_T: Sequence[int], vocabulary: int, device: torch.device | None = None
) -> torch.Tensor:
    """Standard Gumbel noise (T, V) in float64: `nptool.noise.gumbel` up to the last bit of a logarithm."""
    states = [_signed(state_of(seed, position)) for seed, position in zip(seeds_T, positions_T, strict=True)]
    states_T = torch.tensor(states, dtype=torch.int64, device=device)
    bits_TV = states_T[:, None] + torch.arange(vocabulary, device=device) * _signed(WEYL)
    for shift, multiplier in ROUNDS:
        bits_TV ^= _shifted(bits_TV, shift)
        bits_TV *= _signed(multiplier)
    bits_TV ^= _shifted(bits_TV, LAST_SHIFT)
    uniform_TV = _shifted(bits_TV, LOW_BITS).double().add_(0.5).mul_(UNIT)
    return uniform_TV.log_().neg_().log_().neg_()


def _signed(value: int) -> int:
    """The signed number with the same 64 bits, as torch has no unsigned arithmetic."""
    return value - (1 << 64) if value >> 63 else value


def _shifted(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Shift right without the sign."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)
