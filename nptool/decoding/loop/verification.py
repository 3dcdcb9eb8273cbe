"""One forward pass over a draft, a line or a tree: the tokens picked after the draft's, and how many are accepted.

Both are verified by the same `pick`, token by token. A row attends only to its own prefix, so rejected rows change no
pick of an accepted one.
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
    """The nodes of a tree without its root, which is row 0. Parents precede their children."""

    parents: tuple[int, ...]
    """Parents' rows of rows 1, 2, ..."""
    depths: tuple[int, ...]
    """1 for children of the root."""
    ranks: tuple[int, ...]
    """Rank of each token among its head's choices, from 0."""


class Draft(NamedTuple):
    """A tree of tokens."""

    tokens: NDArray[np.integer]
    """Tokens of rows 1, 2, ..."""
    shape: Shape


class Verified(NamedTuple):
    """The result of one pass."""

    picks: NDArray[np.integer]
    """Tokens picked after the last token of the sequence and after the draft's tokens: all of a line's, a tree's as far
    as they are accepted. After the first rejected token of a line they are the likeliest tokens, not samples."""
    accepted: int
    """Accepted tokens of the draft; `accepted + 1` picks join the sequence."""
    drafted: int
    """Depth of the draft in tokens."""
    rows: int
    """Rows of the batch."""
    path: list[int] | None = None
    """If the batch was a tree, its rows that hold tokens of the sequence."""


Verify = Callable[[Engine, Sequence, Any, Sampling, int | None], Verified]


def verify_line(
    engine: Engine, sequence: Sequence, draft: NDArray[np.integer], sampling: Sampling, width: int | None
) -> Verified:
    """Evaluate the last token and `draft` in one batch of `width` rows, or of as many as needed.

    Sampling stops at the first rejected token: later rows were computed on a prefix that is about to be discarded.
    """
    rows = len(draft) + 1
    batch = sequence.lay(draft, width or rows)
    logits_RV = engine.evaluate(batch, sequence.length - 1)[:rows]
    # `penalized` checks this too; here it saves a step without penalty the view of the tokens before.
    if sampling.repeat_penalty != 1.0:
        logits_RV = sampling.penalized(logits_RV, sequence.before(rows))
    picks_R: NDArray[np.integer] = logits_RV.argmax(axis=1)
    drafted, greedy = draft.tolist(), sampling.greedy
    for row, picked in enumerate(picks_R.tolist()):
        if not greedy:
            picks_R[row] = picked = sampling.draw(logits_RV[row], sequence.length + row, picked)
        if row == len(drafted) or picked != drafted[row]:
            break
    return Verified(picks_R, row, len(drafted), len(batch))


def verify_tree(engine: Engine, sequence: Sequence, draft: Draft, sampling: Sampling, width: int | None) -> Verified:
    """The same for a tree: follow the picks from the root until one is not a child of the current node.

    Accepted tokens whose cache cells are not in sequence order are evaluated again at the start of the next batch. The
    order of cells is the order in which attention adds up, so it has to be that of autoregressive decoding.
    """
    first = sequence.pending
    rows = first + 1 + len(draft.tokens)
    batch = sequence.lay(draft.tokens, width or rows)
    # Pending tokens are a line up to the root; padding is a line after the last node.
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
