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
from nptool.decoding.loop import decode
from nptool.decoding.methods import AUTOREGRESSIVE, find_method
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


def variants_of(methods: Collection[str], lengths: Collection[int]) -> tuple[Variant, ...]:
    """What is to be measured, the baseline first: parallel methods at every length, autoregressive decoding at 1."""
    found = [Variant(AUTOREGRESSIVE, 1)]
    found += [Variant(name, n) for name in methods if find_method(name).parallel for n in lengths]
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
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        """Args: `max_tokens` is the longest answer; `clock` gives seconds."""
        self.engine = engine
        self._sequence = Sequence(engine)
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
        proposer = find_method(variant.method).propose(variant.n, prompt, self._sampling.seed)
        tally = Tally(width=proposer.width, prompt_tokens=len(prompt))
        began = self._clock()
        tally.prefilled_tokens = self._open(prompt)
        tally.prefill_seconds = self._clock() - began
        limit = min(self.engine.capacity, len(prompt) + (max_tokens or self._max_tokens))
        steps = decode(
            self.engine,
            self._sequence,
            proposer,
            self._sampling,
            tally,
            limit=limit,
            end_tokens=self._ends,
            width=variant.n,
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
        self._open(prompt)
        for token in tokens:
            self._step()
            self._sequence.extend(np.array([token], dtype=np.int32))
        second, first = np.partition(self._step(), -2)[-2:]
        return float(first - second)

    def _open(self, prompt: NDArray[np.int32]) -> int:
        self._sequence.truncate(0)
        self._sequence.open(prompt)
        return self._sequence.prefill()

    def _step(self) -> NDArray[np.float32]:
        """Logits (vocabulary) behind the text."""
        logits: NDArray[np.float32] = self.engine.evaluate(self._sequence.lay(_NO_DRAFT, 1), self._sequence.length - 1)[
            0
        ]
        return logits
