"""Text from a GGUF in a few lines: load it, iterate over tokens.

    with nptool.load("model.gguf") as model:
        for token in model.generate("prompt", jacobi=True, n=16):
            print(token.text, end="")

Puts the pieces together: prompt to tokens, engine, method, loop, tokens to text. Prints nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from nptool.data.records import Message
from nptool.decoding.adaptive.calibration import Calibration
from nptool.decoding.adaptive.knowledge import Knowledge
from nptool.decoding.adaptive.plan import plan_text
from nptool.decoding.adaptive.widths import AdaptiveWidth
from nptool.decoding.answer import DEFAULT_MAX_TOKENS, Answer, DecodeConfig
from nptool.decoding.contexts import Contexts
from nptool.decoding.loop.sampling import Sampling
from nptool.decoding.loop.steps import FixedWidth, Proposer, Widths
from nptool.decoding.proposers.methods import (
    AUTOREGRESSIVE,
    HEADS,
    HEADS_TREE,
    JACOBI,
    JACOBI_BLOCK,
    Method,
    find_method,
)
from nptool.decoding.template import ChatTemplate
from nptool.errors import UsageError
from nptool.llama.attention import prefers_fused
from nptool.llama.context import DEFAULT_BATCH, DEFAULT_WIDTH, default_capacity
from nptool.llama.model import Model
from nptool.method_note import BLOCK_SIZE_KEY
from nptool.runs import latest_run

DEFAULT_N = 16

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
        """Load `path`.

        Args:
            gpu_layers: layers on the GPU; negative is all of them.
            context_length: tokens; None is the model's own, at most 4096.
            threads: None is every usable core.
            kv_type: see `nptool.llama.Context`.
            flash_attention: llama.cpp's fused kernel; None is where it is faster, see `nptool.llama.attention`.

        Raises:
            GgufError: the file cannot be used.
        """
        began = perf_counter()
        self.model = Model.load(path, gpu_layers)
        loading_seconds = perf_counter() - began
        if flash_attention is None:
            capacity = default_capacity(self.model) if context_length is None else context_length
            flash_attention = prefers_fused(self.model, capacity, DEFAULT_BATCH, gpu_layers=gpu_layers, kv_type=kv_type)
        self.contexts = Contexts(
            self.model,
            context_length,
            gpu_layers=gpu_layers,
            threads=threads,
            kv_type=kv_type,
            flash_attention=flash_attention,
        )
        self.knowledge = Knowledge(self.contexts, loading_seconds)
        """What steps cost on this machine, and what they have brought."""
        self._answer: Answer | None = None

    @property
    def path(self) -> Path:
        return self.model.path

    @cached_property
    def block_size(self) -> int:
        """The n that the file was trained for, or the default."""
        return int(self.model.header.metadata.get(BLOCK_SIZE_KEY, DEFAULT_N))

    def block_length(self, config: DecodeConfig, other: str | None = None) -> int:
        """The n that `config` comes to with this file.

        Args:
            other: one of the config's other methods; None is its first one.

        Raises:
            GgufError: it asks for heads and there are none.
            UsageError: it asks for more heads than there are.
        """
        method = find_method(other or config.method)
        if method.heads:
            # Where n bounds several methods, the heads are no fewer for being fewer than that.
            count = self.contexts.count_heads(config.n if method.counts_heads and not config.others else None)
            if method.counts_heads:
                return min(count, config.n or count)
        if config.adapt and method.parallel:
            return min(config.n or DEFAULT_WIDTH, self.calibration.widths[-1])
        return config.n or self.block_size

    @property
    def calibration(self) -> Calibration:
        """What steps cost on this machine."""
        return self.knowledge.calibration

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
            heads: let the model's extra heads draft n-1 tokens for each pass. With `jacobi` and n="auto" the better of
                the two is chosen for each text.
            n, adapt, exact, max_tokens, stop: see `DecodeConfig`; n="auto" is `adapt` without an upper bound.
            raw: take the text as it is, without the chat template.
            sampling: fields of `Sampling`: temperature, top_k, top_p, min_p, repeat_penalty, repeat_last, seed.

        Returns:
            An iterable of tokens, which are made while it is read.

        Raises:
            UsageError: an option that cannot be used.
            GgufError: heads are asked for and the file has none.
            ContextError: the prompt does not fit the context, or n the batch.
        """
        bound, adapts = (None if n == "auto" else n), adapt or n == "auto"
        method, *others = method_names(jacobi=jacobi, block_mode=block_mode, heads=heads, n=bound, adapt=adapts)
        config = DecodeConfig(
            method=method,
            n=bound,
            exact=exact,
            max_tokens=max_tokens,
            stop=tuple(stop),
            sampling=Sampling(**sampling),
            adapt=adapts,
            others=tuple(others),
        )
        return self.answer(self.encode(prompt, raw=raw), config)

    def answer(
        self,
        prompt: NDArray[np.int32],
        config: DecodeConfig,
        *,
        reuse: bool = False,
        wrap: Callable[[Proposer[Any]], Proposer[Any]] | None = None,
    ) -> Answer:
        """Answer a prompt given as token ids.

        Args:
            reuse: keep what the cache already holds of the prompt; otherwise it is prefilled whole, so that the answer
                does not depend on what was asked before.
            wrap: puts something that watches around the proposer, as `trace` does.

        Raises:
            ContextError: the prompt does not fit the context, or n the batch.
        """
        if self._answer is not None:
            self._answer.close()
        method, n, widths = self._choose(config, len(prompt))
        # Where nothing is drafted, showing z to heads would cost a small model 4 % of its steps. A conversation keeps
        # its heads: a later turn may use them, and would have to read everything again.
        heads = None if widths.members == (1,) and not reuse else self._heads(method, n)
        opened = self.contexts.open(n if widths.padded or method.parallel else 1, heads)
        if not reuse:
            opened.sequence.truncate(0)
        self._answer = Answer(self.model, opened, prompt, config, method, n, widths, wrap)
        return self._answer

    def _choose(self, config: DecodeConfig, length: int) -> tuple[Method, int, Widths]:
        """The method for a text of `length` tokens, its n, and what decides on its widths."""
        method, n = find_method(config.method), self.block_length(config)
        exact = method.parallel if config.exact is None else config.exact
        if not (config.adapt and method.parallel):
            return method, n, FixedWidth(n if exact else None)
        lengths = {method.name: n} | {name: self.block_length(config, name) for name in config.others}
        experiences = [self.knowledge.experience(name, widest) for name, widest in lengths.items()]
        plan = plan_text(experiences, length, exact=exact)
        chosen = list(lengths)[plan.method]
        widths = AdaptiveWidth(experiences[plan.method], plan, exact=exact, plain=experiences[0])
        return find_method(chosen), lengths[chosen], widths

    def _heads(self, method: Method, n: int) -> int | None:
        """Heads in all that a method uses with a block length of `n`."""
        if not method.heads:
            return None
        return n if method.counts_heads else self.contexts.count_heads()

    def encode(self, prompt: Prompt, *, raw: bool = False) -> NDArray[np.int32]:
        """Token ids of a prompt.

        With the chat template the template alone says what stands at the beginning, as in training; a plain text gets
        the tokenizer's BOS, once.

        Raises:
            UsageError: the template refuses the messages, or messages without a template or with `raw`.
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

    def close(self) -> None:
        """Keep what was learnt, and free everything. A second call does nothing more."""
        if self._answer is not None:
            self._answer.close()
        self.knowledge.keep()
        self.contexts.close()
        self.model.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def load(path: str | Path | None = None, **options: Any) -> TextModel:
    """Load a GGUF, by default the newest run's.

    Args:
        options: of `TextModel`: gpu_layers, context_length, threads, kv_type, flash_attention.

    Raises:
        GgufError: the file cannot be used.
        DataError: no path was given and there is no run.
    """
    return TextModel(latest_run().gguf if path is None else path, **options)


def method_names(
    *, jacobi: bool = False, block_mode: bool = False, heads: bool = False, n: int | None = None, adapt: bool = False
) -> tuple[str, ...]:
    """The methods that a few switches leave open, the usual one first; `block_mode` implies `jacobi`.

    Heads draft a chain, or, where steps choose their widths and all heads are used, a tree.

    Raises:
        UsageError: two of them are asked for with steps of a fixed width.
    """
    iterating = [JACOBI_BLOCK if block_mode else JACOBI] if jacobi or block_mode else []
    if not heads:
        return tuple(iterating or [AUTOREGRESSIVE])
    if not adapt:
        if iterating:
            raise UsageError(
                "Jacobi iteration and heads are two methods, and steps of a fixed width need one: choose it, or leave "
                "--fixed out"
            )
        return (HEADS,)
    return (*iterating, HEADS, *([HEADS_TREE] if iterating or n is None else []))


def _message(item: Message | Mapping[str, str]) -> Message:
    if isinstance(item, Message):
        return item
    if "role" not in item or "content" not in item:
        raise UsageError(f"a message needs role and content, got {', '.join(item) or 'nothing'}")
    return Message(item["role"], item["content"])
