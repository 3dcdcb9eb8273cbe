"""What a step brings: y(w), the tokens that a step of w rows adds to the sequence, one of them certain.

y(w) is expected to be w to the power of an exponent that steps of all widths teach, which trained models follow closely
up to 16 rows. Where a width itself has shown something, that comes first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import exp, log, sqrt

from nptool.decoding.loop.steps import Step

TRAINED = 0.5
"""Exponent of a model that was trained to draft, before its first step; of any other it is 0. While nothing has been
seen, the exponent may be off by as much."""
TRIAL_STEPS = 3
"""Steps of one trial of a width, which a Jacobi window needs until its guess is as good as its width allows. An
expectation that was not measured weighs as much as one trial."""
SHORT, LONG = 24.0, 128.0
"""Steps that the memories for the next step and for the next text reach back."""
BEND = 16.0
"""Rows up to which the power holds; beyond, y(w) has diminishing returns."""
_UNIT = log(8) ** 2
"""Weight of a step of 8 rows."""

Shown = dict[int, tuple[float, float]]
"""By width, steps and their tokens, old ones counting less."""


class Gains:
    """y(w) of one method, by two memories of steps: one for the next step, and one for the plan of the next text."""

    def __init__(self, exponent: float, weight: float = TRIAL_STEPS, *, independent: bool = False) -> None:
        """
        Args:
            exponent: is expected before the first step, as if `weight` steps of 8 rows had shown it.
            independent: see `Method`.
        """
        self.exponent, self.weight = exponent, weight
        self.recent, self.long = Shown(), Shown()
        self._independent = independent
        self._rows_before = 0

    def curve(self, shown: Shown) -> tuple[float, float]:
        """The exponent that fits best, and how far it may be wrong."""
        weight, seen = self.weight * _UNIT, 0.0
        total = weight * self.exponent
        for width, (steps, tokens) in shown.items():
            size = log(width)
            total += steps * size * log(tokens / steps)
            seen += steps * size**2
        known = seen + max(0.0, self.weight - TRIAL_STEPS) * _UNIT
        return total / (weight + seen), TRAINED / sqrt(1.0 + known)

    def tokens(self, widths: Iterable[int], shown: Shown, exponent: float) -> dict[int, float]:
        """y(w): what the width itself has shown and, where that is little, the curve from the next narrower one on."""
        found, curve, tokens = {1: 1.0}, 1.0, 1.0
        for width in sorted({*widths, *shown} - {1}):
            (steps, brought), before = shown.get(width, (0.0, 0.0)), curve
            curve = power_with_bend(width, exponent)
            estimate = (brought + TRIAL_STEPS * tokens * curve / before) / (steps + TRIAL_STEPS)
            found[width] = tokens = 1.0 if estimate < 1.0 else min(float(width), estimate)
        return found

    def begin(self) -> None:
        """Begin a text: the texts before are only a hint for its steps."""
        self._rows_before, self.recent = 0, {}
        for width, (steps, tokens) in self.long.items():
            share = min(1.0, SHORT / steps)
            self.recent[width] = share * steps, share * tokens

    def learn(self, steps: Sequence[Step]) -> None:
        """Take the steps of one segment into account."""
        gained = Shown()
        for step in steps:
            for width in self._told_by(step):
                count, tokens = gained.get(width, (0.0, 0.0))
                gained[width] = count + 1, tokens + 1 + min(step.accepted, width - 1)
            self._rows_before = step.rows
        kept = exp(-len(steps) / SHORT)
        self.recent, self.long = _joined(self.recent, kept, gained), _joined(self.long, exp(-len(steps) / LONG), gained)
        (learnt, doubt), (of_texts, doubt_of_texts) = self.curve(self.recent), self.curve(self.long)
        if abs(learnt - of_texts) > doubt + doubt_of_texts:
            # Texts are of another kind now.
            self.long = dict(self.recent)
        # The expectation moves to what was learnt as the steps that showed it fade.
        self.exponent = learnt + (self.exponent - learnt) * kept
        if self.recent:
            self.weight = TRIAL_STEPS + max(0.0, self.weight - TRIAL_STEPS) * kept

    def _told_by(self, step: Step) -> Sequence[int]:
        """Widths that a step tells of; the last drafts of a window that has just become wider are padding."""
        whole = step.drafted + 1
        if self._independent:
            return range(2, whole + 1)
        return (step.rows,) if step.drafted and step.rows <= min(whole, self._rows_before) else ()


def power_with_bend(width: int, exponent: float) -> float:
    """`width` to the power of `exponent` up to BEND, and a hyperbola through one token for one row beyond."""
    if width <= BEND:
        return float(width**exponent)
    bend = float(BEND ** (1 - exponent) - 1) / (BEND - 1)
    return width / (1 + bend * (width - 1))


def _joined(old: Shown, kept: float, gained: Shown) -> Shown:
    """A share of the old steps, and new ones. What is left of less than a tenth of a step is forgotten."""
    found = {width: (kept * steps, kept * tokens) for width, (steps, tokens) in old.items() if kept * steps > 0.1}
    for width, (count, tokens) in gained.items():
        steps, before = found.get(width, (0.0, 0.0))
        found[width] = steps + count, before + tokens
    return found
