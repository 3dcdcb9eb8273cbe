"""Drafts with more candidates than one guess, for candidates.py: branches beside a Jacobi window, blocks in flight.

A branch is an n-gram that may follow the text, or the text and the beginning of the guess; its tokens are extra rows of
the batch, a sequence id for each path. Three sources of n-grams:

- `Recycled`: rejected tails of the guess (Jacobi Forcing, arXiv 2512.14681);
- `Lookup`: what followed the same tokens earlier in prompt and text (prompt lookup);
- `Diagonals`: picks of iterations that follow each other (lookahead decoding, arXiv 2402.02057).

Pure arrays but for `Branches.verify`; knows no model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import chain, islice, zip_longest
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from nptool.decoding.engine import Engine
from nptool.decoding.jacobi import Fill, JacobiWindow
from nptool.decoding.sampling import Sampling
from nptool.decoding.sequence import Sequence as Text
from nptool.decoding.tree import MAX_PATHS, Draft, Shape
from nptool.decoding.verification import Step, verify_tree

NGram = tuple[int, ...]

# N-grams for one token, as in Jacobi Forcing.
POOL = 4


class Source(Protocol):
    """Where n-grams come from. Made anew for each text."""

    def behind(self, before: Sequence[int]) -> Iterator[NGram]:
        """What may follow the tokens `before`, likeliest first."""

    def learn(self, text: Sequence[int], guess: Sequence[int], picks: Sequence[int]) -> None:
        """What a step picked behind `text` and behind each token of the `guess` that followed it."""


class Pool:
    """The newest n-grams of each token."""

    def __init__(self) -> None:
        self._ngrams: dict[int, list[NGram]] = defaultdict(list)

    def add(self, first: int, ngram: NGram) -> None:
        """Remember that `ngram` followed `first`. It takes the place of its own beginnings."""
        kept = [other for other in self._ngrams[first] if other != ngram[: len(other)]]
        self._ngrams[first] = [ngram, *kept][:POOL]

    def behind(self, first: int) -> list[NGram]:
        """The n-grams that are known to follow `first`, the newest first."""
        return self._ngrams.get(first, [])


class Recycled:
    """Tails of the picks that a wrong token made worthless: their tokens may be right, only elsewhere."""

    def __init__(self, length: int) -> None:
        self._length = length
        self._pool = Pool()

    def behind(self, before: Sequence[int]) -> Iterator[NGram]:
        return iter(self._pool.behind(before[-1]))

    def learn(self, text: Sequence[int], guess: Sequence[int], picks: Sequence[int]) -> None:
        accepted = next((place for place, (a, b) in enumerate(zip(guess, picks, strict=False)) if a != b), len(guess))
        tail = tuple(picks[accepted + 1 :])
        for place, first in enumerate(tail[:-1], start=1):
            self._pool.add(first, tail[place : place + self._length])


class Lookup:
    """What followed earlier occurrences of the last two tokens, then of the last one; the newest first."""

    def __init__(self, length: int) -> None:
        self._length = length

    def behind(self, before: Sequence[int]) -> Iterator[NGram]:
        return islice(dict.fromkeys(chain(self._found(before, 2), self._found(before, 1))), POOL)

    def learn(self, text: Sequence[int], guess: Sequence[int], picks: Sequence[int]) -> None:
        """Nothing to learn: everything is in the text."""

    def _found(self, before: Sequence[int], size: int) -> Iterator[NGram]:
        key = before[-size:]
        for end in range(len(before) - 1, size - 1, -1):
            if before[end - 1] == key[-1] and before[end - size : end] == key:
                yield tuple(before[end : end + self._length])


class Diagonals:
    """A token of the guess and the pick behind it fit together, and so do those of one iteration after the other."""

    def __init__(self, length: int) -> None:
        self._length = length
        self._pool = Pool()
        self._ending: dict[int, NGram] = {}
        """Position to the n-gram that ends there, as of the last step."""

    def behind(self, before: Sequence[int]) -> Iterator[NGram]:
        return iter(self._pool.behind(before[-1]))

    def learn(self, text: Sequence[int], guess: Sequence[int], picks: Sequence[int]) -> None:
        """Lengthen every position's n-gram by what was picked behind it, and keep it in the pool."""
        ending: dict[int, NGram] = {len(text) - 1: tuple(text[-self._length :])}
        for position, token in enumerate(guess, start=len(text)):
            known = self._ending.get(position, ())
            ending[position] = known if known[-1:] == (token,) else (token,)
        self._ending = {}
        for (position, ngram), pick in zip(ending.items(), picks, strict=True):
            longer = (*ngram, pick)[-self._length - 1 :]
            self._pool.add(longer[0], longer[1:])
            self._ending[position + 1] = longer


SOURCES: dict[str, type[Recycled] | type[Lookup] | type[Diagonals]] = {
    "recycled": Recycled,
    "lookup": Lookup,
    "lookahead": Diagonals,
}


