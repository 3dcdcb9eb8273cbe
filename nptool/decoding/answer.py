"""How one answer is decoded (`DecodeConfig`), and the answer itself: its tokens, its text, and why it ended."""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from time import perf_counter
from typing import NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from nptool.decoding.headed import Opened
from nptool.decoding.logprobs import TokenLogprob, WatchedEngine, token_logprob
from nptool.decoding.loop.loop import decode
from nptool.decoding.loop.options import LengthOptions
from nptool.decoding.loop.sampling import Sampling
from nptool.decoding.loop.steps import Widths
from nptool.decoding.loop.tally import Tally
from nptool.decoding.loop.timing import time_plain
from nptool.decoding.proposers.methods import AUTOREGRESSIVE, METHODS, Method, Task, find_method
from nptool.decoding.text_stream import TextStream
from nptool.errors import ContextError, UsageError
from nptool.llama.loading import DEFAULT_BATCH

DEFAULT_MAX_TOKENS = LengthOptions().max_tokens


@dataclass(frozen=True)
class DecodeConfig:
    method: str = AUTOREGRESSIVE
    """A name of `METHODS`."""
    n: int | None = None
    """Block length in tokens; None is the file's, or 16. With heads, the number of heads used; None is all."""
    exact: bool | None = None
    """Pad every batch to n rows, so that the text equals any other method's at this n bit for bit. None is yes for
    parallel methods and no for AR, whose fast form has one row. With `adapt`, batches are padded to widths of one
    class, see `nptool.decoding.adaptive.widths`."""
    max_tokens: int = DEFAULT_MAX_TOKENS
    stop: tuple[str, ...] = ()
    """Strings that end the answer and are not part of it."""
    sampling: Sampling = field(default_factory=Sampling)
    adapt: bool = False
    """Choose the width of each step of a parallel method, down to AR where that is faster. n is then the upper bound;
    None is the widest calibrated step."""
    others: tuple[str, ...] = ()
    """With `adapt`: further parallel methods; the most promising one is chosen for each prompt."""
    stop_tokens: tuple[int, ...] = ()
    """Ids that end the answer, besides the model's end tokens. Like these they are its last token and have no text."""
    logprobs: int | None = None
    """Keep the log-probability of each token and of this many likeliest ones at its place; None is no."""

    def __post_init__(self) -> None:
        _ = self.methods
        if self.others and not self.adapt:
            names = ", ".join((self.method, *self.others))
            raise UsageError(f"choosing among {names} needs adaptive widths; name one method or set adapt")
        if self.n is not None and self.n < 1:
            raise UsageError(f"-n must be at least 1, got {self.n}")
        if self.n is not None and self.n > DEFAULT_BATCH:
            raise ContextError(f"-n {self.n} is above the batch limit of {DEFAULT_BATCH} rows; choose a smaller n")
        if self.logprobs is not None and self.logprobs < 0:
            raise UsageError(f"logprobs must be 0 or more, got {self.logprobs}")
        if "" in self.stop:
            raise UsageError("a stop string is empty; leave it out")
        if self.max_tokens < 1:
            raise UsageError(f"--max-tokens must be at least 1, got {self.max_tokens}")

    @cached_property
    def methods(self) -> tuple[Method, ...]:
        """`method` and `others`, resolved.

        Raises:
            UsageError: a name is unknown.
        """
        return tuple(find_method(name) for name in (self.method, *self.others))


class Vocabulary(Protocol):
    """What an answer needs of a tokenizer. Implemented by `nptool.llama.Model`."""

    @property
    def end_tokens(self) -> Collection[int]:
        """Tokens that end an answer."""

    def piece(self, token: int) -> bytes:
        """The bytes of a token's text."""


class Way(NamedTuple):
    """What was chosen for one answer."""

    method: Method
    n: int
    """Block length in tokens, or number of heads."""
    widths: Widths


@dataclass(frozen=True)
class Token:
    """One generated token."""

    id: int
    text: str
    """Whole characters that this token completed, which may begin in earlier tokens; empty if there are none."""


