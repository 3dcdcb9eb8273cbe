"""What is compared: methods at one width, or with widths that they choose, by the names that `--methods` takes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from nptool.decoding.answer import DecodeConfig
from nptool.decoding.proposers.methods import AUTOREGRESSIVE, HEADS, HEADS_TREE, JACOBI, Method, find_method
from nptool.llama.context import DEFAULT_WIDTH

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
    others: tuple[str, ...] = ()
    """Further methods, one of which may be used for a text for which it promises more."""

    @property
    def name(self) -> str:
        return ANY if self.others else self.method + self.adapt

    def config(self, common: DecodeConfig) -> DecodeConfig:
        """How an answer is made; `common` gives sampling and lengths."""
        exact, adapt = self.adapt != FREE, bool(self.adapt)
        return replace(common, method=self.method, n=self.n, exact=exact, adapt=adapt, others=self.others)


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
            found.append(Variant(method.name, widest, adapt, (HEADS, HEADS_TREE)))
        elif method.parallel:
            counts = heads if method.counts_heads and heads is not None else lengths
            if adapt:
                counts = [max(counts) if method.counts_heads else widest]
            found += [Variant(method.name, n, adapt) for n in counts]
    return tuple(dict.fromkeys(found))
