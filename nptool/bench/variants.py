"""What is compared: methods with a fixed or an adaptive width, by the names that `--methods` takes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from nptool.decoding.answer import DecodeConfig
from nptool.decoding.proposers.methods import AUTOREGRESSIVE, HEADS, JACOBI, Method, find_method
from nptool.llama.loading import DEFAULT_WIDTH

AUTO, FREE = "-auto", "-free"
"""Suffixes for adaptive widths: within a class (`jacobi-auto`), or free (`jacobi-free`)."""
ANY = "auto"
"""The most promising method for each prompt, Jacobi iteration or heads if there are any; widths as in `-auto`."""


@dataclass(frozen=True)
class Variant:
    """A method at one width: every batch has `n` rows, unless it adapts."""

    method: str
    n: int
    """Block length in tokens; for autoregressive decoding, rows of a batch, all but one of them padding."""
    adapt: str = ""
    """`AUTO` or `FREE` for adaptive widths of at most n rows."""
    others: tuple[str, ...] = ()
    """Further methods to choose from for each prompt."""

    @property
    def name(self) -> str:
        return ANY if self.others else self.method + self.adapt

    def config(self, common: DecodeConfig) -> DecodeConfig:
        """The configuration of an answer, with sampling and lengths of `common`."""
        exact, adapt = self.adapt != FREE, bool(self.adapt)
        return replace(common, method=self.method, n=self.n, exact=exact, adapt=adapt, others=self.others)


def split_name(name: str) -> tuple[Method, str]:
    """A method and the suffix of its name; of `ANY` the first method.

    Raises:
        UsageError: there is no such method, or a suffix after a method that is not parallel.
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
    """The baseline, then every parallel method at every length.

    Args:
        heads: values of n for methods with heads; None is `lengths`, and no heads in `ANY`.
        widest: most rows of methods with adaptive widths.
    """
    found = [Variant(AUTOREGRESSIVE, 1)]
    for name in methods:
        method, adapt = split_name(name)
        if name == ANY and heads:
            found.append(Variant(method.name, widest, adapt, (HEADS,)))
        elif method.parallel:
            counts = heads if method.heads and heads is not None else lengths
            if adapt:
                counts = [max(counts) if method.heads else widest]
            found += [Variant(method.name, n, adapt) for n in counts]
    return tuple(dict.fromkeys(found))
