"""Trees of the heads' choices: their shape, their size, their layout in the cache, and that they are lossless."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence as AnySequence
from functools import partial
from itertools import cycle, pairwise, product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nptool.decoding.adaptive.chooser import Chooser
from nptool.decoding.adaptive.cost import Calibration
from nptool.decoding.adaptive.gains import Gains
from nptool.decoding.adaptive.widths import AdaptiveWidth
from nptool.decoding.headed import HeadedEngine
from nptool.decoding.loop.loop import decode
from nptool.decoding.loop.sampling import Sampling
from nptool.decoding.loop.sequence import Sequence
from nptool.decoding.loop.steps import Autoregressive, Drafts, FixedWidth, Step, Widths
from nptool.decoding.loop.tally import Tally
from nptool.decoding.loop.verification import Shape, verify_tree
from nptool.decoding.proposers.tree import MAX_PATHS, HeadsTree, expected_tokens, grow
from nptool.errors import ContextError
from nptool.llama import branches
from nptool.llama.head import SeparateHeads

VOCABULARY, END = 8, 7
PROMPT = [1, 2, 3]
SHARES = ((0.6, 0.3), (0.5, 0.2), (0.4, 0.1))


def tangled(tokens: AnySequence[int], salt: int = 0) -> list[float]:
    digest = hashlib.blake2b(bytes([salt, *tokens[-3:]]), digest_size=VOCABULARY).digest()
    row = [float(byte % 16) for byte in digest]
    row[END] = 20.0 if digest[0] % 23 == 0 else -9.0
    return row


class TestShape:
    def test_the_likeliest_nodes_with_the_first_choices_first(self) -> None:
        # 0.6, 0.3 (second of head 2), 0.3 (0.6 * 0.5), 0.15 (0.3 * 0.5), 0.12, 0.12, ...
        assert grow(SHARES, 1) == Shape((0,), (1,), (0,))
        assert grow(SHARES, 3) == Shape((0, 1, 0), (1, 2, 1), (0, 0, 1))
        assert grow(SHARES, 4) == Shape((0, 1, 0, 3), (1, 2, 1, 2), (0, 0, 1, 0))

    def test_a_tree_of_all_nodes_is_no_larger(self) -> None:
        shape = grow(SHARES, 100)
        assert len(shape.parents) == 2 + 4 + 8
        assert shape.ranks[:3] == (0, 0, 0)

    @given(
        st.lists(st.lists(st.floats(0, 1), min_size=1, max_size=6), min_size=1, max_size=5),
        st.integers(0, 60),
    )
    @settings(deadline=None, max_examples=200)
    def test_any_shares(self, shares: list[list[float]], size: int) -> None:
        shape = grow(tuple(map(tuple, shares)), size)
        assert len(shape.parents) <= size
        depths = [0]
        for row, (parent, depth) in enumerate(zip(shape.parents, shape.depths, strict=True), start=1):
            assert parent < row
            assert depth == depths[parent] + 1
            depths.append(depth)
        assert len(set(zip(shape.parents, shape.ranks, strict=True))) == len(shape.parents), "no node twice"
        firsts = [True]
        for parent, rank in zip(shape.parents, shape.ranks, strict=True):
            firsts.append(firsts[parent] and rank == 0)
        assert sorted(firsts, reverse=True) == firsts, "the path of first choices comes first"
        assert len(set(range(len(depths))) - set(shape.parents)) <= MAX_PATHS


class TestSize:
    """Expected tokens of a tree by its size, and the best size on a machine."""

    def test_expected_tokens_are_one_and_the_nodes_that_are_right(self) -> None:
        # Nodes of 0.6, 0.3, 0.3, 0.15, and of the third head 0.12.
        assert [expected_tokens(SHARES, rows) for rows in (1, 2, 3, 4, 5, 6)] == pytest.approx(
            [1.0, 1.6, 1.9, 2.2, 2.35, 2.47]
        )

    @given(st.integers(0, 255), st.integers(1, 12))
    @settings(deadline=None, max_examples=30)
    def test_expected_tokens_are_the_average_of_a_simulation(self, seed: int, rows: int) -> None:
        """Draws the rank of the right token among each head's choices and counts accepted tokens."""
        shape, generator = grow(SHARES, rows - 1), np.random.default_rng(seed)
        children = {
            (parent, rank): row
            for row, (parent, rank) in enumerate(zip(shape.parents, shape.ranks, strict=True), start=1)
        }
        drawn_KN = [generator.choice(3, 2000, p=[*shares, 1 - sum(shares)]) for shares in SHARES]
        total = 0
        for ranks in zip(*drawn_KN, strict=True):
            node, length = 0, 1
            for rank in ranks:
                if (node, rank) not in children:
                    break
                node, length = children[node, rank], length + 1
            total += length
        assert total / 2000 == pytest.approx(expected_tokens(SHARES, rows), abs=0.12)

    @given(
        st.lists(st.lists(st.floats(0, 1), min_size=1, max_size=4), min_size=1, max_size=4),
        st.lists(st.floats(0.2, 9), min_size=7, max_size=7),
    )
    @settings(deadline=None, max_examples=100)
    def test_the_size_is_that_of_brute_force(self, shares: list[list[float]], times: list[float]) -> None:
        rows = (1, 2, 4, 8, 16, 32, 64)
        known, seconds = tuple(map(tuple, shares)), dict(zip(rows, times, strict=True))
        reach = partial(expected_tokens, known)
        chooser = Chooser(Calibration((128,), tuple(rows), (tuple(times),), (tuple(rows),)))
        chooser.add("tree", Gains(1.0, 1e9, drafts=Drafts.BRANCHING, reach=reach))
        chosen, _ = chooser.choose("tree", rows, 100, 0)
        rates = {size: min(size, expected_tokens(known, size)) / seconds[size] for size in rows}
        assert rates[chosen] == pytest.approx(max(rates.values()))

    def test_trees_are_small_if_rows_cost_much_and_large_if_they_cost_little(self) -> None:
        reach = partial(expected_tokens, SHARES)
        rows = (1, 2, 4, 8, 16)
        for times, best in (
            ((1, 1.78, 2.68, 6.0, 6.4), 1),
            ((1, 1.17, 1.48, 1.92, 3.03), 4),
            ((1, 1.01, 1.02, 1.03, 1.04), 16),
        ):
            calibration = Calibration((128,), rows, (tuple(times),), (rows,))
            chooser = Chooser(calibration)
            chooser.add("tree", Gains(1.0, 8.0, drafts=Drafts.BRANCHING, reach=reach))
            assert chooser.choose("tree", rows, 100, 0)[0] == best

    def test_drafts_that_are_worse_than_expected_make_it_smaller(self) -> None:
        """Directly, without trying the sizes between: the steps of one size inform about all."""
        seconds = dict(zip((1, 2, 4, 8, 16), (1, 1.2, 1.3, 1.5, 1.6), strict=True))
        calibration = Calibration((128,), tuple(seconds), (tuple(seconds.values()),), (tuple(seconds),))
        reach = partial(expected_tokens, SHARES)
        chooser = Chooser(calibration)
        chooser.add("tree", Gains(1.0, 8.0, drafts=Drafts.BRANCHING, reach=reach))
        chooser.drafting["tree"] = 0.1, 0.0
        widths = AdaptiveWidth(chooser, chooser.plan({"tree": 16}, 100, exact=True), exact=True)
        used = []
        for step in range(200):
            rows = widths.choose(100 + step, 99)
            widths.observe(
                Step(100 + step, rows, min(rows - 1, 3), 0, seconds[rows] + 0.1 * (rows > 1), 0.1 * (rows > 1))
            )
            used.append(rows)
        assert used[0] == 16
        assert used[-100:].count(1) > 80


