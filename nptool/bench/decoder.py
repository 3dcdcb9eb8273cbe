"""Answers of one engine, each from an empty cache and with its cost; and the margins of its choices.

Built on the decoding loop and its `Engine` protocol, so a scripted fake can be measured like a model. Knows no file,
no text and no statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from nptool.decoding.engine import Engine
from nptool.decoding.headed import Opened
from nptool.decoding.loop import decode
from nptool.decoding.methods import AUTOREGRESSIVE, Task, find_method
from nptool.decoding.sampling import Sampling
from nptool.decoding.sequence import Sequence
from nptool.decoding.tally import Tally

_NO_DRAFT = np.empty(0, dtype=np.int32)


@dataclass(frozen=True)
class Variant:
    """A method at one width. Every batch has `n` rows: the exact mode, and for n = 1 the fast autoregressive one."""

    method: str
    n: int
    """Block length in tokens; for autoregressive decoding, rows of a batch, all but one of them padding."""


def variants_of(
    methods: Collection[str], lengths: Collection[int], heads: Collection[int] | None = None
) -> tuple[Variant, ...]:
    """What is to be measured, the baseline first: parallel methods at every length, autoregressive decoding at 1.

    Args:
        heads: how many heads are used, in turn, by methods whose n is that; None is `lengths`.
    """
    found = [Variant(AUTOREGRESSIVE, 1)]
    for method in (find_method(name) for name in methods):
        if method.parallel:
            counts = heads if method.counts_heads and heads is not None else lengths
            found += [Variant(method.name, n) for n in counts]
    return tuple(dict.fromkeys(found))


@dataclass(frozen=True)
class Answer:
    """Tokens, the end token included, and what they cost."""

    tokens: tuple[int, ...]
    tally: Tally


class Decoder:
    """Answers prompts given as token ids."""

    def __init__(
        self,
        engine: Engine,
        end_tokens: Collection[int],
        sampling: Sampling,
        *,
        max_tokens: int,
        open_heads: Callable[[int, int | None], Opened] | None = None,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        """
        Args:
            max_tokens: the longest answer.
            open_heads: the engine for so many rows with so many heads in all, or with every one; needed by methods
                that use heads.
            clock: gives seconds.
        """
        self.engine = engine
        self._plain = Opened(engine, Sequence(engine), None)
        self._open_heads = open_heads
        self._sampling = sampling
        self._max_tokens = max_tokens
        self._clock = clock
        self._ends = np.zeros(engine.vocabulary_size, dtype=np.bool_)
        self._ends[list(end_tokens)] = True

    def answer(self, prompt: NDArray[np.int32], variant: Variant, max_tokens: int | None = None) -> Answer:
        """Answer a prompt by one method, prefill included.

        Args:
            max_tokens: a shorter limit than the decoder's.

        Raises:
            ContextError: the prompt is empty or does not fit.
        """
        opened = self._opened(variant)
        began = self._clock()
        prefilled = _begin(opened.sequence, prompt)
        prefill_seconds = self._clock() - began
        task = Task(variant.n, opened.sequence, self._sampling, opened.heads)
        proposer = find_method(variant.method).propose(task)
        tally = Tally(proposer.width, len(prompt), prefilled_tokens=prefilled, prefill_seconds=prefill_seconds)
        limit = min(self.engine.capacity, len(prompt) + (max_tokens or self._max_tokens))
        steps = decode(
            opened.engine,
            opened.sequence,
            proposer,
            self._sampling,
            tally,
            limit=limit,
            end_tokens=self._ends,
            width=variant.n,
            verify=find_method(variant.method).verify,
        )
        tokens: list[int] = []
        for added in steps:
            if not tokens:
                tally.first_step_seconds = tally.prefill_seconds + tally.decode_seconds
            tokens += added.tolist()
        return Answer(tuple(tokens), tally)

    def margin(self, prompt: NDArray[np.int32], tokens: Collection[int]) -> float:
        """How far the likeliest next token is ahead of the second, as logits, behind `prompt` and `tokens`.

        Evaluated one row at a time, as autoregressive decoding of width 1 does. Sampling is not looked at.
        """
        sequence = self._plain.sequence
        _begin(sequence, prompt)
        for token in tokens:
            self._step()
            sequence.extend(np.array([token], dtype=np.int32))
        second, first = np.partition(self._step(), -2)[-2:]
        return float(first - second)

    def _opened(self, variant: Variant) -> Opened:
        method = find_method(variant.method)
        if not method.heads:
            return self._plain
        assert self._open_heads is not None, "a method with heads was given none"
        return self._open_heads(variant.n, variant.n if method.counts_heads else None)

    def _step(self) -> NDArray[np.float32]:
        """Logits (vocabulary) behind the text."""
        sequence = self._plain.sequence
        logits_V: NDArray[np.float32] = self.engine.evaluate(sequence.lay(_NO_DRAFT, 1), sequence.length - 1)[0]
        return logits_V


def _begin(sequence: Sequence, prompt: NDArray[np.int32]) -> int:
    """Prefill a prompt into an empty cache; how many tokens."""
    sequence.truncate(0)
    sequence.open(prompt)
    return sequence.prefill()
