"""benchmarks/candidate_drafts.py: n-grams, trees and blocks written out by hand; and the text stays what it is."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from collections.abc import Sequence as AnySequence
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nptool.decoding.jacobi import JacobiBlock
from nptool.decoding.loop import decode
from nptool.decoding.proposers import Autoregressive
from nptool.decoding.sampling import Sampling
from nptool.decoding.sequence import Sequence
from nptool.decoding.tally import Tally
from nptool.decoding.tree import MAX_PATHS
from nptool.decoding.verification import verify_line

VOCABULARY, END = 8, 7
PROMPT = [1, 2, 3]


@pytest.fixture(scope="module")
def drafts(benchmark_module: Callable[[str], ModuleType]) -> Any:
    return benchmark_module("candidate_drafts")


class TestSources:
    def test_a_rejected_tail_is_known_by_each_of_its_tokens(self, drafts: Any) -> None:
        """The guess 9 was wrong where 5 was picked, so 4, 6, 1 and 2 are picks behind a wrong token."""
        recycled = drafts.Recycled(2)
        recycled.learn([0, 3], [8, 9, 1, 1, 1], [8, 5, 4, 6, 1, 2])
        assert {first: [*recycled.behind([0, first])] for first in (8, 5, 4, 6, 1, 2)} == {
            8: [],
            5: [],
            4: [(6, 1)],
            6: [(1, 2)],
            1: [(2,)],
            2: [],
        }

    def test_nothing_is_rejected_of_a_right_guess(self, drafts: Any) -> None:
        recycled = drafts.Recycled(2)
        recycled.learn([0], [1, 2], [1, 2, 3])
        recycled.learn([0], [], [1])
        assert not any([*recycled.behind([token])] for token in range(VOCABULARY))

    def test_the_newest_n_grams_stay_and_take_the_place_of_their_beginnings(self, drafts: Any) -> None:
        pool = drafts.Pool()
        for ngram in [(1,), (2, 3), (2,), (1, 5), (4, 4), (6, 6), (7, 7)]:
            pool.add(0, ngram)
        assert pool.behind(0) == [(7, 7), (6, 6), (4, 4), (1, 5)]
        assert pool.behind(1) == []

    def test_two_tokens_are_looked_up_before_one_and_the_newest_first(self, drafts: Any) -> None:
        found = drafts.Lookup(2).behind([1, 2, 3, 0, 1, 2, 4, 0, 5, 2, 6, 1, 2])
        assert [*found] == [(4, 0), (3, 0), (6, 1)]
        assert [*drafts.Lookup(3).behind([2, 2])] == [(2,)]
        assert [*drafts.Lookup(3).behind([1, 2])] == [*drafts.Lookup(3).behind([1])] == []

    def test_picks_of_iterations_that_follow_each_other_fit_together(self, drafts: Any) -> None:
        diagonals = drafts.Diagonals(2)
        diagonals.learn([0, 5], [1, 2, 3], [6, 4, 7, 2])
        assert {first: [*diagonals.behind([first])] for first in (0, 1, 2, 3)} == {
            0: [(5, 6)],
            1: [(4,)],
            2: [(7,)],
            3: [(2,)],
        }
        # The window has slid by one: its rows are 6 and the picks 4, 7 and 2.
        diagonals.learn([0, 5, 6], [4, 7, 2], [3, 0, 5, 1])
        assert {first: [*diagonals.behind([first])] for first in (5, 1, 2, 3)} == {
            5: [(6, 3)],
            1: [(4, 0)],
            2: [(7, 5)],
            3: [(2, 1)],
        }


class TestGrowing:
    def test_branches_share_what_they_have_in_common(self, drafts: Any) -> None:
        growing = drafts.Growing([1, 2], size=9, deepest=9)
        for place, ngram in [(0, (1, 3)), (0, (4,)), (2, (5, 6)), (0, (1, 3, 2))]:
            growing.add(place, ngram)
        tokens, shape = growing.draft()
        assert tokens.tolist() == [1, 2, 3, 4, 5, 6, 2]
        assert shape.parents == (0, 1, 1, 0, 2, 5, 3)
        assert shape.depths == (1, 2, 2, 1, 3, 4, 3)

    def test_no_more_nodes_and_none_deeper_than_there_is_room(self, drafts: Any) -> None:
        growing = drafts.Growing([1, 2], size=4, deepest=2)
        growing.add(0, (3, 4, 5))
        growing.add(0, (6,))
        tokens, shape = growing.draft()
        assert (tokens.tolist(), shape.depths) == ([1, 2, 3, 4], (1, 2, 1, 2))

    @pytest.mark.parametrize("line", [[], [1]])
    def test_no_more_paths_than_the_engine_has_sequences(self, drafts: Any, line: list[int]) -> None:
        growing = drafts.Growing(line, size=99, deepest=9)
        for token in range(50):
            growing.add(0, (token,))
        _, shape = growing.draft()
        assert len(shape.parents) == MAX_PATHS


class TestBlocks:
    @given(st.integers(1, 6), st.lists(st.lists(st.integers(0, 6), min_size=7, max_size=7), max_size=9), st.data())
    @settings(deadline=None, max_examples=50)
    def test_without_a_next_one_they_are_the_paper_s(
        self, drafts: Any, n: int, steps: list[list[int]], data: st.DataObject
    ) -> None:
        ours, papers = drafts.Blocks(n, np.array(PROMPT), 2.0), JacobiBlock(n, np.array(PROMPT), seed=0)
        assert ours.width == papers.width == n
        for values in steps:
            room = data.draw(st.integers(0, 7))
            draft = ours.propose(room)
            assert draft.tolist() == papers.propose(room).tolist()
            accepted = data.draw(st.integers(0, len(draft)))
            for proposer in (ours, papers):
                proposer.observe(np.array(values[: len(draft) + 1]), accepted)

    def test_the_next_block_enters_when_enough_is_accepted(self, drafts: Any) -> None:
        """n = 4, from 3 of 4 tokens on: 4 rows, then 1 + 4, of which 2 are accepted: 3 of the next one are left."""
        blocks = drafts.Blocks(4, np.array([0]), 0.75)
        assert blocks.width == 5
        assert blocks.propose(99).tolist() == [0, 0, 0]
        blocks.observe(np.array([1, 2, 3, 4]), 0)
        assert blocks.propose(99).tolist() == [2, 3]
        blocks.observe(np.array([2, 3, 5]), 1)
        assert blocks.propose(99).tolist() == [5, 0, 0, 0]
        blocks.observe(np.array([5, 6, 1, 2, 3]), 1)
        assert blocks.propose(99).tolist() == [1, 2]

    def test_two_blocks_from_the_beginning(self, drafts: Any) -> None:
        blocks = drafts.Blocks(3, np.array([0]), 0.0)
        assert (blocks.width, len(blocks.propose(99))) == (6, 5)
        blocks.observe(np.arange(6), 1)
        assert blocks.propose(99).tolist() == [2, 3, 4]
        blocks.observe(np.array([7, 8, 9, 1]), 0)
        assert blocks.propose(99).tolist() == [8, 9, 1, 0, 0]


def tangled(tokens: AnySequence[int], salt: int) -> list[float]:
    """Repeats itself now and then, so that n-grams are right now and then."""
    digest = hashlib.blake2b(bytes([salt, *tokens[-2:]]), digest_size=VOCABULARY).digest()
    row = [float(byte) for byte in digest]
    row[END] = 300.0 if len(tokens) > 60 and digest[0] % 7 == 0 else -9.0
    return row


class Scripted:
    """One scripted engine and its text."""

    def __init__(self, scripted: Any, salt: int) -> None:
        self.engine = scripted(lambda tokens: tangled(tokens, salt), width=48)
        self.text = Sequence(self.engine)
        self.text.open(PROMPT)
        self.text.prefill()

    def answer(self, proposer: Any, width: int | None, limit: int) -> list[int]:
        self.tally = Tally(proposer.width)
        steps = decode(
            self.engine,
            self.text,
            proposer,
            Sampling(),
            self.tally,
            limit=limit,
            end_tokens={END},
            width=width,
            verify=getattr(proposer, "verify", verify_line),
        )
        return [token for tokens in steps for token in tokens.tolist()]


@given(
    st.integers(0, 255),
    st.sets(st.sampled_from(["recycled", "lookup", "lookahead"])),
    st.integers(2, 8),
    st.integers(0, 24),
    st.integers(1, 6),
    st.integers(1, 9),
    st.booleans(),
    st.integers(20, 90),
)
@settings(deadline=None, max_examples=150)
def test_branches_leave_the_text_as_it_is(
    scripted: Any,
    drafts: Any,
    salt: int,
    kinds: set[str],
    n: int,
    more: int,
    length: int,
    places: int,
    padded: bool,
    limit: int,
) -> None:
    decoding = Scripted(scripted, salt)
    sources = [drafts.SOURCES[kind](length) for kind in sorted(kinds)]
    branches = drafts.Branches(n, n + more, decoding.text, sources, places)
    found = decoding.answer(branches, n + more if padded else None, limit)
    assert found == Scripted(scripted, salt).answer(Autoregressive(), None, limit)
    assert decoding.engine.cache == decoding.text.tokens[: decoding.text.cached].tolist()
    assert all(rows == n + more if padded else rows <= n + more for rows in decoding.engine.widths)


@given(st.integers(0, 255), st.integers(1, 8), st.sampled_from([0.0, 0.5, 0.85, 2.0]), st.integers(20, 90))
@settings(deadline=None, max_examples=100)
def test_blocks_leave_the_text_as_it_is(
    scripted: Any, drafts: Any, salt: int, n: int, begin: float, limit: int
) -> None:
    decoding = Scripted(scripted, salt)
    found = decoding.answer(drafts.Blocks(n, decoding.text.tokens, begin), None, limit)
    assert found == Scripted(scripted, salt).answer(Autoregressive(), None, limit)
    assert max(decoding.engine.widths) <= drafts.rows_in_flight(n, begin)


@pytest.mark.parametrize("kind", ["recycled", "lookup", "lookahead"])
def test_branches_save_passes(scripted: Any, drafts: Any, kind: str) -> None:
    """On texts that repeat themselves, where a window of two tokens foresees little."""
    passes = {True: 0, False: 0}
    for salt in range(20):
        for branching in passes:
            decoding = Scripted(scripted, salt)
            sources = [drafts.SOURCES[kind](4)] if branching else []
            decoding.answer(drafts.Branches(4, 12, decoding.text, sources, 1), None, 90)
            passes[branching] += decoding.tally.passes
    assert passes[True] < passes[False]