class Answer:
    """An iterator over the tokens of one answer. `text`, `tokens` and `tally` grow while it is read."""

    def __init__(
        self, vocabulary: Vocabulary, opened: Opened, prompt: NDArray[np.int32], config: DecodeConfig, way: Way
    ) -> None:
        """
        Args:
            opened: a method with heads runs as AR if no heads are opened.

        Raises:
            ContextError: the prompt is empty or does not fit.
        """
        engine, self._sequence, self._heads = opened
        self._engine = engine if config.logprobs is None else WatchedEngine(engine)
        self._sequence.open(prompt)
        self._vocabulary, self._config = vocabulary, config
        self._ends = frozenset((*vocabulary.end_tokens, *config.stop_tokens))
        self.prompt = prompt
        self.tokens: list[int] = []
        """Ids so far, the end token included."""
        self.logprobs: list[TokenLogprob] = []
        """Of `tokens`, if they were asked for."""
        self.text = ""
        self.finish: str | None = None
        """Why it ended: `end` (an end token), `stop` (a stop string), `length` (`max_tokens`), `context` (no room left)
        or `cancelled`. None before the end, or if it was not read to its end."""
        self.method, self.n, self.widths = way.method.name, way.n, way.widths
        drafting = METHODS[AUTOREGRESSIVE] if way.method.heads and self._heads is None else way.method
        self.proposer = drafting.propose(Task(way.n, self._sequence, config.sampling, self._heads))
        """May be wrapped before the first token is read."""
        self.tally = Tally(width=self.proposer.width, prompt_tokens=len(prompt))
        self._limit = min(self._engine.capacity, len(prompt) + config.max_tokens)
        self._steps = self._run()
        self._superseded = self._cancelled = False

    def __iter__(self) -> Iterator[Token]:
        return self

    def __next__(self) -> Token:
        """
        Raises:
            UsageError: the model was asked for another answer before the end of this one.
        """
        if self._superseded:
            raise UsageError(
                "this answer ended early because the model was asked for another one; read an answer to its end first"
            )
        return next(self._steps)

    def __str__(self) -> str:
        return self.text

    def finished(self) -> Self:
        """The answer, read to its end."""
        for _ in self:
            pass
        return self

    def cancel(self) -> None:
        """End the answer before its next token, from any thread."""
        self._cancelled = True

    def close(self) -> None:
        """Stop here. The tokens generated so far stay in the cache."""
        self._steps.close()

    def supersede(self) -> None:
        """Stop here because another answer needs the engine; reading on raises."""
        self._superseded = self.finish is None
        self.close()

    def _run(self) -> Generator[Token, None, None]:
        stream = TextStream(self._config.stop)
        try:
            self._prefill()
            for tokens in self._decode():
                if self.tally.passes == 1:
                    self.tally.first_step_seconds = self.tally.prefill_seconds + self.tally.decode_seconds
                for place, token in enumerate(tokens.tolist()):
                    if self._cancelled:
                        self.finish = "cancelled"
                        return
                    self.tokens.append(token)
                    if isinstance(self._engine, WatchedEngine):
                        row_V, count = self._engine.logits_RV[place], self._config.logprobs or 0
                        self.logprobs.append(token_logprob(row_V, token, count))
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
            # A step may have added more tokens than were taken. Every method must leave the same cache.
            self.widths.finish()
            self.tally.tokens = len(self.tokens)
            self._sequence.truncate(len(self.prompt) + len(self.tokens))

    def _prefill(self) -> None:
        began = perf_counter()
        self.tally.prefilled_tokens = self._sequence.prefill()
        if self._heads is not None and METHODS[self.method].heads:
            self._heads.read_prompt()
        time_plain(self._engine, self._sequence, self.widths)
        self.tally.prefill_seconds = perf_counter() - began

    def _decode(self) -> Iterator[NDArray[np.integer]]:
        return decode(
            self._engine,
            self._sequence,
            self.proposer,
            self._config.sampling,
            self.tally,
            limit=self._limit,
            end_tokens=self._ends,
            widths=self.widths,
        )

    def _reason(self, token: int) -> str | None:
        if token in self._ends:
            return "end"
        if len(self.tokens) >= self._config.max_tokens:
            return "length"
        return "context" if len(self.prompt) + len(self.tokens) >= self._limit else None
