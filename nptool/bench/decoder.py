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

from nptool.decoding.adaptive.experience import Experience
from nptool.decoding.adaptive.plan import plan_text
from nptool.decoding.adaptive.widths import AdaptiveWidth
from nptool.decoding.headed import Opened
from nptool.decoding.loop.engine import Engine
from nptool.decoding.loop.loop import decode, time_plain
from nptool.decoding.loop.sampling import Sampling
from nptool.decoding.loop.sequence import Sequence
from nptool.decoding.loop.steps import FixedWidth, Widths
from nptool.decoding.loop.tally import Tally
from nptool.decoding.proposers.methods import (
    AUTOREGRESSIVE,
    HEADS,
    HEADS_TREE,
    JACOBI,
    Method,
    Task,
    find_method,
    way_to_decode,
)
from nptool.llama.context import DEFAULT_WIDTH

_NO_DRAFT = np.empty(0, dtype=np.int32)


AUTO, FREE = "-auto", "-free"
"""Suffixes of a method that chooses its widths: within a class (`jacobi-auto`), or freely (`jacobi-free`)."""
ANY = "auto"
"""For each text the method that promises most, as `--jacobi --heads` does: Jacobi iteration, and heads where there are
some. Widths as in `jacobi-auto`."""


@dataclass(frozen=True)
class Variant:
    """A method at one width. Every batch has `n` rows: the exact mode, and for n = 1 the fast autoregressive one."""

    method: str
    n: int
    """Block length in tokens; for autoregressive decoding, rows of a batch, all but one of them padding."""
    adapt: str = ""
    """`AUTO` or `FREE` where every step chooses its width and n is the upper bound."""
    others: tuple[tuple[str, int], ...] = ()
    """Further methods and their n, one of which may be used for a text for which it promises more."""

    @property
    def name(self) -> str:
        return ANY if self.others else self.method + self.adapt

    @property
    def ways(self) -> tuple[tuple[str, int], ...]:
        """All its methods and their n."""
        return ((self.method, self.n), *self.others)


def split_name(name: str) -> tuple[Method, str]:
    """A method and the suffix of its name; of `ANY` the first method.

    Raises:
        UsageError: there is no such method, or it has no width to choose.
    """
    if name == ANY:
        return find_method(JACOBI), AUTO
    for suffix in (AUTO, FREE):
        if name.endswith(suffix) and (method := find_method(name.removesuffix(suffix))).parallel:
            return method, suffix
    return find_method(name), ""


def variants_of(
    methods: Collection[str],
    lengths: Collection[int],
    heads: Collection[int] | None = None,
    widest: int = DEFAULT_WIDTH,
) -> tuple[Variant, ...]:
    """What is to be measured, the baseline first: parallel methods at every length, autoregressive decoding at 1.

    Args:
        heads: how many heads are used, in turn, by methods whose n is that; None is `lengths`, and no heads in `ANY`.
        widest: the upper bound of methods that choose their width and whose n is rows.
    """
    found = [Variant(AUTOREGRESSIVE, 1)]
    for name in methods:
        method, adapt = split_name(name)
        if name == ANY and heads:
            found.append(Variant(method.name, widest, adapt, ((HEADS, max(heads)), (HEADS_TREE, widest))))
        elif method.parallel:
            counts = heads if method.counts_heads and heads is not None else lengths
            if adapt:
                counts = [max(counts) if method.counts_heads else widest]
            found += [Variant(method.name, n, adapt) for n in counts]
    return tuple(dict.fromkeys(found))


@dataclass(frozen=True)
class Answer:
    """Tokens, the end token included, and what they cost."""

    tokens: tuple[int, ...]
    tally: Tally
    width: int
    """Autoregressive decoding in batches of so many rows gives the same tokens; 1 in free mode, but for near ties."""
    method: str
    """The one that was used."""


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
        experience: Callable[[str, int, str], Experience] | None = None,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        """
        Args:
            max_tokens: the longest answer.
            open_heads: the engine for so many rows with so many heads in all, or with every one; needed by methods
                that use heads.
            experience: with a method in steps of up to so many rows, for a purpose of the given name; needed by methods
                that choose their widths.
            clock: gives seconds.
        """
        self.engine = engine
        self._plain = Opened(engine, Sequence(engine), None)
        self._open_heads = open_heads
        self._experience = experience
        self._sampling = sampling
        self._max_tokens = max_tokens
        self._clock = clock
        self._end_tokens = end_tokens

    def answer(self, prompt: NDArray[np.int32], variant: Variant, max_tokens: int | None = None) -> Answer:
        """Answer a prompt by one method, prefill included.

        Args:
            max_tokens: a shorter limit than the decoder's.

        Raises:
            ContextError: the prompt is empty or does not fit.
        """
        (name, n), widths, width = self._plan(variant, len(prompt))
        method = find_method(name)
        opened = self._plain if widths.members == (1,) else self._opened(method, n)
        began = self._clock()
        prefilled = _begin(opened.sequence, prompt)
        time_plain(opened.engine, opened.sequence, widths)
        prefill_seconds = self._clock() - began
        way = way_to_decode(method, opened.heads)
        proposer = way.propose(Task(n, opened.sequence, self._sampling, opened.heads))
        tally = Tally(proposer.width, len(prompt), prefilled_tokens=prefilled, prefill_seconds=prefill_seconds)
        limit = min(self.engine.capacity, len(prompt) + (max_tokens or self._max_tokens))
        steps = decode(
            opened.engine,
            opened.sequence,
            proposer,
            self._sampling,
            tally,
            limit=limit,
            end_tokens=self._end_tokens,
            widths=widths,
            verify=way.verify,
        )
        tokens: list[int] = []
        for added in steps:
            if not tokens:
                tally.first_step_seconds = tally.prefill_seconds + tally.decode_seconds
            tokens += added.tolist()
        widths.finish()
        return Answer(tuple(tokens), tally, width, name)

    def costed_widths(self, variant: Variant) -> tuple[int, ...]:
        """Rows of the batches that the variant may use."""
        if not variant.adapt:
            return (variant.n,)
        return tuple({width for known in self._known(variant) for width in known.widths})

    def compared_widths(self, variant: Variant) -> tuple[int, ...]:
        """Widths of autoregressive decoding with whose text the variant's is compared: one of each class."""
        if not variant.adapt:
            return (variant.n,)
        if variant.adapt == FREE:
            return ()
        return tuple({members[0] for known in self._known(variant) for members in known.classes})

    def _plan(self, variant: Variant, length: int) -> tuple[tuple[str, int], Widths, int]:
        """A text's method and its n, what decides on the rows of each batch, and the width that gives the same bits."""
        if not variant.adapt:
            return (variant.method, variant.n), FixedWidth(variant.n), variant.n
        known, exact = self._known(variant), variant.adapt == AUTO
        plan = plan_text(known, length, exact=exact)
        widths = AdaptiveWidth(known[plan.method], plan, exact=exact, plain=known[0])
        return variant.ways[plan.method], widths, widths.members[0] if widths.members else 1

    def _known(self, variant: Variant) -> list[Experience]:
        assert self._experience is not None, "a method that chooses its widths was given no experience"
        return [self._experience(name, n, variant.name) for name, n in variant.ways]

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

    def _opened(self, method: Method, n: int) -> Opened:
        if not method.heads:
            return self._plain
        assert self._open_heads is not None, "a method with heads was given none"
        return self._open_heads(n, n if method.counts_heads else None)

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
