"""The loop with scripted engines and scripted proposers: exact tokens, exact numbers of passes, losslessness."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence as AnySequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from nptool.decoding.loop.loop import decode
from nptool.decoding.loop.sampling import Sampling
from nptool.decoding.loop.sequence import Sequence
from nptool.decoding.loop.steps import Autoregressive, FixedWidth, Proposer, Step
from nptool.decoding.loop.tally import Tally
from nptool.decoding.proposers.jacobi import JacobiBlock, JacobiWindow
from nptool.decoding.proposers.methods import METHODS, Task
from nptool.errors import ContextError

VOCABULARY = 8
END = 7
PROMPT = [1, 2, 3]


def counting(tokens: AnySequence[int]) -> list[float]:
    """0, 1, 2, ... 6, 0, 1, ...: the next token depends on the last one only; no end."""
    return [float(token == (tokens[-1] + 1) % (VOCABULARY - 1)) for token in range(VOCABULARY)]


def by_position(tokens: AnySequence[int]) -> list[float]:
    """The next token, never a 6, depends on its position only, so one pass gives the whole window."""
    return [float(token == len(tokens) * 5 % (VOCABULARY - 2)) for token in range(VOCABULARY)]


def tangled(tokens: AnySequence[int], salt: int = 0, end: bool = True) -> list[float]:
    """Depends on all tokens before; many ties; sometimes the end token."""
    digest = hashlib.blake2b(bytes([salt, *tokens]), digest_size=VOCABULARY).digest()
    row = [float(byte % 4) for byte in digest]
    row[END] = 3.5 if end and digest[0] % 23 == 0 else -9.0
    return row


class Drafts:
    """Proposes the given drafts in order, then nothing."""

    seconds = 0.0

    def __init__(self, drafts: AnySequence[AnySequence[int]]) -> None:
        self.width = 1 + max((len(draft) for draft in drafts), default=0)
        self._drafts = list(drafts)
        self.seen: list[tuple[list[int], int]] = []

    def propose(self, room: int) -> NDArray[np.integer]:
        draft = self._drafts.pop(0) if self._drafts else []
        return np.array(draft[:room], dtype=np.int32)

    def observe(self, picks: NDArray[np.integer], accepted: int) -> None:
        self.seen.append((picks.tolist(), accepted))


class Oracle:
    """Drafts the correct continuation with the token at place `right[step]` replaced by a wrong one."""

    seconds = 0.0

    def __init__(self, text: AnySequence[int], n: int, right: AnySequence[int]) -> None:
        self.width = n
        self._text = list(text)
        self._right = list(right)
        self._place = 0

    def propose(self, room: int) -> NDArray[np.integer]:
        length = min(self.width - 1, room)
        right = self._right.pop(0) if self._right else 0
        draft = self._text[self._place : self._place + length]
        draft += [0] * (length - len(draft))
        if right < length:
            draft[right] = (draft[right] + 1) % VOCABULARY
        return np.array(draft, dtype=np.int32)

    def observe(self, picks: NDArray[np.integer], accepted: int) -> None:
        self._place += accepted + 1


def run(
    engine: Any,
    proposer: Proposer,
    *,
    sampling: Sampling | None = None,
    limit: int = 40,
    width: int | None = None,
    prompt: AnySequence[int] = PROMPT,
) -> tuple[list[list[int]], Tally]:
    """The tokens of every pass, and the figures."""
    sequence = Sequence(engine)
    sequence.open(prompt)
    sequence.prefill()
    tally = Tally(width=proposer.width)
    options = {"limit": limit, "end_tokens": {END}, "widths": FixedWidth(width)}
    steps = decode(engine, sequence, proposer, sampling or Sampling(), tally, **options)
    passes = [tokens.tolist() for tokens in steps]
    assert engine.cache == sequence.tokens[:-1].tolist(), "the cache must hold all but the last token"
    assert tally.passes == len(passes)
    assert tally.tokens == sum(map(len, passes))
    return passes, tally


HEADLESS = sorted(name for name, method in METHODS.items() if not method.heads)


def proposer_of(scripted: Any, name: str, n: int, seed: int = 0) -> Proposer:
    """A proposer for `PROMPT`."""
    sequence = Sequence(scripted(counting))
    sequence.open(PROMPT)
    return METHODS[name].propose(Task(n, sequence, Sampling(seed=seed)))


def flat(passes: list[list[int]]) -> list[int]:
    return [token for tokens in passes for token in tokens]


def test_autoregressive_is_one_token_for_each_pass(scripted: Any) -> None:
    engine = scripted(counting)
    passes, tally = run(engine, Autoregressive(), limit=10)
    assert passes == [[4], [5], [6], [0], [1], [2], [3]]
    assert tally.tokens_per_forward == 1.0
    assert engine.batches[0] == (0, 2, False)
    assert engine.batches[1:] == [(2 + i, 1, True) for i in range(7)]


class Observing(FixedWidth):
    """Records length, rows, drafted and accepted tokens of each step."""

    def __init__(self, width: int | None) -> None:
        super().__init__(width)
        self.steps: list[tuple[int, int, int, int]] = []

    def observe(self, step: Step) -> None:
        self.steps.append((step.length, step.rows, step.drafted, step.accepted))


def ending(tokens: AnySequence[int]) -> list[float]:
    """4, 5, then only end tokens, so a draft of end tokens is right at any length."""
    following = {3: 4, 4: 5}.get(tokens[-1], END)
    return [float(token == following) for token in range(VOCABULARY)]


@pytest.mark.parametrize(
    ("draft", "judged", "right", "brought"),
    [
        ([4, 5, END, END, END], 3, 3, 3),
        ([4, 5, END], 3, 3, 3),
        ([4, 5, 0, END, END], 5, 2, 3),
        ([4, 0, END], 3, 1, 2),
    ],
)
def test_drafts_after_the_end_token_do_not_count(
    scripted: Any, draft: list[int], judged: int, right: int, brought: int
) -> None:
    """Neither as accepted nor as rejected; widths observe only the tokens that joined the sequence."""
    engine, observing = scripted(ending), Observing(None)
    sequence = Sequence(engine)
    sequence.open(PROMPT)
    sequence.prefill()
    tally = Tally(width=len(draft) + 1)
    steps = decode(engine, sequence, Drafts([draft]), Sampling(), tally, limit=40, end_tokens={END}, widths=observing)
    first = next(steps)
    assert first.tolist() == [4, 5, END][:brought]
    assert tally.drafted.tolist() == [1] * judged + [0] * (len(tally.drafted) - judged)
    assert tally.accepted.tolist() == [1] * right + [0] * (len(tally.accepted) - right)
    steps.close()
    assert observing.steps == [(len(PROMPT), len(draft) + 1, len(draft), brought - 1)]


def test_drafts_that_are_never_right(scripted: Any) -> None:
    engine = scripted(counting)
    passes, tally = run(engine, Oracle([4, 5, 6, 0, 1], 4, [0] * 9), limit=8)
    assert passes == [[4], [5], [6], [0], [1]]
    assert engine.widths == [4, 4, 3, 2, 1]
    assert tally.accepted.sum() == 0


def test_drafts_that_are_always_right(scripted: Any) -> None:
    text = [4, 5, 6, 0, 1, 2, 3, 4, 5, 6, 0, 1]
    passes, tally = run(scripted(counting), Oracle(text, 4, [3] * 9), limit=15)
    assert passes == [[4, 5, 6, 0], [1, 2, 3, 4], [5, 6, 0, 1]]
    assert tally.tokens_per_forward == 4.0
    assert tally.acceptance == [1.0, 1.0, 1.0]


def test_drafts_that_are_sometimes_right(scripted: Any) -> None:
    text = [4, 5, 6, 0, 1, 2, 3, 4, 5, 6, 0, 1]
    passes, tally = run(scripted(counting), Oracle(text, 4, [0, 2, 1, 3]), limit=13)
    assert passes == [[4], [5, 6, 0], [1, 2], [3, 4, 5, 6]]
    assert tally.drafted.tolist() == [4, 4, 4, 0]
    assert tally.accepted.tolist() == [3, 2, 1, 0]
    assert tally.acceptance == [0.75, 0.5, 0.25]


def test_nothing_after_an_end_token_is_kept(scripted: Any) -> None:
    def ending(tokens: AnySequence[int]) -> list[float]:
        return counting(tokens) if tokens[-1] != 5 else [0.0] * END + [1.0]

    for proposer in (Autoregressive(), Drafts([[4, 5, END, 0, 1]])):
        passes, _ = run(scripted(ending), proposer)
        assert flat(passes) == [4, 5, END]


def test_a_proposer_learns_every_pick_of_its_draft(scripted: Any) -> None:
    proposer = Drafts([[4, 0, 3], [6]])
    run(scripted(counting), proposer, limit=7)
    assert proposer.seen == [([4, 5, 1, 4], 1), ([6, 0], 1)]


class TestJacobi:
    def test_a_window_whose_picks_are_right_after_one_pass(self, scripted: Any) -> None:
        """The first pass accepts nothing but its picks are right, the next accepts the whole window."""
        window = JacobiWindow(5, np.array([6], dtype=np.int32), seed=0)
        passes, _ = run(scripted(by_position), window, prompt=[6, 6, 6], limit=21)
        text = [position * 5 % 6 for position in range(3, 21)]
        assert [len(tokens) for tokens in passes] == [1, 5, 1, 5, 1, 5]
        assert flat(passes) == text

    def test_a_step_advances_by_one_token_more_than_it_accepts(self, scripted: Any) -> None:
        engine = scripted(counting)
        passes, _ = run(engine, JacobiWindow(4, np.array([3], dtype=np.int32), seed=0), limit=12)
        assert flat(passes) == [4, 5, 6, 0, 1, 2, 3, 4, 5]
        assert naive_jacobi(counting, PROMPT, 4, 3, 9) == [len(tokens) for tokens in passes]

    def test_blocks_do_not_slide(self, scripted: Any) -> None:
        """Blocks of 4: one pass finds the block, the next accepts the rest of it and nothing of the next block."""
        block = JacobiBlock(4, np.array([6], dtype=np.int32), seed=0)
        engine = scripted(by_position)
        passes, _ = run(engine, block, prompt=[6, 6, 6], limit=15)
        assert [len(tokens) for tokens in passes] == [1, 3, 1, 3, 1, 3]
        assert engine.widths == [4, 3, 4, 3, 4, 3]
        assert flat(passes) == [position * 5 % 6 for position in range(3, 15)]

    def test_the_tail_is_filled_from_the_prompt(self) -> None:
        prompt = np.array([3, 5], dtype=np.int32)
        window = JacobiWindow(6, prompt, seed=1)
        assert set(window.propose(99).tolist()) <= {3, 5}
        window.observe(np.array([10, 11, 12, 13, 14, 15]), accepted=3)
        guess = window.propose(99).tolist()
        assert guess[:2] == [14, 15]
        assert len(guess) == 5
        assert set(guess[2:]) <= {3, 5}
        # llama.cpp accepts the seed -1 too.
        for seed in (1, -1):
            again = JacobiWindow(6, prompt, seed)
            assert again.propose(99).tolist() == JacobiWindow(6, prompt, seed).propose(99).tolist()

    def test_n_of_one_is_autoregressive(self, scripted: Any) -> None:
        prompt = np.array(PROMPT, dtype=np.int32)
        for proposer in (JacobiWindow(1, prompt, 0), JacobiBlock(1, prompt, 0)):
            passes, _ = run(scripted(counting), proposer, limit=6)
            assert passes == [[4], [5], [6]]


def naive_jacobi(model: Any, prompt: list[int], n: int, fill: int, length: int) -> list[int]:
    """Plain lists: tokens accepted by each pass of a sliding window whose fresh tokens are all `fill`."""

    def pick(tokens: list[int]) -> int:
        row = model(tokens)
        return row.index(max(row))

    text, guess, steps = list(prompt), [fill] * (n - 1), []
    while len(text) < len(prompt) + length:
        draft = guess[: len(prompt) + length - len(text) - 1]
        picks = [pick(text + draft[:row]) for row in range(len(draft) + 1)]
        accepted = 0
        while accepted < len(draft) and draft[accepted] == picks[accepted]:
            accepted += 1
        text += picks[: accepted + 1]
        rest = picks[accepted + 1 :]
        guess = rest + [fill] * (n - 1 - len(rest))
        steps.append(accepted + 1)
    return steps


@given(st.integers(2, 9), st.integers(0, 255), st.integers(1, 40))
@settings(deadline=None, max_examples=60)
def test_passes_are_those_of_a_naive_implementation(scripted: Any, n: int, salt: int, length: int) -> None:
    def model(tokens: AnySequence[int]) -> list[float]:
        return tangled(tokens[-2:], salt, end=False)

    window = JacobiWindow(n, np.array([3], dtype=np.int32), seed=0)
    passes, _ = run(scripted(model), window, limit=len(PROMPT) + length)
    assert [len(tokens) for tokens in passes] == naive_jacobi(model, PROMPT, n, 3, length)


samplings = st.sampled_from(
    [
        Sampling(),
        Sampling(0.8, seed=3),
        Sampling(1.5, top_k=0, top_p=1.0, min_p=0.0, seed=-1),
        Sampling(repeat_penalty=1.4, repeat_last=5),
        Sampling(0.7, repeat_penalty=1.2, seed=9),
    ]
)


class TestLosslessness:
    """For any drafts, temperature and width, the text is that of autoregressive decoding."""

    @given(
        st.lists(st.lists(st.integers(0, VOCABULARY - 1), max_size=7), max_size=30),
        st.integers(0, 255),
        samplings,
        st.booleans(),
        st.integers(4, 50),
    )
    @settings(deadline=None, max_examples=150)
    def test_any_draft(
        self, scripted: Any, drafts: list[list[int]], salt: int, sampling: Sampling, padded: bool, limit: int
    ) -> None:
        def model(tokens: AnySequence[int]) -> list[float]:
            return tangled(tokens, salt)

        expected, _ = run(scripted(model), Autoregressive(), sampling=sampling, limit=limit)
        engine = scripted(model)
        found, tally = run(engine, Drafts(drafts), sampling=sampling, limit=limit, width=8 if padded else None)
        assert flat(found) == flat(expected)
        assert tally.passes <= len(flat(expected))
        if padded:
            assert set(engine.widths) <= {8}

    @given(st.sampled_from(HEADLESS), st.integers(1, 12), st.integers(0, 255), samplings, st.integers(0, 3))
    @settings(deadline=None, max_examples=150)
    def test_any_method(self, scripted: Any, name: str, n: int, salt: int, sampling: Sampling, seed: int) -> None:
        def model(tokens: AnySequence[int]) -> list[float]:
            return tangled(tokens[-3:], salt)

        expected, _ = run(scripted(model), Autoregressive(), sampling=sampling)
        for width in (None, n):
            proposer = proposer_of(scripted, name, n, seed)
            found, _ = run(scripted(model), proposer, sampling=sampling, width=width)
            assert flat(found) == flat(expected)

    @given(st.sampled_from(HEADLESS), st.integers(1, 12), st.integers(4, 30), st.booleans())
    @settings(deadline=None, max_examples=60)
    def test_at_the_edge_of_the_context(self, scripted: Any, name: str, n: int, capacity: int, padded: bool) -> None:
        """Every method fills the context to its last token; padding rows do not need positions in it."""

        def model(tokens: AnySequence[int]) -> list[float]:
            return tangled(tokens, end=False)

        expected, _ = run(scripted(model, capacity=capacity, width=n), Autoregressive(), limit=capacity)
        proposer = proposer_of(scripted, name, n)
        engine = scripted(model, capacity=capacity, width=n)
        found, _ = run(engine, proposer, limit=capacity, width=n if padded else None)
        assert flat(found) == flat(expected)
        assert len(flat(found)) == capacity - len(PROMPT)


class TestSequence:
    def test_prefill_is_split_at_the_batch_limit_whatever_the_width(self, scripted: Any) -> None:
        for width in (1, 8):
            engine = scripted(counting, batch_limit=16, width=width)
            sequence = Sequence(engine)
            assert sequence.open([1] * 40) == 0
            assert sequence.prefill() == 39
            assert engine.batches == [(0, 16, False), (16, 16, False), (32, 7, False)]

    def test_the_shared_beginning_stays_in_the_cache(self, scripted: Any) -> None:
        engine = scripted(counting)
        sequence = Sequence(engine)
        sequence.open([1, 2, 3, 4, 5])
        sequence.prefill()
        assert sequence.open([1, 2, 3, 0, 0, 0]) == 3
        assert engine.cache == [1, 2, 3]
        assert sequence.prefill() == 2
        # Everything is cached, but the last token is left for the first step.
        assert sequence.open([1, 2, 3]) == 2
        assert sequence.prefill() == 0

    def test_an_interrupted_step_leaves_nothing_wrong(self, scripted: Any) -> None:
        engine = scripted(counting)
        sequence = Sequence(engine)
        sequence.open(PROMPT)
        sequence.prefill()
        engine.evaluate(np.array([3, 0, 0, 0], dtype=np.int32), 2)
        assert sequence.open([*PROMPT, 4, 5]) == 2
        assert engine.cache == [1, 2]

    def test_dropped_tokens_are_not_reused(self, scripted: Any) -> None:
        engine = scripted(counting)
        sequence = Sequence(engine)
        sequence.open(PROMPT)
        sequence.prefill()
        sequence.truncate(2)
        assert sequence.open(PROMPT) == 1

    def test_prompts_that_do_not_fit(self, scripted: Any) -> None:
        sequence = Sequence(scripted(counting, capacity=6))
        assert sequence.open([1] * 5) == 0
        with pytest.raises(ContextError, match="the prompt has 6 tokens and the context holds 6"):
            sequence.open([1] * 6)
        with pytest.raises(ContextError, match="the prompt is empty"):
            sequence.open([])