class Branches:
    """A Jacobi window; the rows that a step has beyond it are branches off its guess."""

    seconds = 0.0

    def __init__(self, n: int, rows: int, text: Text, sources: Sequence[Source], places: int, seed: int = 0) -> None:
        """
        Args:
            n: length of the window.
            rows: of a full step, at least n.
            places: of the window, from its beginning, behind which branches may begin.
        """
        self.width = rows
        self._window = JacobiWindow(n, text.tokens, seed)
        self._text = text
        self._sources = sources
        self._places = places
        self._guess: NDArray[np.integer] = np.empty(0, dtype=np.intp)
        self._picks: NDArray[np.integer] = self._guess

    def propose(self, room: int) -> Draft:
        """The window's guess first, so that what is accepted of it lies in the cache as a text does."""
        self._guess = self._window.propose(room)
        growing = Growing(self._guess.tolist(), self.width - 1 - self._text.pending, room)
        for depth, ngram in self._candidates():
            growing.add(depth, ngram)
        return growing.draft()

    def verify(self, engine: Engine, sequence: Text, draft: Draft, sampling: Sampling, width: int | None) -> Step:
        """As `verify_tree`, which looks only at picks on the accepted path: the window goes on from all of its own."""
        first, rows = sequence.pending, 1 + len(self._guess)
        watched = _Watched(engine)
        step = verify_tree(cast(Engine, watched), sequence, draft, sampling, width)
        self._picks = sampling.pick_rows(
            watched.logits_RV[first : first + rows], sequence.length, sequence.before(rows)
        )
        text, guess, picks = sequence.tokens.tolist(), self._guess.tolist(), self._picks.tolist()
        for source in self._sources:
            source.learn(text, guess, picks)
        return step

    def observe(self, picks: NDArray[np.integer], accepted: int) -> None:
        """Slide by what was accepted, on the window or on a branch."""
        self._window.observe(self._picks, accepted)

    def _candidates(self) -> Iterator[tuple[int, NGram]]:
        """(place, n-gram): those behind the text before those behind the guess; the sources take turns."""
        text, guess = self._text.tokens.tolist(), self._guess.tolist()
        for depth in range(min(self._places, len(guess) + 1)):
            before = text + guess[:depth]
            for turn in zip_longest(*(source.behind(before) for source in self._sources)):
                yield from ((depth, ngram) for ngram in turn if ngram is not None)


class Growing:
    """A tree while nodes are added to it."""

    def __init__(self, line: Sequence[int], size: int, deepest: int) -> None:
        """Args: `line` comes first; at most `size` nodes in all, none further than `deepest` from the root."""
        self._size = size
        self._deepest = deepest
        self._tokens: list[int] = []
        self._parents: list[int] = []
        self._depths = [0]
        self._children: dict[tuple[int, int], int] = {}
        self._leaves = 1
        self._lined = False
        self.add(0, tuple(line))
        self._lined = True

    def add(self, row: int, ngram: NGram) -> None:
        """Add `ngram` behind the node in `row`, as far as it is new and there is room."""
        for token in ngram:
            child = self._children.get((row, token))
            if child is None:
                child = self._grow(row, token)
            if child is None:
                return
            row = child

    def draft(self) -> Draft:
        """What has grown, as the loop takes a draft."""
        shape = Shape(tuple(self._parents), tuple(self._depths[1:]), (0,) * len(self._tokens))
        return Draft(np.array(self._tokens, dtype=np.int32), shape)

    def _grow(self, row: int, token: int) -> int | None:
        """A new node's row; None where there is no room."""
        branching = self._lined and any(parent == row for parent in self._parents)
        if len(self._tokens) == self._size or self._depths[row] == self._deepest:
            return None
        if branching and self._leaves == MAX_PATHS:
            return None
        self._leaves += branching
        self._tokens.append(token)
        self._parents.append(row)
        self._depths.append(self._depths[row] + 1)
        self._children[row, token] = len(self._tokens)
        return len(self._tokens)


class Blocks:
    """Jacobi blocks of n tokens, the next one in flight once enough of the first is accepted (Jacobi Forcing, K = 2).

    The next block is refined behind the first one's guess. Its tokens join the text only when all before them did.
    """

    seconds = 0.0

    def __init__(self, n: int, prompt: NDArray[np.int32], begin: float, seed: int = 0) -> None:
        """Args: `begin` is the share of a block accepted when the next one enters; above 1 there is never a next."""
        self._n = n
        self._begin = begin * n
        self.width = rows_in_flight(n, begin)
        self._fill = Fill(prompt, seed, self.width)
        self._left = n
        self._guess: NDArray[np.integer] = self._fill.take(self._horizon() - 1)

    def propose(self, room: int) -> NDArray[np.integer]:
        """The guess of all blocks in flight, but for its last token: a pick behind the guess gives that one."""
        return self._guess[: max(0, room)]

    def observe(self, picks: NDArray[np.integer], accepted: int) -> None:
        """Keep the rest of the picks; promote the next block where the first is done, begin one where it is time."""
        self._left -= accepted + 1
        while self._left <= 0:
            self._left += self._n
        size = self._horizon() - 1
        kept = np.concatenate([picks, self._guess[len(picks) :]])[accepted + 1 :][:size]
        self._guess = np.concatenate([kept, self._fill.take(size - len(kept))])

    def _horizon(self) -> int:
        """Tokens that are in flight."""
        return self._left + (self._n if self._n - self._left >= self._begin else 0)


def rows_in_flight(n: int, begin: float) -> int:
    """The most rows of a step of `Blocks`."""
    return max([n, *(2 * n - accepted for accepted in range(n) if accepted >= begin * n)])


class _Watched:
    """An engine, as far as judging a draft goes, whose last logits are kept at hand."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def evaluate(self, *arguments: Any, **options: Any) -> NDArray[np.float32]:
        self.logits_RV = self._engine.evaluate(*arguments, **options)
        return self.logits_RV