class TestLayout:
    def test_rows_belong_to_all_paths_through_them(self) -> None:
        tree = branches.layout((-1, 0, 1, 0, 3, 3))
        assert tree.depths.tolist() == [0, 1, 2, 1, 2, 2]
        assert tree.sequences == ((0, 1, 2), (0,), (0,), (1, 2), (1,), (2,))
        assert tree.paths == 3

    @pytest.mark.parametrize(("path", "kept"), [([0], 1), ([0, 1, 2], 3), ([0, 1, 4], 2), ([0, 3, 4], 1)])
    def test_rows_in_order_are_kept(self, path: list[int], kept: int) -> None:
        assert branches.in_order(path) == kept

    def test_a_tree_has_no_more_paths_than_a_context_has_sequences(self) -> None:
        assert MAX_PATHS <= branches.MAX_BRANCHES

    def test_more_paths_than_sequences(self) -> None:
        with pytest.raises(ContextError, match="a tree of 33 paths, but at most 32 are possible"):
            branches.layout((-1, *[0] * 33))


class Decoding:
    """One trunk and its heads, decoding by trees."""

    def __init__(self, scripted: Any, scripted_head: Any, salt: int, count: int, foreseeing: bool) -> None:
        self.salt = salt
        self.trunk = scripted(lambda tokens: tangled(tokens, salt))
        kind = self.foreseen if foreseeing else self.guessed
        self.heads = [scripted_head(kind(number)) for number in range(2, count + 1)]
        shares = tuple((0.6, 0.3, 0.1) for _ in self.heads)
        self.engine = HeadedEngine(self.trunk, SeparateHeads(self.heads), 1 + len(self.heads), shares)
        self.sequence = Sequence(self.engine)
        self.tally = Tally(width=16)

    def guessed(self, head: int) -> Any:
        return lambda tokens: tangled(tokens, 100 + head)

    def foreseen(self, head: int) -> Any:
        """The right token of greedy decoding, but every other time as the second choice only."""

        def logits(tokens: AnySequence[int]) -> AnySequence[float]:
            text = list(tokens)
            for _ in range(head - 1):
                text.append(int(np.argmax(tangled(text, self.salt))))
            row = tangled(text, self.salt)
            if sum(text) % 2:
                row[sum(text) % END] = 30.0
            return row

        return logits

    def answer(
        self,
        prompt: AnySequence[int],
        sampling: Sampling,
        width: int,
        padded: bool,
        limit: int,
        widths: Widths | None = None,
    ) -> list[int]:
        self.sequence.open(prompt)
        self.sequence.prefill()
        tree = HeadsTree(width, self.engine, self.sequence, sampling)
        steps = decode(
            self.engine,
            self.sequence,
            tree,
            sampling,
            self.tally,
            limit=limit,
            end_tokens={END},
            widths=widths or FixedWidth(width if padded else None),
            verify=verify_tree,
        )
        self.passes = [tokens.tolist() for tokens in steps]
        return [token for tokens in self.passes for token in tokens]

    def check(self) -> None:
        """The heads' caches hold all tokens but the last, the trunk's a prefix of them."""
        self.engine.draft_logits(len(self.heads))
        known = self.sequence.tokens[:-1].tolist()
        assert [head.cache for head in self.heads] == [known] * len(self.heads)
        assert self.trunk.cache == known[: self.sequence.cached]
        assert len(known) - self.sequence.cached == self.sequence.pending


