"""Heads with scripted engines: what they read and when, and that their drafts change nothing but the speed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from collections.abc import Sequence as AnySequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nptool.decoding.headed import HeadedEngine
from nptool.decoding.loop.loop import decode
from nptool.decoding.loop.sampling import Sampling
from nptool.decoding.loop.sequence import Sequence
from nptool.decoding.loop.steps import Autoregressive, FixedWidth
from nptool.decoding.loop.tally import Tally
from nptool.decoding.proposers.chain import HeadsChain
from nptool.llama.head import SeparateHeads

VOCABULARY = 8
END = 7
PROMPT = [1, 2, 3]
Logits = Callable[[AnySequence[int]], AnySequence[float]]


def tangled(tokens: AnySequence[int], salt: int = 0, end: bool = True) -> list[float]:
    """Depends on the last tokens; full of ties; sometimes the end token."""
    digest = hashlib.blake2b(bytes([salt, *tokens[-3:]]), digest_size=VOCABULARY).digest()
    row = [float(byte % 4) for byte in digest]
    row[END] = 3.5 if end and digest[0] % 23 == 0 else -9.0
    return row


def foreseeing(model: Logits, head: int) -> Logits:
    """A head that is always right about greedy decoding: it runs the model `head` tokens ahead."""

    def logits(tokens: AnySequence[int]) -> AnySequence[float]:
        text = list(tokens)
        for _ in range(head - 1):
            text.append(int(np.argmax(model(text))))
        return model(text)

    return logits


def guessing(head: int) -> Logits:
    return lambda tokens: tangled(tokens, 100 + head, end=False)


class Decoding:
    """One trunk, its heads and their text."""

    def __init__(self, scripted: Any, scripted_head: Any, model: Logits, heads: AnySequence[Logits]) -> None:
        self.trunk = scripted(model)
        self.heads = [scripted_head(logits) for logits in heads]
        self.engine = HeadedEngine(self.trunk, SeparateHeads(self.heads), 1 + len(self.heads))
        self.sequence = Sequence(self.engine)
        self.tally = Tally(width=self.engine.count)

    def answer(
        self,
        prompt: AnySequence[int] = PROMPT,
        sampling: Sampling | None = None,
        *,
        limit: int = 40,
        width: int | None = None,
        kind: type[HeadsChain] = HeadsChain,
    ) -> list[list[int]]:
        """The tokens of every pass."""
        sampling = sampling or Sampling()
        self.sequence.open(prompt)
        self.sequence.prefill()
        chain = kind(self.engine, self.sequence, sampling)
        options = {"limit": limit, "end_tokens": {END}, "widths": FixedWidth(width)}
        steps = decode(self.engine, self.sequence, chain, sampling, self.tally, **options)
        return [tokens.tolist() for tokens in steps]

    def check(self) -> None:
        """Trunk and heads hold all tokens of the text but its last."""
        self.engine.draft_logits(int(self.sequence.tokens[-1]), len(self.heads))
        known = self.sequence.tokens[:-1].tolist()
        assert self.trunk.cache == known
        assert [head.cache for head in self.heads] == [known] * len(self.heads)


def autoregressive(scripted: Any, model: Logits, prompt: AnySequence[int], sampling: Sampling, limit: int) -> list[int]:
    engine = scripted(model)
    sequence = Sequence(engine)
    sequence.open(prompt)
    sequence.prefill()
    tally = Tally(width=1)
    steps = decode(
        engine, sequence, Autoregressive(), sampling, tally, limit=limit, end_tokens={END}, widths=FixedWidth(None)
    )
    return [token for tokens in steps for token in tokens.tolist()]


def flat(passes: list[list[int]]) -> list[int]:
    return [token for tokens in passes for token in tokens]


def endless(tokens: AnySequence[int]) -> list[float]:
    return tangled(tokens, end=False)


class TestPerfectHeads:
    @pytest.mark.parametrize("n", [2, 3, 5])
    @pytest.mark.parametrize("padded", [False, True])
    def test_every_pass_gives_n_tokens(self, scripted: Any, scripted_head: Any, n: int, padded: bool) -> None:
        heads = [foreseeing(endless, head) for head in range(2, n + 1)]
        decoding = Decoding(scripted, scripted_head, endless, heads)
        # Before the first pass the heads have read all but the prompt's last token: they are right about what follows
        # it only where the model would have written that token itself.
        prompt = [1, 2, int(np.argmax(endless([1, 2])))]
        passes = decoding.answer(prompt, limit=3 + 4 * n, width=n if padded else None)
        assert [len(tokens) for tokens in passes] == [n] * 4
        assert flat(passes) == autoregressive(scripted, endless, prompt, Sampling(), 3 + 4 * n)
        assert decoding.tally.acceptance == [1.0] * (n - 1)
        assert decoding.trunk.widths == [n] * 4, "drafts are verified in the pass that is made anyway"
        decoding.check()

    def test_a_last_prompt_token_of_the_user_s_own_costs_the_first_pass_only(
        self, scripted: Any, scripted_head: Any
    ) -> None:
        assert PROMPT[-1] != int(np.argmax(endless(PROMPT[:-1])))
        decoding = Decoding(scripted, scripted_head, endless, [foreseeing(endless, head) for head in range(2, 6)])
        passes = decoding.answer(limit=20)
        assert len(passes[0]) < 5
        assert [len(tokens) for tokens in passes[1:-1]] == [5] * (len(passes) - 2)
        assert flat(passes) == autoregressive(scripted, endless, PROMPT, Sampling(), 20)

    def test_a_wrong_head_ends_the_draft_at_its_place(self, scripted: Any, scripted_head: Any) -> None:
        heads = [foreseeing(endless, 2), lambda tokens: [0.0] * END + [1.0], foreseeing(endless, 4)]
        passes = Decoding(scripted, scripted_head, endless, heads).answer(limit=13)
        assert [len(tokens) for tokens in passes] == [2] * 5

    def test_a_prompt_of_one_token_has_nothing_to_draft_from(self, scripted: Any, scripted_head: Any) -> None:
        decoding = Decoding(scripted, scripted_head, endless, [foreseeing(endless, head) for head in (2, 3)])
        passes = decoding.answer([5], limit=8)
        assert [len(tokens) for tokens in passes] == [1, 3, 3]

    def test_a_head_runs_once_for_each_pass(self, scripted: Any, scripted_head: Any) -> None:
        decoding = Decoding(scripted, scripted_head, endless, [foreseeing(endless, 2)])
        passes = decoding.answer(limit=13)
        # The prompt, then all passes but the last, whose z nobody needed.
        assert decoding.heads[0].seconds == pytest.approx(0.0001 * len(passes))
        # The prompt was read by the first draft.
        assert decoding.tally.heads_seconds == pytest.approx(0.0001 * len(passes))
        assert decoding.tally.engine_seconds == pytest.approx(0.001 * len(passes))


samplings = st.sampled_from(
    [
        Sampling(),
        Sampling(0.8, seed=3),
        Sampling(1.5, top_k=0, top_p=1.0, min_p=0.0, seed=-1),
        Sampling(0.7, repeat_penalty=1.2, repeat_last=5, seed=9),
    ]
)


@given(st.integers(2, 5), st.integers(0, 255), samplings, st.booleans(), st.integers(4, 50), st.booleans())
@settings(deadline=None, max_examples=150)
def test_any_heads_leave_the_text_as_it_is(
    scripted: Any,
    scripted_head: Any,
    n: int,
    salt: int,
    sampling: Sampling,
    padded: bool,
    limit: int,
    foreseen: bool,
) -> None:
    def model(tokens: AnySequence[int]) -> list[float]:
        return tangled(tokens, salt)

    heads = [foreseeing(model, head) if foreseen else guessing(head) for head in range(2, n + 1)]
    decoding = Decoding(scripted, scripted_head, model, heads)
    passes = decoding.answer(PROMPT, sampling, limit=limit, width=8 if padded else None)
    assert flat(passes) == autoregressive(scripted, model, PROMPT, sampling, limit)
    decoding.check()


@given(st.integers(2, 5), st.integers(0, 255), samplings, st.booleans())
@settings(deadline=None, max_examples=80)
def test_drafts_are_those_of_heads_that_read_the_whole_text_each_time(
    scripted: Any, scripted_head: Any, n: int, salt: int, sampling: Sampling, padded: bool
) -> None:
    """A naive reference: nothing cached, one draft after the other, at the position it is drafted for."""

    def model(tokens: AnySequence[int]) -> list[float]:
        return tangled(tokens, salt, end=False)

    heads = [guessing(head) for head in range(2, n + 1)]
    found, expected = [], []

    class Recording(HeadsChain):
        def propose(self, room: int) -> Any:
            draft = super().propose(room)
            text = decoding.sequence.tokens.tolist()
            naive: list[int] = []
            for logits in heads[:room]:
                row = np.asarray(logits(text[:-1]), dtype=np.float32)
                before = np.array(text + naive, dtype=np.int32)
                # The likeliest, whatever the temperature.
                naive.append(replace(sampling, temperature=0.0).pick(row, len(text) + len(naive), before))
            found.append(draft.tolist())
            expected.append(naive)
            return draft

    decoding = Decoding(scripted, scripted_head, model, heads)
    decoding.answer(PROMPT, sampling, limit=30, width=8 if padded else None, kind=Recording)
    assert found == expected
    assert found[0]


class TestCachesStayInStep:
    @given(st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=40), min_size=1, max_size=6), st.integers(0, 255))
    @settings(deadline=None, max_examples=80)
    def test_from_turn_to_turn(self, scripted: Any, scripted_head: Any, ends: list[list[int]], salt: int) -> None:
        """Whatever is said next: a beginning of the text, or something after it, or all new."""

        def model(tokens: AnySequence[int]) -> list[float]:
            return tangled(tokens, salt)

        decoding = Decoding(scripted, scripted_head, model, [guessing(2), foreseeing(model, 3)])
        kept = 0
        for number, end in enumerate(ends):
            prompt = [*decoding.sequence.tokens.tolist()[: kept * number], *end]
            limit = min(190, len(prompt) + 9)
            passes = decoding.answer(prompt, limit=limit, width=3)
            assert flat(passes) == autoregressive(scripted, model, prompt, Sampling(), limit)
            decoding.check()
            kept = end[0]

    def test_what_is_kept_is_not_read_again(self, scripted: Any, scripted_head: Any) -> None:
        decoding = Decoding(scripted, scripted_head, endless, [guessing(2)])
        decoding.answer(limit=12)
        text = decoding.sequence.tokens.tolist()
        batches = len(decoding.trunk.batches)
        decoding.answer([*text, 4, 4, 4], limit=16)
        assert decoding.trunk.batches[batches] == (11, 3, False)
        decoding.check()

    def test_without_a_pass_there_is_no_draft(self, scripted: Any, scripted_head: Any) -> None:
        """All of the prompt is in the cache, and z of its last position is gone: the first pass has no draft."""
        decoding = Decoding(scripted, scripted_head, endless, [foreseeing(endless, 2)])
        decoding.answer(limit=12)
        text = decoding.sequence.tokens.tolist()
        passes = decoding.answer(text[:6], limit=11)
        assert [len(tokens) for tokens in passes] == [1, 2, 2]
        assert flat(passes) == text[6:11]

    @pytest.mark.parametrize("calls", range(8))
    @pytest.mark.parametrize("interrupted", [0, 1, 2])
    def test_an_interruption_between_two_heads(
        self, scripted: Any, scripted_head: Any, calls: int, interrupted: int
    ) -> None:
        decoding = Decoding(scripted, scripted_head, endless, [foreseeing(endless, 2), guessing(3), guessing(4)])
        decoding.heads[interrupted].fails_after = calls
        with pytest.raises(KeyboardInterrupt):
            decoding.answer(limit=40, width=4)
        text = decoding.sequence.tokens.tolist()
        assert len(text) >= len(PROMPT)
        passes = decoding.answer([*text, 1], limit=40, width=4)
        assert flat(passes) == autoregressive(scripted, endless, [*text, 1], Sampling(), 40)
        decoding.check()

    def test_ways_with_other_numbers_of_heads_take_turns(self, scripted: Any, scripted_head: Any) -> None:
        """They share the caches; each starts over after the other one was used."""
        decoding = Decoding(scripted, scripted_head, endless, [guessing(2), guessing(3)])
        other = Decoding(scripted, scripted_head, endless, [guessing(2)])
        other.trunk, other.heads = decoding.trunk, decoding.heads[:1]
        other.engine = HeadedEngine(other.trunk, SeparateHeads(other.heads), 2)
        other.sequence = Sequence(other.engine)
        for turn in (decoding, other, other, decoding, other):
            turn.sequence.truncate(0)
            assert flat(turn.answer(limit=20)) == autoregressive(scripted, endless, PROMPT, Sampling(), 20)
            turn.check()


def test_junk_is_never_read(scripted: Any, scripted_head: Any) -> None:
    """Every batch is padded; what the heads have read in the end, they have read once."""
    read: list[int] = []

    class Counting(scripted_head):
        def evaluate(self, z_TD: Any, start: int, *, width: int = 0) -> None:
            assert width == 2
            read.extend(range(start, start + len(z_TD)))
            super().evaluate(z_TD, start)

    decoding = Decoding(scripted, Counting, endless, [guessing(2)])
    decoding.answer(limit=30, width=8)
    decoding.check()
    assert read == list(range(29))
