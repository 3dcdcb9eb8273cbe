"""One forward pass over a draft: the tokens picked after the draft's, and how many are accepted.

A row attends only to its own prefix, so rejected rows change no pick of an accepted one.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nptool.decoding.loop.engine import Engine
from nptool.decoding.loop.sampling import Sampling
from nptool.decoding.loop.sequence import Sequence
from nptool.decoding.loop.steps import Draft


class Verified(NamedTuple):
    """The result of one pass."""

    picks: NDArray[np.integer]
    """Tokens picked after the last token of the sequence and after each of the draft's. After the first rejected token
    they are the likeliest tokens, not samples."""
    accepted: int
    """Accepted tokens of the draft; `accepted + 1` picks join the sequence."""


def verify(engine: Engine, sequence: Sequence, draft: Draft, sampling: Sampling, rows: int) -> Verified:
    """Evaluate the last token and `draft` in one batch, which is padded to `rows` rows.

    Sampling stops at the first rejected token: later rows were computed on a prefix that is about to be discarded.
    """
    drafted, greedy = draft.tolist(), sampling.greedy
    used = len(drafted) + 1
    logits_RV = engine.evaluate(sequence.lay(draft, rows), sequence.length - 1)[:used]
    # `adjusted` checks this too; here it saves a plain step the view of the tokens before.
    if not sampling.raw:
        logits_RV = sampling.adjusted(logits_RV, sequence.before(used))
    picks_R: NDArray[np.integer] = logits_RV.argmax(axis=1)
    for row, picked in enumerate(picks_R.tolist()):
        if not greedy:
            picks_R[row] = picked = sampling.draw(logits_RV[row], sequence.length + row, picked)
        if row == len(drafted) or picked != drafted[row]:
            break
    return Verified(picks_R, row)
