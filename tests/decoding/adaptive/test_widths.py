"""Adaptive widths in the loop: the text is autoregressive decoding's of the class, and a window keeps its guesses."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import nptool
from nptool.decoding.adaptive.chooser import Chooser
from nptool.decoding.adaptive.cost import Calibration
from nptool.decoding.adaptive.gains import Gains
from nptool.decoding.adaptive.widths import AdaptiveWidth
from nptool.decoding.loop.loop import decode
from nptool.decoding.loop.sampling import Sampling
from nptool.decoding.loop.sequence import Sequence as Text
from nptool.decoding.loop.steps import Autoregressive, FixedWidth, Proposer, Step, Widths
from nptool.decoding.loop.tally import Tally
from nptool.decoding.loop.timing import time_plain
from nptool.decoding.proposers.jacobi import JacobiBlock, JacobiWindow
from nptool.decoding.proposers.methods import METHODS, Task

VOCABULARY = 8
PROMPT = [1, 2, 3]
CLASSES = ((1,), (2, 3, 4), (6, 8))
HEADLESS = sorted(name for name, method in METHODS.items() if method.parallel and not method.heads)


class Kernels:
    """Wraps a scripted engine: each class of widths has logits of its own, as if every position were a near tie."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.cache: list[int] = engine.cache
        self.widths: list[int] = []
        for name in ("capacity", "width", "batch_limit", "vocabulary_size", "rollback"):
            setattr(self, name, getattr(engine, name))

    @property
    def seconds(self) -> float:
        return float(self._engine.seconds)

    def evaluate(self, tokens: NDArray[np.int32], start: int, *, outputs: bool = True) -> NDArray[np.float32]:
        logits_RV: NDArray[np.float32] = self._engine.evaluate(tokens, start, outputs=outputs)
        if outputs:
            self.widths.append(len(tokens))
            kernel = next(index for index, members in enumerate(CLASSES) if len(tokens) in members)
            logits_RV = np.roll(logits_RV, kernel, axis=1)
        return logits_RV


def tangled(tokens: Sequence[int]) -> list[float]:
    """Depends on the last tokens in no simple way, and repeats itself before long."""
    return [float(byte) for byte in hashlib.blake2b(bytes(tokens[-2:]), digest_size=VOCABULARY).digest()]


def by_position(tokens: Sequence[int]) -> list[float]:
    return [float(token == len(tokens) * 5 % 6) for token in range(VOCABULARY)]


def run(
    engine: Any, make: Callable[[Text], Proposer], widths: Widths, limit: int = 60, prompt: Sequence[int] = PROMPT
) -> tuple[list[int], Tally]:
    text = Text(engine)
    text.open(prompt)
    text.prefill()
    proposer = make(text)
    tally = Tally(width=proposer.width)
    for _ in decode(engine, text, proposer, Sampling(), tally, limit=limit, end_tokens=(), widths=widths):
        pass
    widths.finish()
    assert engine.cache == text.tokens[:-1].tolist()
    assert sum(tally.widths.values()) == tally.passes
    return text.tokens[len(prompt) :].tolist(), tally


def chooser_of(exponent: float, flat: bool = True) -> Chooser:
    widths = tuple(width for members in CLASSES for width in members)
    times = tuple(1e-3 * (1 + 0.01 * width if flat else width) for width in widths)
    chooser = Chooser(Calibration((10,), widths, (times,), CLASSES))
    chooser.add("method", Gains(exponent))
    return chooser


def adaptive(chooser: Chooser, *, exact: bool, widest: int = 8) -> AdaptiveWidth:
    return AdaptiveWidth(chooser, chooser.plan({"method": widest}, len(PROMPT), exact=exact), exact=exact)


class Scripted:
    """Widths from a list, then the last one again."""

    def __init__(self, widths: Sequence[int], padded: bool = False) -> None:
        self.padded = padded
        self.members = ()
        self.wants_plain_time = False
        self._widths = list(widths)

    def time_plain(self, length: int, seconds: float) -> None: ...

    def choose(self, length: int, room: int) -> int:
        return self._widths.pop(0) if len(self._widths) > 1 else self._widths[0]

    def observe(self, step: Step) -> None: ...

    def finish(self) -> None: ...


@pytest.mark.parametrize("name", HEADLESS)
@pytest.mark.parametrize("prior", [0.0, 0.2, 0.9])
@pytest.mark.parametrize("flat", [True, False])
def test_exact_text_is_that_of_autoregressive_decoding_in_its_class(
    scripted: Any, name: str, prior: float, flat: bool
) -> None:
    shared = chooser_of(prior, flat=flat)
    for _ in range(6):
        widths = adaptive(shared, exact=True)
        engine = Kernels(scripted(tangled))
        found, tally = run(engine, lambda text: METHODS[name].propose(Task(8, text, Sampling())), widths)
        assert widths.members in CLASSES
        assert set(engine.widths) == set(tally.widths) <= set(widths.members)
        for width in widths.members:
            expected, _ = run(Kernels(scripted(tangled)), lambda text: Autoregressive(), FixedWidth(width))
            assert found == expected
    others = {tuple(run(Kernels(scripted(tangled)), lambda _: Autoregressive(), FixedWidth(w))[0]) for w in (1, 2, 6)}
    assert len(others) == 3, "the classes must differ, or this test shows nothing"


