"""What to expect of a method before its first step, from what training measured and a GGUF's metadata kept."""

from __future__ import annotations

from collections.abc import Mapping
from math import log
from typing import Any

import numpy as np

from nptool.decoding.adaptive.gains import SHORT, TRAINED, Gains
from nptool.decoding.proposers.methods import JACOBI, JACOBI_BLOCK, LOOKAHEAD, Method
from nptool.heads import accuracy_in
from nptool.heads_sample import figures_in
from nptool.method_note import METHOD_KEY, measured_in

WINDOW_GAIN = 1.36
"""Tokens that a sliding window of n adds to one, relative to a block of n, which is nearly done at its end."""


def first_gains(metadata: Mapping[str, Any], method: Method) -> Gains:
    """What a GGUF's metadata say of a method before its first step."""
    tokens, rows = 0.0, 1
    accuracy = accuracy_in(metadata) if method.heads else None
    measured = measured_in(metadata) if method.name in (JACOBI, JACOBI_BLOCK, LOOKAHEAD) else None
    figures = figures_in(metadata) if method.heads else None
    if figures is not None:
        tokens, rows = figures.tokens_per_forward, len(figures.acceptance) + 1
    elif accuracy is not None:
        # A draft counts where all before it are right too.
        tokens, rows = 1.0 + float(np.cumprod([ranks[0] for ranks in accuracy]).sum()), len(accuracy) + 1
    elif measured is not None:
        gain = WINDOW_GAIN if method.name == JACOBI else 1.0
        tokens, rows = 1.0 + gain * (measured.tokens_per_forward - 1.0), measured.block_size
    if rows > 1:
        return Gains(log(max(1.0, min(tokens, rows))) / log(rows), SHORT / 2, independent=method.independent)
    trained = method.heads or metadata.get(METHOD_KEY) == "cllm"
    return Gains(TRAINED if trained else 0.0, independent=method.independent)
