"""What steps have shown, by width, and how it fades: the faster, the sooner a change is seen and the less is known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from nptool.decoding.adaptive.policy import Evidence


class Shown(NamedTuple):
    """What one step has shown."""

    widths: Sequence[int]
    """Those it tells of."""
    drafted: bool
    accepted: int
    """Tokens beside the certain one; a narrower width would have brought no more than it has rows for."""


class Memory:
    """Evidence of which a part is lost with every step."""

    def __init__(self, kept: float, kept_untried: float, evidence: Mapping[int, Evidence] | None = None) -> None:
        """
        Args:
            kept: what is left of the evidence after a step that drafted.
            kept_untried: and after one that did not.
        """
        self.evidence: dict[int, Evidence] = dict(evidence or {})
        self._kept = kept
        self._kept_untried = kept_untried

    def add(self, steps: Iterable[Shown]) -> float:
        """Add what steps have shown; what is left of the old.

        Args:
            steps: from the newest to the oldest: a step's share is what those behind it leave of it.
        """
        kept, gained = 1.0, dict[int, tuple[float, float]]()
        for widths, drafted, accepted in steps:
            for width in widths:
                count, tokens = gained.get(width, (0.0, 0.0))
                gained[width] = count + kept, tokens + kept * (1 + min(accepted, width - 1))
            kept *= self._kept if drafted else self._kept_untried
        self.fade(kept)
        for width, (count, tokens) in gained.items():
            shown = self.evidence.get(width, Evidence())
            self.evidence[width] = Evidence(shown.steps + count, shown.tokens + tokens)
        return kept

    def fade(self, kept: float) -> None:
        """Lose all but a share."""
        for width, shown in self.evidence.items():
            self.evidence[width] = Evidence(shown.steps * kept, shown.tokens * kept)

    def limit(self, steps: float) -> None:
        """Keep so many steps of each width at most."""
        for width, shown in self.evidence.items():
            if shown.steps > steps:
                self.evidence[width] = Evidence(steps, shown.tokens * steps / shown.steps)
