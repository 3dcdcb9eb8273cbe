"""Text from a GGUF.

with nptool.load("model.gguf") as model:
    print(model.generate("prompt").text)
    for token in model.stream("prompt", method="jacobi", n=16):
        print(token.text, end="")
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any, Self, TypedDict, TypeVar, Unpack, cast, overload

import numpy as np
from numpy.typing import NDArray

from nptool.data.chat_template import ChatTemplate
from nptool.data.record import Message
from nptool.decoding.adaptive.cost import BUDGET, Calibration, calibrate, fitting
from nptool.decoding.adaptive.store import Store
from nptool.decoding.answer import DEFAULT_MAX_TOKENS, Answer, DecodeConfig, Token
from nptool.decoding.contexts import Contexts
from nptool.decoding.decoder import Decoder
from nptool.decoding.loop.sampling import Sampling
from nptool.decoding.proposers.methods import AUTOREGRESSIVE, HEADS, JACOBI, JACOBI_BLOCK
from nptool.decoding.templates import find_template
from nptool.errors import UsageError
from nptool.hub import fetch_gguf
from nptool.llama.builtin_template import BuiltinTemplate
from nptool.llama.digest import identity
from nptool.llama.loading import DEFAULT_WIDTH, LoadKeywords, LoadOptions
from nptool.llama.model import Model
from nptool.method_note import BLOCK_SIZE_KEY, METHOD_KEY
from nptool.runs import latest_run

DEFAULT_N = 16
CLLM = "cllm"
"""`nptool.method` of models that Jacobi iteration pays for."""
LOADING_SHARE = 0.25
"""A calibration may take this share of the model's loading time, or `BUDGET` if that is more."""

Messages = Sequence[Message | Mapping[str, str]]
Text = str | Messages
"""A user's text, or the messages of a conversation."""
Prompt = Text | Sequence[int] | NDArray[np.integer]
"""A text, or token ids."""
AUTO = "auto"
T = TypeVar("T")


class GenerateOptions(TypedDict, total=False):
    """The options of `TextModel.generate`, `stream`, `astream` and `chat`."""

    method: str | Sequence[str]
    """`auto` (the default): what the file was trained for, or AR, whatever is fastest, as `nptool chat` does. Or a name
    of `METHODS`, or several: the most promising one is chosen for each prompt."""
    n: int | None
    """Most tokens in a step, or most heads; None is no limit."""
    fixed: bool
    """Give every step n rows, instead of the fastest width."""
    exact: bool | None
    """See `DecodeConfig`."""
    max_tokens: int
    """Longest answer."""
    stop: str | Sequence[str]
    """Strings that end the answer and are not part of it."""
    stop_tokens: int | Sequence[int]
    """Ids that end the answer, besides the file's own end tokens."""
    raw: bool
    """Use a text as it is, without the chat template."""
    sampling: Sampling | None
    """How tokens are picked; None is greedily."""
    logprobs: int | None
    """See `DecodeConfig`."""


