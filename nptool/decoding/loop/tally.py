"""The figures of one answer: tokens, forward passes, seconds, accepted drafts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass
class Tally:
    """Counted by the loop while an answer is generated. Prefill and decoding are counted separately."""

    width: int
    """Rows of a full step."""
    prompt_tokens: int = 0
    prefilled_tokens: int = 0
    """Tokens of the prompt that were not in the cache."""
    tokens: int = 0
    """Tokens of the answer, including its end token."""
    passes: int = 0
    """Forward passes without the prefill."""
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    """Time in the loop after the prefill, without what the consumer does between two steps."""
    engine_seconds: float = 0.0
    """The part of `decode_seconds` spent inside the engine."""
    heads_seconds: float = 0.0
    """The part of `decode_seconds` spent inside extra heads."""
    first_step_seconds: float = 0.0
    """Time to the first token: prefill and first step."""
    passes_by_draft: list[int] = field(default_factory=list, repr=False)
    """Passes by the tokens of their draft: 0, 1, ..."""
    passes_by_accepted: list[int] = field(default_factory=list, repr=False)
    """Passes by the number of accepted drafts: 0, 1, ..."""
    widths: Counter[int] = field(default_factory=Counter)
    """Passes by the rows of their batch."""

    def __post_init__(self) -> None:
        if not self.passes_by_draft:
            self.passes_by_draft = [0] * (self.width + 1)
            self.passes_by_accepted = [0] * (self.width + 1)

    @property
    def drafted(self) -> NDArray[np.int64]:
        """Drafts by their place after the last token of the sequence: first, second, ..."""
        return _reaching(self.passes_by_draft)

    @property
    def accepted(self) -> NDArray[np.int64]:
        """Accepted drafts by place."""
        return _reaching(self.passes_by_accepted)

    @property
    def tokens_per_forward(self) -> float:
        return _ratio(self.tokens, self.passes)

    @property
    def tokens_per_second(self) -> float:
        """Without the prefill."""
        return _ratio(self.tokens, self.decode_seconds)

    @property
    def tokens_per_second_with_prefill(self) -> float:
        return _ratio(self.tokens, self.prefill_seconds + self.decode_seconds)

    @property
    def loop_seconds(self) -> float:
        """The part of `decode_seconds` outside the engine and the heads."""
        return self.decode_seconds - self.engine_seconds - self.heads_seconds

    @property
    def overhead(self) -> float:
        """Share of `loop_seconds` in the decoding time, from 0 to 1."""
        return _ratio(self.loop_seconds, self.decode_seconds)

    @property
    def acceptance(self) -> list[float]:
        """Share of accepted drafts by place, for places that had drafts."""
        drafted = self.drafted
        places = int(np.count_nonzero(drafted))
        return [float(value) for value in self.accepted[:places] / drafted[:places]]

    def add(self, other: Tally) -> None:
        """Add another answer's figures, for totals. Drafts of more than `width` tokens count as `width` tokens."""
        for name, value in vars(other).items():
            mine = getattr(self, name)
            if isinstance(value, list):
                for depth, passes in enumerate(value):
                    mine[min(depth, self.width)] += passes
            elif name not in ("width", "widths"):
                setattr(self, name, mine + value)
        self.widths.update(other.widths)

    def summary(self) -> dict[str, Any]:
        """The figures as a JSON object."""
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


def _ratio(value: float, total: float) -> float:
    return value / total if total else 0.0


def _reaching(passes: list[int]) -> NDArray[np.int64]:
    """The number of passes that reached the first place, the second, ..."""
    return np.cumsum(passes[:0:-1], dtype=np.int64)[::-1]
