"""The one loop of every mode: propose tokens, evaluate them in one batch, keep what equals `pick`, plus one.

DESIGN section 3. It never knows how sampling works or who proposes. Exactness: with a fixed `width` every batch has
that many rows, the missing ones filled with junk that is rolled back, because llama.cpp's kernels give a row the same
bits only at equal width.
"""

from __future__ import annotations

from collections.abc import Iterator
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nptool.decoding.engine import Engine
from nptool.decoding.proposers import Proposer
from nptool.decoding.sampling import Sampling
from nptool.decoding.sequence import Sequence
from nptool.decoding.tally import Tally
from nptool.decoding.verification import Verify, verify_line


def decode(
    engine: Engine,
    sequence: Sequence,
    proposer: Proposer[Any],
    sampling: Sampling,
    tally: Tally,
    *,
    limit: int,
    end_tokens: NDArray[np.bool_],
    width: int | None = None,
    verify: Verify = verify_line,
) -> Iterator[NDArray[np.integer]]:
    """Continue an opened and prefilled text until an end token or until it has `limit` tokens.

    Args:
        limit: tokens of the whole text, the prompt's included; at most the engine's capacity.
        end_tokens: (V) whether a token ends the text.
        width: rows of every batch; None lets a batch be as narrow as its draft.
        verify: judges a draft of the kind that `proposer` makes.

    Yields:
        The tokens that each forward pass added, an end token included.
    """
    resumed = perf_counter()
    while sequence.length < limit:
        before, drafting = engine.seconds, proposer.seconds
        draft = proposer.propose(limit - sequence.length - 1)
        step = verify(engine, sequence, draft, sampling, width)
        tokens = step.picks[: step.accepted + 1]
        ended = end_tokens[tokens]
        finished = bool(ended.any())
        if finished:
            tokens = tokens[: int(ended.argmax()) + 1]
        sequence.extend(tokens, step.rows, step.path)
        proposer.observe(step.picks, step.accepted)
        tally.passes += 1
        tally.tokens += len(tokens)
        tally.drafted[: step.drafted] += 1
        tally.accepted[: step.accepted] += 1
        tally.engine_seconds += engine.seconds - before
        tally.heads_seconds += proposer.seconds - drafting
        tally.decode_seconds += perf_counter() - resumed
        yield tokens
        resumed = perf_counter()
        if finished:
            return