def autoregressive(scripted: Any, salt: int, prompt: AnySequence[int], sampling: Sampling, limit: int) -> list[int]:
    engine = scripted(lambda tokens: tangled(tokens, salt))
    sequence = Sequence(engine)
    sequence.open(prompt)
    sequence.prefill()
    options: Any = {"limit": limit, "end_tokens": {END}, "widths": FixedWidth(None)}
    steps = decode(engine, sequence, Autoregressive(), sampling, Tally(width=1), **options)
    return [token for tokens in steps for token in tokens.tolist()]


samplings = st.sampled_from(
    [Sampling(), Sampling(0.8, seed=3), Sampling(0.7, repeat_penalty=1.2, seed=9), Sampling(1.0, top_k=2, seed=4)]
)


@given(st.integers(2, 5), st.integers(1, 16), st.integers(0, 255), samplings, st.booleans(), st.booleans())
@settings(deadline=None, max_examples=150)
def test_trees_are_lossless(
    scripted: Any,
    scripted_head: Any,
    count: int,
    width: int,
    salt: int,
    sampling: Sampling,
    padded: bool,
    foreseeing: bool,
) -> None:
    """In two turns of a conversation."""
    decoding = Decoding(scripted, scripted_head, salt, count, foreseeing)
    found = decoding.answer(PROMPT, sampling, width, padded, 40)
    assert found == autoregressive(scripted, salt, PROMPT, sampling, 40)
    decoding.check()
    longer = [*PROMPT, *found, 4, 5]
    assert decoding.answer(longer, sampling, width, padded, 60) == autoregressive(scripted, salt, longer, sampling, 60)
    decoding.check()
    assert all(rows == width for rows in decoding.trunk.widths) or not padded


