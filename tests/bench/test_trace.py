"""What `trace` writes down, against a naive Jacobi iteration; and the command as a user meets it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nptool
from nptool.bench.trace import NO_GUESS, Recorder, trace_answer
from nptool.convergence import Mark
from nptool.decoding.answer import DecodeConfig
from nptool.decoding.loop.loop import decode
from nptool.decoding.loop.sampling import Sampling
from nptool.decoding.loop.sequence import Sequence as Text
from nptool.decoding.loop.steps import FixedWidth
from nptool.decoding.loop.tally import Tally
from nptool.decoding.proposers.jacobi import JacobiBlock

PROMPT = [1, 2, 3]
FILL = 6
VOCABULARY = 8


def mixed(tokens: Sequence[int]) -> list[float]:
    """The next token depends on the last two, or, at every third place, on the place alone."""
    wanted = len(tokens) % 5 if len(tokens) % 3 == 0 else (2 * tokens[-1] + tokens[-2]) % 7
    return [float(token == wanted) for token in range(VOCABULARY)]


def naive_blocks(n: int, length: int) -> list[list[list[int]]]:
    """Plain lists: the states of every block of a text of `length` tokens, each iterated until it is known to be right:

    until the state before was right but for its last token.
    """

    def pick(tokens: list[int]) -> int:
        return mixed(tokens).index(1.0)

    text, blocks = list(PROMPT), []
    while len(text) < len(PROMPT) + length:
        size = min(n, len(PROMPT) + length - len(text))
        right: list[int] = []
        for _ in range(size):
            right.append(pick(text + right))
        states = [[FILL] * (size - 1) + [NO_GUESS]]
        while len(states) == 1 or states[-2][:-1] != right[:-1]:
            states.append([pick(text + states[-1][:place]) for place in range(size)])
        blocks.append(states)
        text += right
    return blocks


@pytest.mark.parametrize(("n", "length"), [(1, 4), (4, 8), (5, 23), (16, 40)])
def test_states_are_those_of_a_naive_implementation(scripted: Any, n: int, length: int) -> None:
    engine = scripted(mixed)
    text = Text(engine)
    text.open(PROMPT)
    text.prefill()
    recorder = Recorder(JacobiBlock(n, np.array([FILL], dtype=np.int32), seed=0))
    limit = len(PROMPT) + length
    for _ in decode(engine, text, recorder, Sampling(), Tally(n), limit=limit, end_tokens=(), widths=FixedWidth(n)):
        pass
    assert [block.states_SN.tolist() for block in recorder.blocks(length)] == naive_blocks(n, length)


def test_nothing_after_the_answer_is_shown(scripted: Any) -> None:
    recorder = Recorder(JacobiBlock(4, np.array([FILL], dtype=np.int32), seed=0))
    recorder.propose(99)
    recorder.observe(np.array([1, 2, 3, 4]), accepted=0)
    recorder.propose(99)
    recorder.observe(np.array([2, 7, 5]), accepted=1)
    (block,) = recorder.blocks(3)
    assert block.states_SN.tolist() == [[FILL] * 3, [1, 2, 3], [1, 2, 7]]
    assert block.marks_SN.tolist() == [
        [Mark.WRONG] * 3,
        [Mark.RIGHT, Mark.FAST_FORWARDED, Mark.WRONG],
        [Mark.RIGHT] * 3,
    ]


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_the_answer_is_that_of_every_other_method(tiny_gguf: Callable[..., Path], temperature: float) -> None:
    sampling = Sampling(temperature, seed=5)
    config = DecodeConfig("jacobi-block", n=6, max_tokens=32, sampling=sampling)
    with nptool.load(tiny_gguf("f16"), threads=1) as model:
        ids = model.encode("hello")
        plain = model.answer(ids, DecodeConfig("ar", n=6, exact=True, max_tokens=32, sampling=sampling))
        for _ in plain:
            pass
        trace = trace_answer(model, ids, config)
        again = model.answer(ids, config)
        for _ in again:
            pass
    assert [token for block in trace.blocks for token in block.states_SN[-1].tolist()] == plain.tokens
    assert [block.states_SN.shape[1] for block in trace.blocks] == [6, 6, 6, 6, 6, 2]
    assert trace.text == plain.text
    assert trace.iterations == again.tally.passes
    assert (trace.tokens, trace.prompt_tokens) == (32, len(ids))
    assert trace.summary()["tokens_per_forward"] == again.tally.tokens_per_forward
