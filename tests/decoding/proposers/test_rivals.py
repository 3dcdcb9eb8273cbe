"""Prompt lookup and lookahead decoding with hand-written arrays. test_loop.py checks that they are lossless."""

from __future__ import annotations

from collections.abc import Sequence as AnySequence
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from nptool.decoding.loop.loop import decode
from nptool.decoding.loop.sampling import Sampling
from nptool.decoding.loop.sequence import Sequence
from nptool.decoding.loop.steps import FixedWidth
from nptool.decoding.loop.tally import Tally
from nptool.decoding.proposers.lookahead import LookaheadDecoding
from nptool.decoding.proposers.prompt_lookup import PromptLookup

FILL = 7
VOCABULARY = 8


def cycle(tokens: AnySequence[int]) -> list[float]:
    """0, 1, ... 4, 0, 1, ...: the next token depends on the last one."""
    return [float(token == (tokens[-1] + 1) % 5) for token in range(VOCABULARY)]


def text_of(engine: Any, tokens: AnySequence[int]) -> Sequence:
    text = Sequence(engine)
    text.open(tokens)
    text.prefill()
    return text


def passes(engine: Any, text: Sequence, proposer: Any, limit: int) -> list[list[int]]:
    """The tokens of every pass."""
    options: Any = {"limit": limit, "end_tokens": (), "widths": FixedWidth(None)}
    steps = decode(engine, text, proposer, Sampling(), Tally(proposer.width), **options)
    return [tokens.tolist() for tokens in steps]


class TestPromptLookup:
    def test_two_tokens_are_looked_up_before_one(self, scripted: Any) -> None:
        text = text_of(scripted(cycle), [3, 4, 1, 2, 5, 6, 2, 7, 1, 2])
        assert PromptLookup(4, text).propose(99).tolist() == [5, 6, 2]
        assert PromptLookup(4, text).propose(2).tolist() == [5, 6]
        text = text_of(scripted(cycle), [2, 5, 6, 7, 2])
        assert PromptLookup(3, text).propose(99).tolist() == [5, 6]

    def test_nothing_is_drafted_where_nothing_is_found(self, scripted: Any) -> None:
        text = text_of(scripted(cycle), [1, 2, 3])
        assert PromptLookup(4, text).propose(99).tolist() == []
        assert PromptLookup(1, text_of(scripted(cycle), [2, 2])).propose(99).tolist() == []

    def test_a_text_that_repeats_is_copied(self, scripted: Any) -> None:
        """No drafts in the first round of the cycle; then the tokens after the first 0 and the first 0, 1."""
        engine = scripted(cycle)
        text = text_of(engine, [0])
        found = passes(engine, text, PromptLookup(4, text), 14)
        assert found == [[1], [2], [3], [4], [0], [1, 2, 3, 4], [0, 1, 2, 3]]
        assert engine.widths == [1, 1, 1, 1, 1, 4, 4]


class TestLookahead:
    def test_a_pick_fits_the_token_before_it(self) -> None:
        """Rows 5 7 7 7 give 6 1 2 3: the n-gram 5 6 joins the text, and 7 is followed by 3, the newest."""
        lookahead = LookaheadDecoding(4, np.array([FILL, 5], dtype=np.int32), seed=0)
        lookahead._window = [(FILL,)] * 3
        lookahead.observe(np.array([6, 1, 2, 3]), accepted=0)
        assert lookahead._pool == {5: (6,), 7: (3,)}
        assert lookahead.propose(99).tolist() == [1, 2, 3]

    def test_picks_of_iterations_that_follow_each_other_are_read_diagonally(self) -> None:
        lookahead = LookaheadDecoding(4, np.array([FILL, FILL, 5], dtype=np.int32), seed=0)
        lookahead._window = [(1,), (2,), (3,)]
        lookahead.observe(np.array([6, 0, 4, 7]), accepted=0)
        # The rows are now 6 0 4 7, each the pick after its predecessor.
        lookahead.observe(np.array([2, 3, 6, 1]), accepted=0)
        pool = lookahead._pool
        assert {first: pool[first] for first in (5, 1, 2, 3)} == {5: (6, 2), 1: (0, 3), 2: (4, 6), 3: (7, 1)}

    def test_the_newest_n_gram_of_the_last_token_takes_the_first_places(self) -> None:
        lookahead = LookaheadDecoding(5, np.array([5], dtype=np.int32), seed=0)
        lookahead._pool[6] = (3, 4)
        lookahead.observe(np.array([6, 0, 0, 0, 0]), accepted=0)
        assert lookahead.propose(99).tolist() == [3, 4, 0, 0]
        assert lookahead.propose(1).tolist() == [3]

    def test_guesses_that_no_row_has_read_stay(self) -> None:
        lookahead = LookaheadDecoding(6, np.array([5], dtype=np.int32), seed=0)
        lookahead._window = [(1,), (2,), (3,), (4,), (0,)]
        assert lookahead.propose(2).tolist() == [1, 2]
        lookahead.observe(np.array([1, 6, 7]), accepted=1)
        assert lookahead.propose(99).tolist() == [7, 4, 0, 5, 5]

    def test_a_cycle_is_learned(self, scripted: Any) -> None:
        """After one round of the cycle every pass accepts its whole draft of two tokens."""
        engine = scripted(cycle)
        text = text_of(engine, [0])
        found = passes(engine, text, LookaheadDecoding(3, text.tokens, seed=0), 40)
        assert [token for tokens in found for token in tokens] == [place % 5 for place in range(1, 40)]
        assert {len(tokens) for tokens in found[5:-1]} == {3}
        assert {len(tokens) for tokens in found[:3]} <= {1, 2}

    @given(st.integers(1, 9), st.lists(st.integers(0, 6), min_size=1, max_size=5), st.integers(0, 3))
    @settings(deadline=None, max_examples=50)
    def test_a_draft_fills_the_window_and_never_more_than_the_room(self, n: int, prompt: list[int], seed: int) -> None:
        lookahead = LookaheadDecoding(n, np.array(prompt, dtype=np.int32), seed)
        rng = np.random.default_rng(seed)
        for room in (99, 3, 99, 1, 0, 99):
            draft = lookahead.propose(room)
            assert len(draft) == min(n - 1, room)
            lookahead.observe(rng.integers(0, 7, len(draft) + 1), int(rng.integers(0, len(draft) + 1)))
