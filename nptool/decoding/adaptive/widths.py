"""How many rows each step of a text has: always the same, as many as were drafted, or what the policy chooses.

The loop asks before a step and tells afterwards. Adaptive widths have two modes:

- *exact*: the text keeps to one class of widths and every batch is padded to a width of it, so the text is bit for bit
  that of autoregressive decoding at any width of that class. Which class, is decided before the first step, from what
  was seen in texts before: width 1 alone, where parallel decoding is not expected to pay, or the one with the wide
  batches. A text never changes from one to the other, so inside a class without width 1 the fall-back is the class's
  cheapest width, not width 1.
- *free*: every width is possible in every step, nothing is padded, and the text may leave that of autoregressive
  decoding at a near tie.
"""

from __future__ import annotations

from nptool.decoding.adaptive.experience import Experience
from nptool.decoding.adaptive.plan import Plan
from nptool.decoding.adaptive.policy import PLAIN_BATCHES, TRIAL_STEPS
from nptool.decoding.loop.steps import Step

# A choice costs a hundred microseconds, which would be felt in every step of a small model.
_STEPS = 8
_STEPS_OF_WIDTH_1 = 16
# Where there is one width to choose, so much is learnt from at a time.
_STEPS_WITHOUT_CHOICE = 64


class AdaptiveWidth:
    """What the policy chooses for one text."""

    def __init__(self, experience: Experience, plan: Plan, *, exact: bool, plain: Experience | None = None) -> None:
        """
        Args:
            plan: that of the text, made for it from this experience among others.
            plain: the one of these that plans autoregressive decoding; None is the same one.
        """
        self.padded = exact
        self.members: tuple[int, ...] = plan.members if exact else ()
        self._widths = plan.members
        self._rate_of_text = plan.rate
        self._experience = experience
        self._plain = plain or experience
        self._doubts_plain = plan.doubts_plain and self._plain.plain_timed
        self.wants_plain_time = 1 not in plan.members and (not self._plain.plain_timed or plan.doubts_plain)
        self._rate: float | None = None
        self._width = 0
        self._left = 0
        self._steps: list[Step] = []

    def time_plain(self, length: int, seconds: float) -> None:
        """For the plans of texts to come. Not the first time, it is a trial like others."""
        self._plain.time_plain(length, seconds, lost=PLAIN_BATCHES * seconds if self._doubts_plain else 0.0)

    def choose(self, length: int, room: int, least: int = 1) -> int:
        """The same for a few steps, then what is best by then."""
        if not self._left:
            self._decide(length)
        self._left -= 1
        wanted = max(least, min(self._width, room + 1))
        if wanted == self._width:
            return wanted
        return next(width for width in self._widths if width >= wanted)

    def observe(self, length: int, rows: int, drafted: int, accepted: int, seconds: float, drafting: float) -> None:
        """Kept until the next choice."""
        self._steps.append(Step(length, rows, drafted, accepted, seconds, drafting))

    def finish(self) -> None:
        """Hand over what the last steps have shown."""
        self._experience.learn(self._steps, self._rate if self._rate_of_text is None else self._rate_of_text)
        self._steps.clear()

    def _decide(self, length: int) -> None:
        self.finish()
        if len(self._widths) == 1:
            self._width, self._left = self._widths[0], _STEPS_WITHOUT_CHOICE
            return
        choice = self._experience.choose(self._widths, length, self._width)
        self._width, self._rate = choice.width, choice.best_rate if choice.trial else None
        self._left = TRIAL_STEPS if choice.trial else _STEPS_OF_WIDTH_1 if choice.width == 1 else _STEPS
