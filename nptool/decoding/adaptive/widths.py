"""The widths of one text by a chooser's plan.

Exact: every batch is padded to a width of one class, chosen before the first step, so the text is bit for bit that of
autoregressive decoding at any width of the class. Otherwise nothing is padded, a step may have any width, and the text
may differ from autoregressive decoding where two tokens are nearly equally likely.
"""

from __future__ import annotations

from nptool.decoding.adaptive.chooser import Chooser, Plan
from nptool.decoding.adaptive.gains import SHORT, TRIAL_STEPS
from nptool.decoding.loop.steps import Step


class AdaptiveWidth:
    """`Widths` that keep to one width for a segment of steps and then choose again."""

    def __init__(self, chooser: Chooser, plan: Plan, *, exact: bool) -> None:
        self.padded = exact
        self.members: tuple[int, ...] = plan.members if exact else ()
        self.wants_plain_time = plan.time_plain
        self._chooser, self._plan = chooser, plan
        self._best_rate = plan.best_rate
        self._width = self._left = 0
        # A shorter first segment shows sooner that this text is of another kind than the last ones.
        self._segment = int(SHORT / 2)
        self._steps: list[Step] = []

    def time_plain(self, length: int, seconds: float) -> None:
        """What one row takes after `length` tokens: for the plans of later texts."""
        self._chooser.costs.learn(1, length, seconds)

    def choose(self, length: int, room: int) -> int:
        """Rows of the next step: the segment's width, or as few as the room asks for."""
        if not self._left:
            self._decide(length)
        self._left -= 1
        return next(width for width in self._plan.members if width >= min(self._width, room + 1))

    def observe(self, step: Step) -> None:
        """Keep the step until the end of the segment."""
        self._steps.append(step)

    def finish(self) -> None:
        """Learn from the steps since the last choice."""
        self._chooser.learn(self._plan.method, self._steps, self._best_rate)
        self._steps.clear()

    def _decide(self, length: int) -> None:
        self.finish()
        self._width, trial_rate = self._chooser.choose(self._plan.method, self._plan.members, length, self._width)
        self._left, self._segment = (self._segment, int(SHORT)) if trial_rate is None else (TRIAL_STEPS, self._segment)
        self._best_rate = self._plan.best_rate or trial_rate
