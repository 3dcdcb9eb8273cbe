"""One pass of the model over a draft: what is picked behind each token, and how far the draft agrees.

A draft is a line or a tree; both are judged by the same `pick`, token by token, and a token's row never depends on the
rows that are not before it in the text. Knows no proposer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nptool.decoding.loop.engine import Engine
from nptool.decoding.loop.sampling import Sampling
from nptool.decoding.loop.sequence import Sequence


class Shape(NamedTuple):
    """The nodes of a tree behind its root, which is row 0. Parents stand before their children."""

    parents: tuple[int, ...]
    """Row of the parent of rows 1, 2, ..."""
    depths: tuple[int, ...]
    """1 is a child of the root."""
    ranks: tuple[int, ...]
    """Which choice of its head a node is, from 0."""


class Draft(NamedTuple):
    """A tree of tokens."""

    tokens: NDArray[np.integer]
    """Of rows 1, 2, ..."""
    shape: Shape

    def __len__(self) -> int:
        return len(self.tokens)


class Verified(NamedTuple):
    """What a pass gave."""

    picks: NDArray[np.integer]
    """Tokens behind the last one of the text and behind each token of the draft that was looked at. Behind the first
    wrong one they are guesses: the likeliest."""
    accepted: int
    """How many of the draft's tokens, one behind the other, were right; `accepted + 1` picks join the text."""
    drafted: int
    """Tokens drafted one behind the other."""
    rows: int
    """Of the batch."""
    path: list[int] | None = None
    """Rows of the text's tokens in a batch that was a tree."""


Verify = Callable[[Engine, Sequence, Any, Sampling, int | None], Verified]


def verify_line(
    engine: Engine, sequence: Sequence, draft: NDArray[np.integer], sampling: Sampling, width: int | None
) -> Verified:
    """Evaluate the last token and `draft` in one batch of `width` rows, or of as many as needed."""
    rows = len(draft) + 1
    batch = sequence.lay(draft, width or rows)
    logits_RV = engine.evaluate(batch, sequence.length - 1)
    picks, accepted = _judge(logits_RV[:rows], sequence, draft, sampling)
    return Verified(picks, accepted, len(draft), len(batch))


def _judge(
    logits_RV: NDArray[np.float32], sequence: Sequence, draft: NDArray[np.integer], sampling: Sampling
) -> tuple[NDArray[np.integer], int]:
    """Picks (R), and how many of the draft's tokens (R - 1) are right.

    Nothing is drawn behind the first wrong token: those rows saw a text that will not be, and a guess made of what they
    hold likeliest turns out right more often than one with the noise that the final pick will have. Measured on the
    embedded default, n = 16: 4.76 tokens per forward against 4.53 at temperature 0.8, 4.71 against 4.40 at 1.2.
    """
    # Asked here too: in a step without the penalty nothing is to be looked up for it.
    if sampling.repeat_penalty != 1.0:
        logits_RV = sampling.penalized(logits_RV, sequence.before(len(logits_RV)))
    picks_R: NDArray[np.integer] = logits_RV.argmax(axis=1)
    drafted, greedy = draft.tolist(), sampling.greedy
    for row, picked in enumerate(picks_R.tolist()):
        if not greedy:
            picks_R[row] = picked = sampling.draw(logits_RV[row], sequence.length + row, picked)
        if row == len(drafted) or picked != drafted[row]:
            break
    return picks_R, row


def verify_tree(engine: Engine, sequence: Sequence, draft: Draft, sampling: Sampling, width: int | None) -> Verified:
    """The same for a tree, from whose root the picks lead to a leaf or out of the tree.

    Accepted tokens that did not lie in the cache as a text does are first of all in the next batch: that order of the
    cache, in which attention adds up, is what keeps the bits.
    """
    first = sequence.pending
    rows = first + 1 + len(draft)
    batch = sequence.lay(draft.tokens, width or rows)
    # What was accepted last time is a line up to the root; junk is one behind the last node.
    parents = (*range(-1, first), *(first + parent for parent in draft.shape.parents), *range(rows - 1, len(batch) - 1))
    logits_RV = engine.evaluate(batch, sequence.cached, parents=parents)
    tokens = draft.tokens.tolist()
    children: dict[tuple[int, int], int] = {}
    for node, parent in enumerate(draft.shape.parents, start=1):
        children.setdefault((parent, tokens[node - 1]), node)
    path, picks, node = [*range(first + 1)], list[int](), 0
    known = sequence.tokens
    while True:
        before = known if not picks else np.concatenate([known, np.array(picks, dtype=np.int32)])
        picks.append(sampling.pick(logits_RV[first + node], sequence.length + len(picks), before))
        found = children.get((node, picks[-1]))
        if found is None:
            break
        node = found
        path.append(first + node)
    return Verified(np.array(picks), len(picks) - 1, max(draft.shape.depths, default=0), len(batch), path)
