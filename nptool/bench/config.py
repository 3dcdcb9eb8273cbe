"""Configuration of `nptool bench`. Importing it loads neither numpy nor llama.cpp; making a configuration does."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from nptool.errors import UsageError

if TYPE_CHECKING:
    from nptool.decoding.loop.sampling import Sampling

LENGTHS = (4, 8, 16)


def _greedy() -> Sampling:
    from nptool.decoding.loop.sampling import Sampling

    return Sampling()


@dataclass(frozen=True)
class BenchConfig:
    """One comparison, which always includes autoregressive decoding as the baseline."""

    model: Path | None = None
    """GGUF file; None is the newest run's."""
    prompts: Path | None = None
    """Data file of any known format; None is the held-out data of the model's run."""
    methods: tuple[str, ...] = ("ar", "jacobi")
    """Names of `METHODS`. With the suffix `-auto` a parallel method chooses the width of each step within a class of
    widths, with `-free` among all widths; `auto` also chooses the method for each prompt."""
    n: tuple[int, ...] | None = None
    """Block lengths in tokens; every parallel method is measured at each. None is `LENGTHS`, and for methods with heads
    all heads of the model."""
    max_tokens: int = 256
    """Longest answer in tokens."""
    rounds: int = 3
    """Answers of every method to every prompt."""
    count: int = 20
    """Prompts from the start of the file."""
    sampling: Sampling = field(default_factory=_greedy)
    gpu_layers: int = 0
    """Layers on the GPU; negative is all of them."""
    context_length: int | None = None
    """Tokens; None is the model's own, at most 4096."""
    threads: int | None = None
    """None is every usable core."""
    flash_attention: bool | None = None
    """None is the default of `nptool.llama.attention`."""

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
