"""Options of an answer that need no numpy: the command line reads them without loading the loop."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isfinite

from nptool.errors import UsageError
from nptool.options import option


@dataclass(frozen=True, kw_only=True)
class LengthOptions:
    max_tokens: int = option(256, "longest answer in tokens")


@dataclass(frozen=True)
class SamplingOptions:
    """How a token is picked. All defaults but the temperature are llama.cpp's."""

    temperature: float = option(0.0, "temperature; 0 is greedy", "--temp", metavar="T")
    top_k: int = option(40, "only the K most likely tokens; 0 is all", metavar="K")
    top_p: float = option(0.95, "only the most likely tokens of total probability P", metavar="P")
    min_p: float = option(0.05, "only tokens at least P times as likely as the most likely one", metavar="P")
    repeat_penalty: float = option(1.0, "penalty on the last 64 tokens; 1 is none", metavar="X")
    """Divides positive logits of recent tokens and multiplies negative ones."""
    repeat_last: int = 64
    """How many tokens are recent."""
    seed: int = option(0, "random seed")
    """Of the noise."""

    def __post_init__(self) -> None:
        limits = (
            ("--temp", self.temperature, inf),
            ("--top-k", self.top_k, inf),
            ("--top-p", self.top_p, 1),
            ("--min-p", self.min_p, 1),
            ("the number of recent tokens", self.repeat_last, inf),
        )
        for name, value, high in limits:
            if not 0 <= value <= high:
                raise UsageError(f"{name} must be {'0 or more' if high == inf else 'from 0 to 1'}, got {value}")
        if not isfinite(self.temperature):
            raise UsageError(f"--temp must be finite, got {self.temperature}")
        if not 0.0 < self.repeat_penalty < inf:
            raise UsageError(f"--repeat-penalty must be above 0, got {self.repeat_penalty}")