def test_where_wide_steps_do_not_pay_the_class_is_that_of_width_1() -> None:
    assert adaptive(chooser_of(0.1, flat=False), exact=True).members == (1,)
    assert adaptive(chooser_of(0.5), exact=True).members == (6, 8)
    assert adaptive(chooser_of(0.5), exact=False).members == ()


def test_one_row_is_timed_after_the_prompt_and_leaves_nothing(scripted: Any) -> None:
    """Three times eight batches of one row; each takes a millisecond in the scripted engine."""
    chooser = chooser_of(0.9)
    engine = scripted(by_position)
    text = Text(engine)
    text.open(PROMPT)
    text.prefill()
    before = list(engine.cache)
    for _ in range(2):
        time_plain(engine, text, adaptive(chooser, exact=True))
        assert engine.widths == [1] * 8
        assert engine.cache == before == text.tokens[:-1].tolist()
    assert chooser.costs.seconds(1, 2) == pytest.approx(1e-3)


def test_n_is_the_upper_bound(scripted: Any) -> None:
    for exact in (False, True):
        widths = adaptive(chooser_of(0.9), exact=exact, widest=4)
        engine = Kernels(scripted(by_position)) if exact else scripted(by_position)
        _, tally = run(engine, lambda text: JacobiWindow(4, text.tokens, 0), widths)
        assert max(tally.widths) == 4


@given(st.sampled_from(HEADLESS), st.lists(st.integers(1, 9), min_size=1, max_size=30), st.booleans())
@settings(deadline=None, max_examples=100)
def test_no_order_of_widths_changes_the_text(scripted: Any, name: str, order: list[int], padded: bool) -> None:
    expected, _ = run(scripted(tangled), lambda text: Autoregressive(), FixedWidth(None))
    make = METHODS[name].propose
    found, tally = run(scripted(tangled), lambda text: make(Task(9, text, Sampling())), Scripted(order, padded))
    assert found == expected
    assert tally.passes <= len(expected)


@pytest.mark.parametrize(
    ("kind", "order", "lengths"),
    [
        (JacobiWindow, [8, 1, 1, 8], [1, 1, 1, 6]),
        (JacobiWindow, [8, 3, 8], [1, 3, 5]),
        (JacobiWindow, [8, 1, 3, 8], [1, 1, 3, 4]),
        (JacobiBlock, [8, 1, 1, 8], [1, 1, 1, 5]),
        (JacobiBlock, [8, 3, 8], [1, 3, 4]),
        (JacobiBlock, [8, 1, 3, 8], [1, 1, 3, 3]),
    ],
)
def test_a_guess_outlasts_narrow_steps(scripted: Any, kind: Any, order: list[int], lengths: list[int]) -> None:
    """The first pass of eight rows tells eight tokens; a block is full with them, a window takes one more."""
    text = Text(engine := scripted(by_position))
    text.open([6, 6, 6])
    text.prefill()
    proposer = kind(8, np.array([6], dtype=np.int32), 0)
    tally = Tally(width=8)
    steps = decode(engine, text, proposer, Sampling(), tally, limit=60, end_tokens=(), widths=Scripted(order))
    assert [len(next(steps)) for _ in order] == lengths


class TestModel:
    """The same in llama.cpp, on its own classes of widths."""

    @pytest.mark.parametrize("flash_attention", [True, False])
    @pytest.mark.parametrize("kind", ["f32", "f16", "q8_0"])
    @pytest.mark.parametrize("options", [{}, {"sampling": Sampling(0.8, seed=7)}])
    def test_exact_text_is_autoregressive_decodings(
        self, tiny_gguf: Callable[..., Path], kind: str, options: dict[str, Any], flash_attention: bool
    ) -> None:
        path = tiny_gguf(kind, metadata={"nptool.method": "cllm"})
        with nptool.load(path, threads=1, flash_attention=flash_attention) as model:
            for prompt in ("once", "upon a time"):
                found = model.generate(prompt, method="jacobi", max_tokens=80, **options)
                assert set(found.tally.widths) <= set(found.widths.members)
                for width in {found.widths.members[0], max(found.tally.widths)}:
                    expected = model.generate(prompt, n=width, exact=True, max_tokens=80, **options)
                    assert found.tokens == expected.tokens

    def test_the_context_is_filled_to_its_last_token(self, tiny_gguf: Callable[..., Path]) -> None:
        with nptool.load(tiny_gguf(), threads=1, context_length=40) as model:
            for exact in (True, False):
                answer = model.generate("context", method="jacobi", exact=exact, max_tokens=500)
                assert answer.finish == "context"
                assert len(answer.prompt) + len(answer.tokens) == 40

    def test_a_number_is_the_upper_bound(self, tiny_gguf: Callable[..., Path]) -> None:
        path = tiny_gguf("q8_0", metadata={"nptool.method": "cllm"})
        with nptool.load(path, threads=1) as model:
            answer = model.generate("a", method="jacobi", n=6, exact=False, max_tokens=60)
            assert max(answer.tally.widths) <= 6
            assert answer.widths.members == ()