class TextModel:
    """A loaded GGUF that answers prompts. Use it as a context manager, or close it."""

    def __init__(self, path: str | Path, options: LoadOptions | None = None) -> None:
        """
        Raises:
            GgufError: the file cannot be used.
        """
        self.options = options or LoadOptions()
        began = perf_counter()
        self.model = Model.load(path, self.options)
        loading_seconds = perf_counter() - began
        self.contexts = Contexts(self.model)
        budget = max(BUDGET, LOADING_SHARE * loading_seconds)
        self.store = Store(self._identity, lambda: calibrate(self.contexts.scratch(DEFAULT_WIDTH), budget=budget))
        """The cost of a step on this machine, and what decoding has taught."""
        block_size = int(self.model.header.metadata.get(BLOCK_SIZE_KEY, DEFAULT_N))
        self.decoder = Decoder(self.model, self.contexts, self.store, block_size)

    @property
    def path(self) -> Path:
        return self.model.path

    def block_length(self, config: DecodeConfig) -> int:
        """See `Decoder.block_length`."""
        return self.decoder.block_length(config)

    def trained_methods(self) -> tuple[str, ...]:
        """The methods for adaptive widths that the file was trained for, the usual one first; AR if there are none.

        Raises:
            GgufError: its heads are damaged.
        """
        iterating = self.model.header.metadata.get(METHOD_KEY) == CLLM
        return method_names(jacobi=iterating, heads=self.contexts.parts.usable, adapt=True)

    @property
    def calibration(self) -> Calibration:
        """The cost of a step on this machine."""
        return self.store.calibration

    @cached_property
    def template(self) -> ChatTemplate | BuiltinTemplate | None:
        """The chat template of the options, else of the file.

        Raises:
            GgufError, UsageError, DataError: it is not valid, or cannot be read.
        """
        return find_template(self.model)

    @overload
    def generate(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> Answer: ...
    @overload
    def generate(self, prompt: list[str], **options: Unpack[GenerateOptions]) -> list[Answer]: ...
    def generate(self, prompt: Prompt | list[str], **options: Unpack[GenerateOptions]) -> Answer | list[Answer]:
        """Answer a prompt, or each of a list of prompts.

        Args:
            prompt: a user's text, the messages of a conversation, or token ids, which are used as they are.

        Returns:
            The finished answer, or a list of them in the order of the prompts.

        Raises:
            UsageError: an invalid option.
            GgufError: the method needs heads, and the file has none.
            ContextError: the prompt does not fit the context, or n the batch.
        """
        if isinstance(prompt, list) and prompt and all(isinstance(item, str) for item in prompt):
            return [self.stream(cast(str, item), **options).finished() for item in prompt]
        return self.stream(cast(Prompt, prompt), **options).finished()

    def chat(self, messages: Messages, **options: Unpack[GenerateOptions]) -> Answer:
        """Answer a conversation; the same as `generate`."""
        return self.generate(messages, **options)

    def stream(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> Answer:
        """As `generate`, but the answer is an iterator over tokens, which are decoded while it is read.

        Another answer of the model ends it.
        """
        config = self._config(**options)
        return self.answer(self._ids(prompt, raw=options.get("raw", False)), config)

    async def astream(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> AsyncIterator[Token]:
        """As `stream`, for asyncio: each step runs in a thread. Leaving the loop early frees the model."""
        answer = self.stream(prompt, **options)
        step = None
        try:
            while True:
                step = asyncio.ensure_future(asyncio.to_thread(next, answer, None))
                token = await asyncio.shield(step)
                if token is None:
                    return
                yield token
        finally:
            answer.cancel()
            if step is not None and not step.done():
                await step
            answer.close()

    def _config(
        self,
        *,
        method: str | Sequence[str] = AUTO,
        n: int | None = None,
        fixed: bool = False,
        exact: bool | None = None,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        stop: str | Sequence[str] = (),
        stop_tokens: int | Sequence[int] = (),
        raw: bool = False,
        sampling: Sampling | None = None,
        logprobs: int | None = None,
    ) -> DecodeConfig:
        """The configuration for the options of `generate`; `raw` is about the prompt."""
        for name, value in (("n", n), ("max_tokens", max_tokens), ("logprobs", logprobs)):
            if value is not None and not isinstance(value, int):
                raise UsageError(f"{name} must be a whole number, got {value!r}")
        if not isinstance(sampling, Sampling | None):
            raise UsageError(f"sampling must be a Sampling, got {sampling!r}")
        names = self.trained_methods() if method == AUTO else _several("method", method, str)
        if not names:
            raise UsageError("method is empty; name one or several, or leave it out")
        return DecodeConfig(
            method=names[0],
            n=n,
            exact=exact,
            max_tokens=max_tokens,
            stop=_several("stop", stop, str),
            stop_tokens=_several("stop_tokens", stop_tokens, int),
            sampling=sampling or Sampling(),
            adapt=not fixed,
            others=names[1:],
            logprobs=logprobs,
        )

    def _ids(self, prompt: Prompt, *, raw: bool) -> NDArray[np.int32]:
        if isinstance(prompt, str):
            return self.encode(prompt, raw=raw)
        if not isinstance(prompt, (Sequence, np.ndarray)) or isinstance(prompt, bytes):
            raise UsageError(f"expected a text, messages or token ids, got {prompt!r}")
        if not isinstance(prompt, np.ndarray) and not all(isinstance(item, (int, np.integer)) for item in prompt):
            return self.encode(cast(Messages, prompt), raw=raw)
        found, size = np.asarray(prompt), self.model.vocabulary_size
        whole = np.issubdtype(found.dtype, np.integer) or not found.size
        if found.ndim != 1 or not whole or any(not 0 <= token < size for token in found.tolist()):
            raise UsageError(f"token ids must be whole numbers from 0 to {size - 1}, in one dimension")
        return found.astype(np.int32)

    def answer(self, prompt: NDArray[np.int32], config: DecodeConfig, **options: Any) -> Answer:
        """Answer a prompt of token ids, see `Decoder.answer`."""
        return self.decoder.answer(prompt, config, **options)

    def encode(self, prompt: Text, *, raw: bool = False) -> NDArray[np.int32]:
        """Token ids of a prompt.

        A chat template decides alone whether the prompt begins with BOS, as in training. Plain text gets the
        tokenizer's BOS, once.

        Raises:
            UsageError: the template refuses the messages, or a message lacks role or content.
        """
        messages = [Message("user", prompt)] if isinstance(prompt, str) else [_message(item) for item in prompt]
        if not raw and self.template is not None:
            return self.model.tokenize(self.template.render(messages), parse_special=True)
        text = "\n\n".join(message.content for message in messages)
        ids = self.model.tokenize(text, parse_special=True)
        bos = self.model.bos
        if self.model.adds_bos and bos is not None and (not ids.size or ids[0] != bos):
            ids = np.concatenate([np.array([bos], dtype=np.int32), ids])
        return ids

    def _identity(self) -> dict[str, Any]:
        """What a calibration depends on."""
        context = self.contexts.scratch(DEFAULT_WIDTH)
        return identity(context) | {"contexts": list(fitting(context))}

    def close(self) -> None:
        """Save what was learnt and free everything. A second call does nothing."""
        self.decoder.close()
        self.contexts.close()
        self.model.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def load(path: str | Path | None = None, *, hf: str | None = None, **options: Unpack[LoadKeywords]) -> TextModel:
    """Load a GGUF; without a path the newest run's.

    Args:
        hf: a model on the Hugging Face Hub instead, as USER/REPO or USER/REPO:TYPE, see `nptool.hub`.
        options: fields of `LoadOptions`.

    Raises:
        GgufError: the file cannot be used.
        DataError: no path was given and there is no run, or see `nptool.hub.fetch_gguf`.
        UsageError: an invalid option.
    """
    if path is not None and hf is not None:
        raise UsageError(f"{path} and {hf} on the Hub are two models; give one of them")
    if hf is not None:
        path = fetch_gguf(hf)
    return TextModel(latest_run().gguf if path is None else path, LoadOptions(**options))


def method_names(
    *, jacobi: bool = False, block_mode: bool = False, heads: bool = False, adapt: bool = False
) -> tuple[str, ...]:
    """The methods that the switches allow, the usual one first; `block_mode` implies `jacobi`.

    Raises:
        UsageError: Jacobi iteration and heads together with a fixed width.
    """
    iterating = [JACOBI_BLOCK if block_mode else JACOBI] if jacobi or block_mode else []
    if not heads:
        return tuple(iterating or [AUTOREGRESSIVE])
    if not adapt:
        if iterating:
            raise UsageError(
                "Jacobi iteration and heads are two methods, and steps of a fixed width need one; choose one, or drop "
                "--fixed"
            )
        return (HEADS,)
    return (*iterating, HEADS)


def _several(name: str, value: T | Sequence[T], kind: type[T]) -> tuple[T, ...]:
    """One value or several, as a tuple; raises `UsageError` if they are of another type."""
    values = value if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
    if not all(isinstance(item, kind) for item in values):
        raise UsageError(f"{name} must be of type {kind.__name__}, one or a sequence of them, got {value!r}")
    return cast("tuple[T, ...]", tuple(values))


def _message(item: Message | Mapping[str, str]) -> Message:
    if isinstance(item, Message):
        return item
    if not isinstance(item, Mapping):
        raise UsageError(f"a message is a mapping with role and content, got {item!r}")
    if "role" not in item or "content" not in item:
        raise UsageError(f"a message needs role and content, got {', '.join(item) or 'nothing'}")
    return Message(item["role"], item["content"])
