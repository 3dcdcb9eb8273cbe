"""Text from a GGUF: load it, then iterate over tokens.

with nptool.load("model.gguf") as model:
    for token in model.generate("prompt", jacobi=True, n=16):
        print(token.text, end="")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from nptool.data.chat_template import ChatTemplate
from nptool.data.records import Message
from nptool.decoding.adaptive.cost import BUDGET, Calibration, calibrate, fitting
from nptool.decoding.adaptive.store import Store
from nptool.decoding.answer import DEFAULT_MAX_TOKENS, Answer, DecodeConfig
from nptool.decoding.contexts import Contexts
from nptool.decoding.decoder import Decoder
from nptool.decoding.loop.sampling import Sampling
from nptool.decoding.proposers.methods import AUTOREGRESSIVE, HEADS, JACOBI, JACOBI_BLOCK
from nptool.errors import UsageError
from nptool.llama.attention import prefers_fused
from nptool.llama.context import DEFAULT_BATCH, DEFAULT_WIDTH, default_capacity
from nptool.llama.digest import identity
from nptool.llama.model import Model
from nptool.method_note import BLOCK_SIZE_KEY, METHOD_KEY
from nptool.runs import latest_run

DEFAULT_N = 16
CLLM = "cllm"
"""`nptool.method` of models that Jacobi iteration pays for."""
LOADING_SHARE = 0.25
"""A calibration may take this share of the model's loading time, or `BUDGET` if that is more."""

Prompt = str | Sequence[Message | Mapping[str, str]]


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
        flash_attention: bool | None = None,
    ) -> None:
        """
        Args:
            gpu_layers: layers on the GPU; negative is all of them.
            context_length: tokens; None is the model's own, at most 4096.
            threads: None is every usable core.
            kv_type: see `nptool.llama.Context`.
            flash_attention: llama.cpp's fused kernel; None chooses, see `nptool.llama.attention`.

        Raises:
            GgufError: the file cannot be used.
        """
        began = perf_counter()
        self.model = Model.load(path, gpu_layers)
        loading_seconds = perf_counter() - began
        if flash_attention is None:
            capacity = default_capacity(self.model) if context_length is None else context_length
            flash_attention = prefers_fused(self.model, capacity, DEFAULT_BATCH, gpu_layers=gpu_layers, kv_type=kv_type)
        settings = {"threads": threads, "kv_type": kv_type, "flash_attention": flash_attention}
        self.contexts = Contexts(self.model, context_length, gpu_layers=gpu_layers, **settings)
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
    def template(self) -> ChatTemplate | None:
        """
        Raises:
            GgufError: the file's chat template is not valid.
        """
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
        heads: bool = False,
        n: int | Literal["auto"] | None = None,
        adapt: bool = False,
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
            heads: let the model's extra heads draft n-1 tokens per pass. With `jacobi` and n="auto" the better of the
                two is chosen for each prompt.
            n, adapt, exact, max_tokens, stop: see `DecodeConfig`; n="auto" is `adapt` without an upper bound.
            raw: use the text as it is, without the chat template.
            sampling: fields of `Sampling`: temperature, top_k, top_p, min_p, repeat_penalty, repeat_last, seed.

        Returns:
            An iterator over the tokens, which are decoded while it is read. Another answer of the model ends it.

        Raises:
            UsageError: an invalid option.
            GgufError: `heads`, and the file has none.
            ContextError: the prompt does not fit the context, or n the batch.
        """
        bound, adapts = (None if n == "auto" else n), adapt or n == "auto"
        method, *others = method_names(jacobi=jacobi, block_mode=block_mode, heads=heads, adapt=adapts)
        chosen = Sampling(**sampling)
        config = DecodeConfig(method, bound, exact, max_tokens, tuple(stop), chosen, adapts, tuple(others))
        return self.answer(self.encode(prompt, raw=raw), config)

    def answer(self, prompt: NDArray[np.int32], config: DecodeConfig, **options: Any) -> Answer:
        """Answer a prompt of token ids, see `Decoder.answer`."""
        return self.decoder.answer(prompt, config, **options)

    def encode(self, prompt: Prompt, *, raw: bool = False) -> NDArray[np.int32]:
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
        return identity(context, self.contexts.gpu_layers) | {"contexts": list(fitting(context))}

    def close(self) -> None:
        """Save what was learnt and free everything. A second call does nothing."""
        self.decoder.close()
        self.contexts.close()
        self.model.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def load(path: str | Path | None = None, **options: Any) -> TextModel:
    """Load a GGUF; without a path the newest run's.

    Args:
        options: of `TextModel`: gpu_layers, context_length, threads, kv_type, flash_attention.

    Raises:
        GgufError: the file cannot be used.
        DataError: no path was given and there is no run.
    """
    return TextModel(latest_run().gguf if path is None else path, **options)


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


def _message(item: Message | Mapping[str, str]) -> Message:
    if isinstance(item, Message):
        return item
    if "role" not in item or "content" not in item:
        raise UsageError(f"a message needs role and content, got {', '.join(item) or 'nothing'}")
    return Message(item["role"], item["content"])
