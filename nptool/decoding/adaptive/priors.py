"""How many tokens a step may be expected to bring before any was made: what the GGUF says of its training. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from math import log
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nptool.decoding.adaptive.policy import GUESSED, MEASURED, Prior, Reach
from nptool.decoding.loop.steps import Drafts
from nptool.decoding.proposers.methods import JACOBI, JACOBI_BLOCK, LOOKAHEAD, find_method
from nptool.decoding.proposers.tree import Shares, assumed_shares, expected_tokens
from nptool.heads import ACCURACY_KEY, ACCURACY_RANKS_KEY
from nptool.method_note import METHOD_KEY, measured_in

TRAINED = 0.45
"""Exponent of a model that was trained for Jacobi decoding: measured from 0.48 to 0.56 on held-out prompts."""
UNTRAINED = 0.1
"""Of any other model: measured 0.01 to 0.1 where the text does not repeat itself."""
WINDOW_GAIN = 1.36
"""What a window of n tokens brings beyond one per forward, relative to blocks of n, which are nearly done at their
ends: 1.33, 1.36 and 1.39 on three CLLMs (4.55, 2.71 and 3.77 tokens per forward in blocks of 16)."""
_HEADS_UNKNOWN = 0.5
_ITERATING = (JACOBI, JACOBI_BLOCK, LOOKAHEAD)


def prior_of(metadata: Mapping[str, Any], method: str) -> Prior:
    """What is expected of one method before the first step."""
    if find_method(method).drafts is Drafts.BRANCHING:
        # The curve is what the accuracies foresee, so they are the 1 in the exponent.
        return Prior(1.0, MEASURED if _first_choices(metadata) is not None else GUESSED)
    if find_method(method).heads:
        return _of_heads(metadata)
    measured = measured_in(metadata) if method in _ITERATING else None
    if measured is not None and measured.block_size > 1:
        # Not lookahead, which spends rows on its pool: 3.23 with 16 rows where blocks of 16 gave 4.55.
        gain = WINDOW_GAIN if method == JACOBI else 1.0
        tokens = min(1.0 + gain * (measured.tokens_per_forward - 1.0), float(measured.block_size))
        return Prior(log(tokens) / log(measured.block_size), MEASURED)
    return Prior(TRAINED if metadata.get(METHOD_KEY) == "cllm" else UNTRAINED)


def reach_of(method: str, heads: int, shares: Shares | None) -> Reach:
    """The base of a method's curve.

    Args:
        heads: n of the model, its own included.
        shares: how often the first, second, ... choice of heads 2..n was right on held-out text.
    """
    if find_method(method).drafts is not Drafts.BRANCHING:
        return float
    return partial(expected_tokens, shares or assumed_shares(heads - 1))


def _of_heads(metadata: Mapping[str, Any]) -> Prior:
    """From the held-out accuracies of heads 2..n: a draft counts where all before it are right too."""
    first_K = _first_choices(metadata)
    if first_K is None:
        return Prior(_HEADS_UNKNOWN)
    tokens = 1.0 + float(np.cumprod(first_K).sum())
    return Prior(log(max(1.0, tokens)) / log(len(first_K) + 1), MEASURED)


def _first_choices(metadata: Mapping[str, Any]) -> NDArray[np.float64] | None:
    """How often the first choice of heads 2..n was right, where the file says it."""
    accuracy, ranks = metadata.get(ACCURACY_KEY), metadata.get(ACCURACY_RANKS_KEY)
    if not isinstance(accuracy, (list, tuple)) or not isinstance(ranks, int) or ranks < 1 or not accuracy:
        return None
    return np.asarray(accuracy, dtype=np.float64)[::ranks]
