"""The decoding loop of all methods: draft tokens, evaluate them in one batch, accept those that equal `pick`, add one.

Does not import any proposer or chooser of widths: both are arguments, see `nptool.decoding.loop.steps`. In exact mode
every batch is padded to the chosen width, because llama.cpp's kernels give a row the same bits only at the same width,
or at widths of one class. Padding rows are rolled back.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from nptool.decoding.loop.engine import Engine
from nptool.decoding.loop.sampling import Sampling
from nptool.decoding.loop.sequence import Sequence
from nptool.decoding.loop.steps import Proposer, Step, Widths
from nptool.decoding.loop.tally import Tally
from nptool.decoding.loop.verification import verify


def decode(
    engine: Engine,
    sequence: Sequence,
    proposer: Proposer,
    sampling: Sampling,
    tally: Tally,
    *,
    limit: int,
    end_tokens: Collection[int],
    widths: Widths,
) -> Iterator[NDArray[np.integer]]:
    """Continue an opened and prefilled sequence until an end token or until it has `limit` tokens.

    Args:
        limit: tokens of the sequence including the prompt; at most the engine's capacity.
        widths: chooses the rows of each batch.

    Yields:
        The tokens that each forward pass added, an end token included.
    """
    ends = frozenset(end_tokens)
    resumed = perf_counter()
    while (length := sequence.length) < limit:
        before, drafting = engine.seconds, proposer.seconds
        room = limit - length - 1
        chosen = widths.choose(length, room)
        draft = proposer.propose(min(room, chosen - 1))
        rows = chosen if widths.padded else len(draft) + 1
        picks, accepted = verify(engine, sequence, draft, sampling, rows)
        tokens = picks[: accepted + 1]
        added = tokens.tolist()
        end = None if ends.isdisjoint(added) else next(place for place, token in enumerate(added) if token in ends)
        drafted, right = len(draft), accepted
        if end is not None:
            tokens = tokens[: end + 1]
            if len(tokens) <= right:
                # Drafts after the end token are not part of the sequence: they count neither as drafted nor as right.
                drafted = right = len(tokens)
        sequence.extend(tokens, rows)
        proposer.observe(picks, accepted)
        tally.passes += 1
        tally.tokens += len(tokens)
        tally.passes_by_draft[drafted] += 1
        tally.passes_by_accepted[right] += 1
        tally.engine_seconds += engine.seconds - before
        drafting = proposer.seconds - drafting
        tally.heads_seconds += drafting
        tally.widths[rows] += 1
        spent = perf_counter() - resumed
        tally.decode_seconds += spent
        widths.observe(Step(length, rows, len(draft), len(tokens) - 1, spent, drafting))
        yield tokens
        resumed = perf_counter()
        if end is not None:
            return
