"""What a step brings: y(w), the tokens that a step of w rows adds to the sequence, one of them certain.

y(w) is expected to be w to the power of an exponent that steps of all widths teach, which trained models follow closely
up to 16 rows. Where a width itself has shown something, that comes first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from math import exp, log, sqrt
from typing import Any

import numpy as np

from nptool.decoding.loop.steps import Drafts, Step
from nptool.decoding.proposers.methods import JACOBI, JACOBI_BLOCK, LOOKAHEAD, Method
from nptool.decoding.proposers.tree import Shares, assumed_shares, expected_tokens
from nptool.heads import ACCURACY_KEY, ACCURACY_RANKS_KEY
from nptool.method_note import METHOD_KEY, measured_in

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

WINDOW_GAIN = 1.36
"""Tokens that a sliding window of n adds to one, relative to a block of n, which is nearly done at its end."""

Reach = Callable[[int], float]
"""The base of the power: the tokens of a step of w rows if its drafts are as right as they can be."""
Shown = dict[int, tuple[float, float]]
"""By width, steps and their tokens, old ones counting less."""


class Gains:
    """y(w) of one method: from the steps of the current text, and from the last few texts."""

    def __init__(self, exponent: float, weight: float = TRIAL_STEPS, *, drafts: Drafts, reach: Reach = float) -> None:
        """Args: `exponent` is expected before the first step, as if `weight` steps of 8 rows had shown it."""
        self.exponent, self.weight = exponent, weight
        self.recent, self.long = Shown(), Shown()
        self._drafts, self._reach, self._unit = drafts, reach, log(reach(8)) ** 2
        self._rows_before = 0

    def curve(self, shown: Shown) -> tuple[float, float]:
        """The exponent that fits best, and how far it may be wrong."""
        weight = self.weight * self._unit
        total, seen = weight * self.exponent, 0.0
        for width, (steps, tokens) in shown.items():
            if width > 1:
                size = log(self._reach(width))
                total += steps * size * log(max(1.0, tokens / steps))
                seen += steps * size**2
        known = seen + max(0.0, self.weight - TRIAL_STEPS) * self._unit
        # Drafts that cannot be right have no curve.
        best = total / (weight + seen) if weight + seen else self.exponent
        return best, TRAINED / sqrt(1.0 + known)

    def tokens(self, widths: Iterable[int], shown: Shown, exponent: float) -> dict[int, float]:
        """y(w): what the width itself has shown and, where that is little, the curve from the next narrower one on."""
        found, curve, tokens = dict[int, float](), 1.0, 1.0
        for width in sorted({*widths, *shown}):
            if width > 1:
                (steps, brought), before = shown.get(width, (0.0, 0.0)), curve
                curve = power_with_bend(self._reach(width), exponent)
                estimate = (brought + TRIAL_STEPS * tokens * curve / before) / (steps + TRIAL_STEPS)
                tokens = max(1.0, min(float(width), estimate))
            found[width] = tokens
        return found

    def begin(self) -> None:
        """Begin a text: the texts before are only a hint for its steps."""
        self._rows_before = 0
        shares = {width: min(1.0, SHORT / steps) for width, (steps, _) in self.long.items() if steps > 0}
        self.recent = {
            width: (share * self.long[width][0], share * self.long[width][1]) for width, share in shares.items()
        }

    def learn(self, steps: Sequence[Step]) -> None:
        """Take the steps of one segment into account."""
        gained, drafting = Shown(), 0
        for step in steps:
            drafting += step.drafted > 0
            for width in self._told_by(step):
                count, tokens = gained.get(width, (0.0, 0.0))
                gained[width] = count + 1, tokens + 1 + min(step.accepted, width - 1)
            self._rows_before = step.rows
        # A step that drafts nothing fades older ones a quarter as much.
        worth = (3 * drafting + len(steps)) / 4
        kept = exp(-worth / SHORT)
        self.recent, self.long = _joined(self.recent, kept, gained), _joined(self.long, exp(-worth / LONG), gained)
        (learnt, doubt), (of_texts, doubt_of_texts) = self.curve(self.recent), self.curve(self.long)
        if abs(learnt - of_texts) > doubt + doubt_of_texts:
            # Texts are of another kind now.
            self.long = dict(self.recent)
        # The expectation moves to what was learnt as the steps that showed it fade.
        self.exponent = learnt + (self.exponent - learnt) * kept
        self.weight = TRIAL_STEPS + max(0.0, self.weight - TRIAL_STEPS) * kept

    def _told_by(self, step: Step) -> Sequence[int]:
        """Widths that a step tells of."""
        whole = step.drafted + 1
        if not step.drafted:
            return ()
        if self._drafts is Drafts.INDEPENDENT:
            return range(2, whole + 1)
        # The last drafts of a window that has just become wider are padding.
        return (step.rows,) if self._drafts is Drafts.BRANCHING or step.rows <= min(whole, self._rows_before) else ()


def power_with_bend(reach: float, exponent: float) -> float:
    """`reach` to the power of `exponent` up to BEND, and a hyperbola through one token for one row beyond."""
    if reach <= BEND:
        return float(reach**exponent)
    bend = float(BEND ** (1 - exponent) - 1) / (BEND - 1)
    return reach / (1 + bend * (reach - 1))


def first_gains(metadata: Mapping[str, Any], method: Method, heads: int = 1, shares: Shares | None = None) -> Gains:
    """What a GGUF's metadata say of a method before its first step.

    Args:
        heads: n of the model, its own included.
        shares: how often the first, second, ... choice of heads 2..n was right on held-out text.
    """
    reach: Reach = float
    tokens, rows = None, 1
    accuracy, ranks = metadata.get(ACCURACY_KEY), metadata.get(ACCURACY_RANKS_KEY)
    measured = measured_in(metadata) if method.name in (JACOBI, JACOBI_BLOCK, LOOKAHEAD) else None
    if method.heads and isinstance(accuracy, (list, tuple)) and accuracy and isinstance(ranks, int) and ranks > 0:
        # A draft counts where all before it are right too.
        firsts = np.asarray(accuracy, dtype=np.float64)[::ranks]
        tokens, rows = 1.0 + float(np.cumprod(firsts).sum()), len(firsts) + 1
    elif measured is not None:
        gain = WINDOW_GAIN if method.name == JACOBI else 1.0
        tokens, rows = 1.0 + gain * (measured.tokens_per_forward - 1.0), measured.block_size
    if method.drafts is Drafts.BRANCHING:
        # The curve is what the accuracies foresee, so they are the 1 in the exponent.
        reach = partial(expected_tokens, shares or assumed_shares(heads - 1))
        return Gains(1.0, TRIAL_STEPS if tokens is None else SHORT / 2, drafts=method.drafts, reach=reach)
    if tokens is not None and rows > 1:
        return Gains(log(max(1.0, min(tokens, rows))) / log(rows), SHORT / 2, drafts=method.drafts)
    trained = method.heads or metadata.get(METHOD_KEY) == "cllm"
    return Gains(TRAINED if trained else 0.0, drafts=method.drafts)


def _joined(old: Shown, kept: float, gained: Shown) -> Shown:
    """A share of the old steps, and new ones. What is left of less than a tenth of a step is forgotten."""
    found = {width: (kept * steps, kept * tokens) for width, (steps, tokens) in old.items() if kept * steps > 0.1}
    for width, (count, tokens) in gained.items():
        steps, before = found.get(width, (0.0, 0.0))
        found[width] = steps + count, before + tokens
    return found