class Ordered(Widths):
    """Widths from a list in a cycle, but no fewer rows than a step needs."""

    members = ()

    def __init__(self, order: AnySequence[int], padded: bool) -> None:
        self.padded = padded
        self._order = cycle(order)

    def choose(self, length: int, room: int, least: int = 1) -> int:
        return max(next(self._order), least)


@given(
    st.lists(st.integers(1, 16), min_size=1, max_size=8), st.integers(0, 255), samplings, st.booleans(), st.booleans()
)
@settings(deadline=None, max_examples=150)
def test_trees_of_changing_sizes_are_lossless(
    scripted: Any, scripted_head: Any, order: list[int], salt: int, sampling: Sampling, padded: bool, foreseeing: bool
) -> None:
    """Including a narrow step after a wide one whose accepted tokens have to be evaluated again first."""
    decoding = Decoding(scripted, scripted_head, salt, 4, foreseeing)
    found = decoding.answer(PROMPT, sampling, 16, padded, 50, Ordered(order, padded))
    assert found == autoregressive(scripted, salt, PROMPT, sampling, 50)
    decoding.check()


def test_an_adaptive_step_has_room_for_pending_tokens() -> None:
    calibration = Calibration((128,), (1, 2, 4, 8), ((1.0, 9.0, 9.1, 9.2),), ((1, 2, 4, 8),))
    chooser = Chooser(calibration)
    chooser.add("tree", Gains(0.0, drafts=Drafts.BRANCHING))
    widths = AdaptiveWidth(chooser, chooser.plan({"tree": 8}, 10, exact=True), exact=True)
    assert [widths.choose(10, room, least) for room, least in ((9, 1), (9, 3), (0, 4), (0, 5))] == [1, 4, 4, 8]


def test_a_second_choice_that_is_right_is_accepted(scripted: Any, scripted_head: Any) -> None:
    """And evaluated again in the next batch, because its cache cell is not in sequence order."""
    passes = {4: 0, 16: 0}
    again = False
    for width, salt in product(passes, range(20)):
        decoding = Decoding(scripted, scripted_head, salt, 4, foreseeing=True)
        decoding.answer(PROMPT, Sampling(), width, True, 60)
        passes[width] += decoding.tally.passes
        starts = [start for start, _, outputs in decoding.trunk.batches if outputs]
        advances = [after - before for before, after in pairwise(starts)]
        again |= any(rows < len(tokens) for rows, tokens in zip(advances, decoding.passes, strict=False))
    assert passes[16] < 0.8 * passes[4]
    assert again
