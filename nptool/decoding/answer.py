"""One answer while it is made: how, its tokens and text, why it ended. Knows neither files nor templates."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from time import perf_counter
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nptool.decoding.headed import Opened
from nptool.decoding.loop.loop import decode
from nptool.decoding.loop.sampling import Sampling
from nptool.decoding.loop.steps import Proposer, Widths
from nptool.decoding.loop.tally import Tally
from nptool.decoding.loop.timing import time_plain
from nptool.decoding.proposers.methods import AUTOREGRESSIVE, Method, Task, find_method, way_to_decode
from nptool.decoding.text_stream import TextStream
from nptool.errors import ContextError, UsageError
from nptool.llama.context import DEFAULT_BATCH

DEFAULT_MAX_TOKENS = 256


@dataclass(frozen=True)
class DecodeConfig:
    """How one answer is made."""

    method: str = AUTOREGRESSIVE
    """A name of `METHODS`."""
    n: int | None = None
    """Block length in tokens; None is what the file says, or 16. With heads, how many are used; None is all."""
    exact: bool | None = None
    """Every batch padded to n rows, so that the text is bit for bit that of any other method at this n; None is yes
    for parallel methods and no for autoregressive decoding, whose fast form is one row wide. With `adapt`, padded to
    widths of one class, see `nptool.decoding.adaptive.widths`."""
    max_tokens: int = DEFAULT_MAX_TOKENS
    """The longest answer in tokens."""
    stop: tuple[str, ...] = ()
    """Strings that end the answer and are not part of it."""
    sampling: Sampling = field(default_factory=Sampling)
    adapt: bool = False
    """Every step of a parallel method chooses its width, down to autoregressive decoding where that is faster; n is
    then the upper bound, and None the widest step that was calibrated."""
    others: tuple[str, ...] = ()
    """Parallel methods that may be used instead of `method` for a text for which they promise more; with `adapt`."""

    def __post_init__(self) -> None:
        _ = self.methods
        if self.others and not self.adapt:
            names = ", ".join((self.method, *self.others))
            raise UsageError(f"one of {names} is chosen for each text, which steps of n rows do not leave open")
        if self.n is not None and self.n < 1:
            raise UsageError(f"-n must be at least 1, got {self.n}")
        if self.n is not None and self.n > DEFAULT_BATCH:
            raise ContextError(f"-n {self.n} is above the batch limit of {DEFAULT_BATCH} rows; choose a smaller n")
        if self.max_tokens < 1:
            raise UsageError(f"--max-tokens must be at least 1, got {self.max_tokens}")

    @cached_property
    def methods(self) -> tuple[Method, ...]:
        """`method` and the others.

        Raises:
            UsageError: there is no method of such a name.
        """
        return tuple(find_method(name) for name in (self.method, *self.others))


class Vocabulary(Protocol):
    """What an answer needs of a tokenizer. Implemented by `nptool.llama.Model`."""

    @property
    def end_tokens(self) -> Collection[int]:
        """Tokens that end an answer."""

    def piece(self, token: int) -> bytes:
        """The bytes of a token's text."""


@dataclass(frozen=True)
class Token:
    """One generated token."""

    id: int
    text: str
    """What became final text by it: whole characters, perhaps none, perhaps some held back from tokens before it."""


class Answer:
    """The tokens of one answer as they are made; iterate once. `text`, `tokens` and `tally` grow meanwhile."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        opened: Opened,
        prompt: NDArray[np.int32],
        config: DecodeConfig,
        method: Method,
        n: int,
        widths: Widths,
        wrap: Callable[[Proposer[Any]], Proposer[Any]] | None = None,
    ) -> None:
        """Make `prompt` the text.

        Args:
            opened: without heads where the method has some and `widths` leave no row for a draft.
            method: that of `config`, or one of the others it leaves open.
            n: block length in tokens, or heads in all.
            widths: decides on the rows of every batch.
            wrap: puts something that watches around the proposer.

        Raises:
            ContextError: the prompt is empty or does not fit.
        """
        engine, sequence, heads = opened
        sequence.open(prompt)
        self.prompt = prompt
        self.tokens: list[int] = []
        """Ids so far, the end token included."""
        self.text = ""
        self.finish: str | None = None
        """Why it ended: `end` (an end token), `stop` (a stop string), `length` (`max_tokens`), `context` (no room
        left); None while it goes on or when the reader left."""
        self.method = method.name
        """The one that makes it."""
        self.n = n
        """Its block length in tokens, or heads in all."""
        way = way_to_decode(method, heads)
        self._verify = way.verify
        proposer = way.propose(Task(n, sequence, config.sampling, heads))
        self._proposer = proposer if wrap is None else wrap(proposer)
        self.tally = Tally(width=self._proposer.width, prompt_tokens=len(prompt))
        self._vocabulary = vocabulary
        self._engine = engine
        self._sequence = sequence
        self._config = config
        self.widths = widths
        self._limit = min(engine.capacity, len(prompt) + config.max_tokens)
        self._steps = self._run()
        self._superseded = False

    def __iter__(self) -> Iterator[Token]:
        return self

    def __next__(self) -> Token:
        """
        Raises:
            UsageError: the model was asked for another answer before this one had ended.
        """
        if self._superseded:
            raise UsageError("the model was asked for another answer meanwhile; read an answer to its end first")
        return next(self._steps)

    def close(self) -> None:
        """Stop here. What was generated stays, in the cache too."""
        self._steps.close()

    def supersede(self) -> None:
        """Stop here, as the engine is needed for another answer; reading on raises."""
        self._superseded = self.finish is None
        self.close()

    def _run(self) -> Generator[Token, None, None]:
        stream = TextStream(self._config.stop)
        try:
            self._prefill()
            for tokens in self._decode():
                for token in tokens.tolist():
                    self.tokens.append(token)
                    reason = self._reason(token)
                    text = stream.feed(b"" if reason == "end" else self._vocabulary.piece(token))
                    if reason is not None:
                        text += stream.finish()
                    self.finish = "stop" if stream.stopped is not None else reason
                    self.text += text
                    yield Token(token, text)
                    if self.finish is not None:
                        return
        finally:
            # A step may have added more than was taken; every method must leave the same text and cache behind.
            self.widths.finish()
            self.tally.tokens = len(self.tokens)
            self._sequence.truncate(len(self.prompt) + len(self.tokens))

    def _prefill(self) -> None:
        began = perf_counter()
        self.tally.prefilled_tokens = self._sequence.prefill()
        time_plain(self._engine, self._sequence, self.widths)
        self.tally.prefill_seconds = perf_counter() - began

    def _decode(self) -> Iterator[NDArray[np.integer]]:
        steps = decode(
            self._engine,
            self._sequence,
            self._proposer,
            self._config.sampling,
            self.tally,
            limit=self._limit,
            end_tokens=self._vocabulary.end_tokens,
            widths=self.widths,
            verify=self._verify,
        )
        for tokens in steps:
            if self.tally.passes == 1:
                self.tally.first_step_seconds = self.tally.prefill_seconds + self.tally.decode_seconds
            yield tokens

    def _reason(self, token: int) -> str | None:
        if token in self._vocabulary.end_tokens:
            return "end"
        if len(self.tokens) >= self._config.max_tokens:
            return "length"
        return "context" if len(self.prompt) + len(self.tokens) >= self._limit else None
