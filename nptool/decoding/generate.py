"""Text from a GGUF in a few lines: load it, iterate over tokens.

    with nptool.load("model.gguf") as model:
        for token in model.generate("prompt", jacobi=True, n=16):
            print(token.text, end="")

Puts the pieces together: prompt to tokens, engine, method, loop, tokens to text. Prints nothing.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from nptool.data.records import Message
from nptool.decoding.loop import decode
from nptool.decoding.methods import AUTOREGRESSIVE, JACOBI, JACOBI_BLOCK, find_method
from nptool.decoding.sampling import Sampling
from nptool.decoding.sequence import Sequence as TokenSequence
from nptool.decoding.tally import Tally
from nptool.decoding.template import ChatTemplate
from nptool.decoding.text_stream import TextStream
from nptool.errors import ContextError, UsageError
from nptool.llama.context import DEFAULT_BATCH, DEFAULT_WIDTH, Context
from nptool.llama.model import Model
from nptool.runs import latest_run

DEFAULT_N = 16
DEFAULT_MAX_TOKENS = 256
BLOCK_SIZE_KEY = "nptool.block_size"

Prompt = str | Sequence[Message | Mapping[str, str]]


@dataclass(frozen=True)
class DecodeConfig:
    """How one answer is made."""

    method: str = AUTOREGRESSIVE
    """A name of `METHODS`."""
    n: int | None = None
    """Block length in tokens; None is what the file says, or 16."""
    exact: bool | None = None
    """Every batch padded to n rows, so that the text is bit for bit that of any other method at this n; None is yes
    for parallel methods and no for autoregressive decoding, whose fast form is one row wide."""
    max_tokens: int = DEFAULT_MAX_TOKENS
    """The longest answer in tokens."""
    stop: tuple[str, ...] = ()
    """Strings that end the answer and are not part of it."""
    sampling: Sampling = field(default_factory=Sampling)

    def __post_init__(self) -> None:
        find_method(self.method)
        if self.n is not None and self.n < 1:
            raise UsageError(f"-n must be at least 1, got {self.n}")
        if self.n is not None and self.n > DEFAULT_BATCH:
            raise ContextError(f"-n {self.n} is above the batch limit of {DEFAULT_BATCH} rows; choose a smaller n")
        if self.max_tokens < 1:
            raise UsageError(f"--max-tokens must be at least 1, got {self.max_tokens}")


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
        model: Model,
        engine: Context,
        sequence: TokenSequence,
        prompt: NDArray[np.int32],
        config: DecodeConfig,
        n: int,
        width: int | None,
    ) -> None:
        """Open `prompt` in `sequence`.

        Args:
            n: block length in tokens.
            width: rows of every batch, or None.

        Raises:
            ContextError: the prompt is empty or does not fit.
        """
        sequence.open(prompt)
        self.prompt = prompt
        self.tokens: list[int] = []
        """Ids so far, the end token included."""
        self.text = ""
        self.finish: str | None = None
        """Why it ended: `end` (an end token), `stop` (a stop string), `length` (`max_tokens`), `context` (no room
        left); None while it goes on or when the reader left."""
        self._proposer = find_method(config.method).propose(n, prompt, config.sampling.seed)
        self.tally = Tally(width=self._proposer.width, prompt_tokens=len(prompt))
        self._model = model
        self._engine = engine
        self._sequence = sequence
        self._config = config
        self._width = width
        self._limit = min(engine.capacity, len(prompt) + config.max_tokens)
        self._steps = self._run()

    def __iter__(self) -> Iterator[Token]:
        return self._steps

    def close(self) -> None:
        """Stop here. What was generated stays, in the cache too."""
        self._steps.close()

    def _run(self) -> Generator[Token, None, None]:
        stream = TextStream(self._config.stop)
        try:
            self._prefill()
            for tokens in self._decode():
                for token in tokens.tolist():
                    self.tokens.append(token)
                    reason = self._reason(token)
                    text = stream.feed(b"" if reason == "end" else self._model.piece(token))
                    if reason is not None:
                        text += stream.finish()
                    self.finish = "stop" if stream.stopped is not None else reason
                    self.text += text
                    yield Token(token, text)
                    if self.finish is not None:
                        return
        finally:
            # A step may have added more than was taken; every method must leave the same text and cache behind.
            self.tally.tokens = len(self.tokens)
            self._sequence.truncate(len(self.prompt) + len(self.tokens))

    def _prefill(self) -> None:
        began = perf_counter()
        self.tally.prefilled_tokens = self._sequence.prefill()
        self.tally.prefill_seconds = perf_counter() - began

    def _decode(self) -> Iterator[NDArray[np.integer]]:
        ends = np.zeros(self._engine.vocabulary_size, dtype=np.bool_)
        ends[list(self._model.end_tokens)] = True
        steps = decode(
            self._engine,
            self._sequence,
            self._proposer,
            self._config.sampling,
            self.tally,
            limit=self._limit,
            end_tokens=ends,
            width=self._width,
        )
        for tokens in steps:
            if self.tally.passes == 1:
                self.tally.first_step_seconds = self.tally.prefill_seconds + self.tally.decode_seconds
            yield tokens

    def _reason(self, token: int) -> str | None:
        if token in self._model.end_tokens:
            return "end"
        if len(self.tokens) >= self._config.max_tokens:
            return "length"
        return "context" if len(self.prompt) + len(self.tokens) >= self._limit else None


class TextModel:
    """A loaded GGUF that answers prompts. Use it as a context manager, or close it."""

    def __init__(
        self,
        path: str | Path,
        *,
        gpu_layers: int = 0,
        context_length: int | None = None,
        threads: int | None = None,
        kv_type: str = "f16",
        flash_attention: bool = True,
    ) -> None:
        """Load `path`.

        Args:
            gpu_layers: layers on the GPU; negative is all of them.
            context_length: tokens; None is the model's own, at most 4096.
            threads: None is every usable core.
            kv_type, flash_attention: see `nptool.llama.Context`.

        Raises:
            GgufError: the file cannot be used.
        """
        self.model = Model.load(path, gpu_layers)
        self._settings: dict[str, Any] = {"threads": threads, "kv_type": kv_type, "flash_attention": flash_attention}
        self._context_length = context_length
        self._engine: Context | None = None
        self._sequence: TokenSequence | None = None
        self._answer: Answer | None = None

    @property
    def path(self) -> Path:
        return self.model.path

    @cached_property
    def block_size(self) -> int:
        """The n that the file was trained for, or the default."""
        return int(self.model.header.metadata.get(BLOCK_SIZE_KEY, DEFAULT_N))

    @cached_property
    def template(self) -> ChatTemplate | None:
        """The file's chat template, if it has one."""
        source = self.model.chat_template
        if source is None:
            return None
        bos, eos = ("" if token is None else self.model.token_text(token) for token in (self.model.bos, self.model.eos))
        return ChatTemplate(source, bos=bos, eos=eos, origin=str(self.path))

    def generate(
        self,
        prompt: Prompt,
        *,
        jacobi: bool = False,
        block_mode: bool = False,
        n: int | None = None,
        exact: bool | None = None,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        stop: Sequence[str] = (),
        raw: bool = False,
        **sampling: Any,
    ) -> Answer:
        """Answer a prompt.

        Args:
            prompt: a user's text, or the messages of a conversation.
            jacobi: decode n tokens in parallel.
            block_mode: Jacobi iteration block by block instead of a sliding window.
            n, exact, max_tokens, stop: see `DecodeConfig`.
            raw: take the text as it is, without the chat template.
            sampling: fields of `Sampling`: temperature, top_k, top_p, min_p, repeat_penalty, repeat_last, seed.

        Returns:
            An iterable of tokens, which are made while it is read.

        Raises:
            UsageError: an option that cannot be used.
            ContextError: the prompt does not fit the context, or n the batch.
        """
        config = DecodeConfig(
            method=(JACOBI_BLOCK if block_mode else JACOBI) if jacobi or block_mode else AUTOREGRESSIVE,
            n=n,
            exact=exact,
            max_tokens=max_tokens,
            stop=tuple(stop),
            sampling=Sampling(**sampling),
        )
        return self.answer(self.encode(prompt, raw=raw), config)

    def answer(self, prompt: NDArray[np.int32], config: DecodeConfig, *, reuse: bool = False) -> Answer:
        """Answer a prompt given as token ids.

        Args:
            reuse: keep what the cache already holds of the prompt; otherwise it is prefilled whole, so that the answer
                does not depend on what was asked before.

        Raises:
            ContextError: the prompt does not fit the context, or n the batch.
        """
        method = find_method(config.method)
        n = config.n or self.block_size
        exact = method.parallel if config.exact is None else config.exact
        if self._answer is not None:
            self._answer.close()
        engine, sequence = self._open(n if exact or method.parallel else 1)
        if not reuse:
            sequence.truncate(0)
        self._answer = Answer(self.model, engine, sequence, prompt, config, n, n if exact else None)
        return self._answer

    def encode(self, prompt: Prompt, *, raw: bool = False) -> NDArray[np.int32]:
        """Token ids of a prompt.

        With the chat template the template alone says what stands at the beginning, as in training; a plain text gets
        the tokenizer's BOS, once.

        Raises:
            UsageError: the template refuses the messages, or messages without a template or with `raw`.
        """
        messages = [Message("user", prompt)] if isinstance(prompt, str) else [_message(item) for item in prompt]
        if self.template is not None and not raw:
            return self.model.tokenize(self.template.render(messages), parse_special=True)
        text = "\n\n".join(message.content for message in messages)
        ids = self.model.tokenize(text, parse_special=True)
        bos = self.model.bos
        if self.model.adds_bos and bos is not None and (not ids.size or ids[0] != bos):
            ids = np.concatenate([np.array([bos], dtype=np.int32), ids])
        return ids

    def close(self) -> None:
        """Free everything. A second call does nothing."""
        if self._answer is not None:
            self._answer.close()
        if self._engine is not None:
            self._engine.close()
            self._engine = None
        self.model.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self, width: int) -> tuple[Context, TokenSequence]:
        """The engine, made anew when a step would be too wide for it."""
        if self._engine is None or self._sequence is None or self._engine.width < width:
            if self._engine is not None:
                self._engine.close()
            self._engine = Context(self.model, self._context_length, width=max(width, DEFAULT_WIDTH), **self._settings)
            self._sequence = TokenSequence(self._engine)
            _warm_up(self._engine, width)
        return self._engine, self._sequence


def load(path: str | Path | None = None, **options: Any) -> TextModel:
    """Load a GGUF, by default the newest run's.

    Args:
        options: of `TextModel`: gpu_layers, context_length, threads, kv_type, flash_attention.

    Raises:
        GgufError: the file cannot be used.
        DataError: no path was given and there is no run.
    """
    return TextModel(latest_run().gguf if path is None else path, **options)


def _warm_up(engine: Context, width: int) -> None:
    """The first batch of a context pays for page faults and graph building; let no answer pay for it."""
    for rows in {1, width}:
        engine.evaluate(np.zeros(rows, dtype=np.int32), 0)
        engine.clear()
    engine.seconds = 0.0


def _message(item: Message | Mapping[str, str]) -> Message:
    if isinstance(item, Message):
        return item
    if "role" not in item or "content" not in item:
        raise UsageError(f"a message needs role and content, got {', '.join(item) or 'nothing'}")
    return Message(item["role"], item["content"])
