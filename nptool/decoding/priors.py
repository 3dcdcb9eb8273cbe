"""How many tokens a step may be expected to bring before any was made: what the GGUF says of its training. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from math import log
from typing import Any

import numpy as np

from nptool.decoding.methods import JACOBI, JACOBI_BLOCK, LOOKAHEAD, find_method
from nptool.decoding.policy import MEASURED, Prior
from nptool.heads import ACCURACY_KEY, ACCURACY_RANKS_KEY
from nptool.method_note import METHOD_KEY, measured_in

TRAINED = 0.45
"""Exponent of a model that was trained for Jacobi decoding: measured from 0.48 to 0.56 on held-out prompts."""
UNTRAINED = 0.1
"""Of any other model: measured 0.01 to 0.1 where the text does not repeat itself."""
_HEADS_UNKNOWN = 0.5
_ITERATING = (JACOBI, JACOBI_BLOCK, LOOKAHEAD)


def prior_of(metadata: Mapping[str, Any], method: str) -> Prior:
    """What is expected of one method before the first step."""
    if find_method(method).heads:
        return _of_heads(metadata)
    measured = measured_in(metadata) if method in _ITERATING else None
    if measured is not None and measured.block_size > 1:
        # Measured in blocks; a window, which is never nearly done, is somewhat better.
        return Prior(log(measured.tokens_per_forward) / log(measured.block_size), MEASURED)
    return Prior(TRAINED if metadata.get(METHOD_KEY) == "cllm" else UNTRAINED)


def _of_heads(metadata: Mapping[str, Any]) -> Prior:
    """From the held-out accuracies of heads 2..n: a draft counts where all before it are right too."""
    accuracy, ranks = metadata.get(ACCURACY_KEY), metadata.get(ACCURACY_RANKS_KEY)
    if not isinstance(accuracy, (list, tuple)) or not isinstance(ranks, int) or ranks < 1 or not accuracy:
        return Prior(_HEADS_UNKNOWN)
    first_K = np.asarray(accuracy, dtype=np.float64)[::ranks]
    tokens = 1.0 + float(np.cumprod(first_K).sum())
    return Prior(log(max(1.0, tokens)) / log(len(first_K) + 1), MEASURED)
