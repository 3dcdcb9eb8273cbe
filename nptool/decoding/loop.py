"""The one loop of every mode: propose tokens, evaluate them in one batch, keep what equals `pick`, plus one.

DESIGN section 3. It never knows how sampling works or who proposes. Exactness: with a fixed `width` every batch has
that many rows, the missing ones filled with junk that is rolled back, because llama.cpp's kernels give a row the same
bits only at equal width.
"""

from __future__ import annotations

from collections.abc import Iterator
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from nptool.decoding.engine import Engine
from nptool.decoding.proposers import Proposer
from nptool.decoding.sampling import Sampling
from nptool.decoding.sequence import Sequence
from nptool.decoding.tally import Tally


def decode(
    engine: Engine,
    sequence: Sequence,
    proposer: Proposer,
    sampling: Sampling,
    tally: Tally,
    *,
    limit: int,
    end_tokens: NDArray[np.bool_],
    width: int | None = None,
) -> Iterator[NDArray[np.integer]]:
    """Continue an opened and prefilled text until an end token or until it has `limit` tokens.

    Args:
        limit: tokens of the whole text, the prompt's included; at most the engine's capacity.
        end_tokens: (V) whether a token ends the text.
        width: rows of every batch; None lets a batch be as narrow as its draft.

    Yields:
        The tokens that each forward pass added, an end token included.
    """
    resumed = perf_counter()
    while sequence.length < limit:
        before, drafting = engine.seconds, proposer.seconds
        draft = proposer.propose(limit - sequence.length - 1)
        rows = len(draft) + 1
        batch = sequence.lay(draft, width or rows)
        logits_RV = engine.evaluate(batch, sequence.length - 1)
        picks = sampling.pick_rows(logits_RV[:rows], sequence.length, sequence.before(rows))
        accepted = accept_prefix(draft, picks)
        tokens = picks[: accepted + 1]
        ended = end_tokens[tokens]
        finished = bool(ended.any())
        if finished:
            tokens = tokens[: int(ended.argmax()) + 1]
        sequence.extend(tokens, len(batch))
        proposer.observe(picks, accepted)
        tally.passes += 1
        tally.tokens += len(tokens)
        tally.drafted[: len(draft)] += 1
        tally.accepted[:accepted] += 1
        tally.engine_seconds += engine.seconds - before
        tally.heads_seconds += proposer.seconds - drafting
        tally.decode_seconds += perf_counter() - resumed
        yield tokens
        resumed = perf_counter()
        if finished:
            return


def accept_prefix(draft: NDArray[np.integer], picks: NDArray[np.integer]) -> int:
    """How many leading tokens of `draft` (D) equal what `picks` (D + 1) says at their places."""
    wrong = draft != picks[:-1]
    first = int(wrong.argmax()) if wrong.size else 0
    return first if wrong.size and wrong[first] else len(draft)
