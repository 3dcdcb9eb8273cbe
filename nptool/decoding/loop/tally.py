"""What one answer cost: tokens, forward passes, seconds, drafts accepted. Knows no clock and prints nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass
class Tally:
    """Counted by the loop while an answer is made. The prefill is kept apart from the decoding."""

    width: int
    """Rows of a full step."""
    prompt_tokens: int = 0
    prefilled_tokens: int = 0
    """Tokens of the prompt that were not in the cache already."""
    tokens: int = 0
    """Tokens of the answer, its end token included."""
    passes: int = 0
    """Forward passes, the prefill's not counted."""
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    """Time in the loop, from the end of the prefill on; what the consumer does between two steps is not in it."""
    engine_seconds: float = 0.0
    """The part of `decode_seconds` spent inside the engine."""
    heads_seconds: float = 0.0
    """The part of `decode_seconds` spent inside extra heads."""
    first_step_seconds: float = 0.0
    """Prefill and first step: when the first token was there."""
    passes_by_draft: list[int] = field(default_factory=list, repr=False)
    """Passes by how many tokens they drafted, one behind the other: 0, 1, ..."""
    passes_by_accepted: list[int] = field(default_factory=list, repr=False)
    """Passes by how many of these were right."""
    widths: dict[int, int] = field(default_factory=dict)
    """Rows of a batch to the number of passes that had so many."""

    def __post_init__(self) -> None:
        if not self.passes_by_draft:
            self.passes_by_draft = [0] * (self.width + 1)
            self.passes_by_accepted = [0] * (self.width + 1)

    @property
    def drafted(self) -> NDArray[np.int64]:
        """Drafts by their place behind the last accepted token."""
        return _reaching(self.passes_by_draft)

    @property
    def accepted(self) -> NDArray[np.int64]:
        """How many of them were right, with all before them right too."""
        return _reaching(self.passes_by_accepted)

    @property
    def tokens_per_forward(self) -> float:
        return self.tokens / self.passes if self.passes else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Without the prefill."""
        return self.tokens / self.decode_seconds if self.decode_seconds else 0.0

    @property
    def tokens_per_second_with_prefill(self) -> float:
        seconds = self.prefill_seconds + self.decode_seconds
        return self.tokens / seconds if seconds else 0.0

    @property
    def overhead(self) -> float:
        """Share of the decoding time outside the engine and the heads, from 0 to 1."""
        return self.loop_seconds / self.decode_seconds if self.decode_seconds else 0.0

    @property
    def loop_seconds(self) -> float:
        """The part of `decode_seconds` outside the engine and the heads."""
        return self.decode_seconds - self.engine_seconds - self.heads_seconds

    @property
    def acceptance(self) -> list[float]:
        """Share of right drafts by place, as far as there were any."""
        drafted = self.drafted
        places = int(np.count_nonzero(drafted))
        return [float(value) for value in self.accepted[:places] / drafted[:places]]

    def add(self, other: Tally) -> None:
        """Count another answer's figures in, for the totals of a conversation."""
        for name in (
            "prompt_tokens",
            "prefilled_tokens",
            "tokens",
            "passes",
            "prefill_seconds",
            "decode_seconds",
            "engine_seconds",
            "heads_seconds",
            "first_step_seconds",
        ):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for mine, theirs in (
            (self.passes_by_draft, other.passes_by_draft),
            (self.passes_by_accepted, other.passes_by_accepted),
        ):
            for length, passes in enumerate(theirs):
                mine[min(length, self.width)] += passes
        for rows, passes in other.widths.items():
            self.widths[rows] = self.widths.get(rows, 0) + passes

    def summary(self) -> dict[str, Any]:
        """The figures for a JSON object."""
        return {
            "tokens": self.tokens,
            "forward_passes": self.passes,
            "tokens_per_forward": self.tokens_per_forward,
            "tokens_per_second": self.tokens_per_second,
            "tokens_per_second_with_prefill": self.tokens_per_second_with_prefill,
            "prompt_tokens": self.prompt_tokens,
            "prefilled_tokens": self.prefilled_tokens,
            "prefill_seconds": self.prefill_seconds,
            "decode_seconds": self.decode_seconds,
            "first_token_ms": 1e3 * self.first_step_seconds,
            "heads_seconds": self.heads_seconds,
            "share_outside_llama": self.overhead,
            "acceptance_by_position": self.acceptance,
            "passes_by_width": {str(rows): passes for rows, passes in sorted(self.widths.items())},
        }


def _reaching(passes: list[int]) -> NDArray[np.int64]:
    """How many passes came to the first place, the second, ..."""
    return np.cumsum(passes[:0:-1], dtype=np.int64)[::-1]
