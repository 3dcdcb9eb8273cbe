"""Configuration of `nptool bench`. Importing it loads neither numpy nor llama.cpp; making a configuration does."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from nptool.decoding.loop.options import LengthOptions
from nptool.errors import UsageError
from nptool.llama.loading import LoadOptions
from nptool.options import option

if TYPE_CHECKING:
    from nptool.decoding.loop.sampling import Sampling

LENGTHS = (4, 8, 16)


def _greedy() -> Sampling:
    from nptool.decoding.loop.sampling import Sampling

    return Sampling()


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in (part.strip() for part in text.split(",")) if name)


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in _names(text))
    except ValueError as error:
        raise UsageError(f"-n must be whole numbers separated by commas, such as 4,8,16; got {text!r}") from error


@dataclass(frozen=True, kw_only=True)
class BenchOptions(LengthOptions):
    prompts: Path | None = option(None, "prompts", shown="the run's held-out ones")
    """Data file of any known format."""
    methods: tuple[str, ...] = option(
        ("ar", "jacobi"),
        "comma-separated methods; NAME-auto and NAME-free choose the width of each step, auto the method too",
        metavar="NAMES",
        parse=_names,
    )
    """Names of `METHODS`. A parallel method chooses widths within a class of widths (`-auto`) or among all (`-free`);
    `auto` chooses the method for each prompt."""
    n: tuple[int, ...] | None = option(
        None,
        "block lengths in tokens, or heads used",
        "-n",
        "--block-lengths",
        metavar="LIST",
        parse=_numbers,
        shown="4,8,16, and all heads",
    )
    """Every parallel method is measured at each."""
    rounds: int = option(3, "times each method answers each prompt")
    count: int = option(20, "number of prompts, from the start of the file")


@dataclass(frozen=True, kw_only=True)
class BenchConfig(BenchOptions):
    """One comparison, which always includes autoregressive decoding as the baseline."""

    model: Path | None = None
    """GGUF file; None is the newest run's."""
    sampling: Sampling = field(default_factory=_greedy)
    load: LoadOptions = field(default_factory=LoadOptions)

    def __post_init__(self) -> None:
        from nptool.bench.variants import split_name
        from nptool.decoding.answer import DecodeConfig

        for name, value in (("--rounds", self.rounds), ("--count", self.count)):
            if value < 1:
                raise UsageError(f"{name} must be at least 1, got {value}")
        if not self.methods:
            raise UsageError("--methods names no method; expected names such as ar,jacobi")
        if self.n is not None and not self.n:
            raise UsageError("-n names no block length; expected whole numbers such as 4,8,16")
        for method in self.methods:
            for n in self.n or LENGTHS:
                DecodeConfig(method=split_name(method)[0].name, n=n, max_tokens=self.max_tokens)
