"""Which method and class of widths a text is decoded by, and how wide its next steps are.

The best width has the largest y(w) / t(w); autoregressive decoding is w = 1. What is not tried is not known: now and
then a width, or for a whole text a class or a method, is tried because an optimistic estimate says so, as long as all
such trials have lost no more than a small share of the time. Deterministic, without a clock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from statistics import median
from typing import Any, NamedTuple

from nptool.decoding.adaptive.cost import Calibration, Costs
from nptool.decoding.adaptive.gains import LONG, TRIAL_STEPS, Gains, Shown
from nptool.decoding.loop.steps import Step
from nptool.decoding.loop.timing import SETTLED

TRIAL_SHARE = 0.015
"""Share of the time that trials may lose."""
TEXT = 64
"""Tokens that an answer is expected to have when it is planned."""
MARGIN, BOUND = 1.02, 0.16
"""How many times as much another width must promise than the one in use, and how much more by the doubt of the exponent
where the text cannot leave it."""


class Plan(NamedTuple):
    """How one text is decoded."""

    method: str
    members: tuple[int, ...]
    """Widths that its steps may have, ascending."""
    best_rate: float | None = None
    """Tokens per second of the best known plan, where this one is a trial."""
    time_plain: bool = False
    """Whether one row should be timed before the first step, as no step will show it."""


class _Promise(NamedTuple):
    """Of a width, or of the best one of a plan."""

    rate: float
    """Tokens per second."""
    hope: float
    """The same if all is as good as it may be."""
    fear: float
    """The same if drafts are as bad as they may be."""
    seconds: float = 0.0
    """Of a step."""
    margin: float = 1.0
    """How many times as much as another plan it must promise."""


class Chooser:
    """What is known of one model on one machine, from text to text."""

    def __init__(self, calibration: Calibration, learnt: Any = None) -> None:
        """
        Args:
            learnt: `to_json` of another process.

        Raises:
            ValueError, TypeError, KeyError, AttributeError: `learnt` is something else.
        """
        self.costs = Costs(calibration)
        self.gains: dict[str, Gains] = {}
        """By method."""
        self.drafting: dict[str, float] = {}
        """Seconds of a draft, by method."""
        self.used = False
        self._reading: dict[str, float] = {}
        """Seconds before a text's first draft, in which heads read the prompt; by method."""
        self._known: dict[str, Any] = {}
        """Learnt gains of methods that were not added yet."""
        self._most = LONG * calibration.seconds[0][0]
        self._allowance = TRIAL_SHARE * self._most
        """Seconds that trials may lose now; at most LONG steps of one row."""
        if learnt is not None:
            self._resume(learnt)

    def add(self, method: str, gains: Gains) -> None:
        """Let a method be used; what was learnt of it takes the place of `gains`."""
        if method in self._known:
            gains.exponent, gains.weight, gains.long = self._known.pop(method)
        self.gains[method] = gains

    def knows(self, method: str) -> bool:
        """Whether the method was used before, in this process or in another."""
        return method in self._known or method in self.gains

    def widths(self, widest: int) -> tuple[int, ...]:
        """Widths that steps of at most `widest` rows may have, ascending."""
        known = self.costs.calibration.widths
        return tuple(sorted({*(width for width in known if width <= widest), min(widest, known[-1])}))

    def classes(self, widest: int) -> list[tuple[int, ...]]:
        """The same by class."""
        widths = self.widths(widest)
        found = [tuple(width for width in members if width in widths) for members in self.costs.calibration.classes]
        return [members for members in found if members] or [(1,)]

    def plan(self, widest: Mapping[str, int], length: int, *, exact: bool) -> Plan:
        """Begin a text of `length` tokens.

        Args:
            widest: the methods that may be used, the usual one first, to the most rows of their steps.
            exact: whether the text keeps to one class of widths.
        """
        options = dict[Plan, _Promise]()
        for number, (method, most) in enumerate(widest.items()):
            self.gains[method].begin()
            for members in self.classes(most) if exact else [self.widths(most)]:
                # Plain autoregressive decoding is the same in every method.
                if number == 0 or members != (1,):
                    plan = Plan(method, members)
                    options[plan] = self._promise(plan, length, bound=number > 0 or 1 not in members)
        best = max(options, key=lambda plan: options[plan].rate / options[plan].margin)
        rate = options[best].rate
        trials = [
            plan
            for plan, promise in options.items()
            if promise.hope > rate * MARGIN and TEXT * (1 / promise.fear - 1 / rate) <= self._allowance
        ]
        chosen = max(trials, key=lambda plan: options[plan].hope, default=best)
        plain = max((promise.hope for plan, promise in options.items() if plan.members == (1,)), default=0.0)
        timed = 1 not in chosen.members and self._times_one_row(plain > rate * MARGIN, plain)
        return chosen._replace(best_rate=None if chosen is best else rate, time_plain=timed)

    def choose(self, method: str, widths: Sequence[int], length: int, current: int) -> tuple[int, float | None]:
        """The width of the next steps after `length` tokens and, where it is a trial, the rate of the best known one.

        Args:
            current: the width in use, which is kept at a tie.
        """
        found = self._promises(method, widths, length, self.gains[method].recent)
        best = max(found, key=lambda width: found[width].rate * (MARGIN if width == current else 1.0))
        rate = found[best].rate
        trials = [
            width
            for width, promise in found.items()
            if promise.hope > rate * MARGIN and TRIAL_STEPS * (promise.seconds - 1 / rate) <= self._allowance
        ]
        chosen = max(trials, key=lambda width: found[width].hope, default=best)
        return (best, None) if chosen == best else (chosen, rate)

    def learn(self, method: str, steps: Sequence[Step], best_rate: float | None) -> None:
        """Take the steps of one segment into account.

        Args:
            best_rate: tokens per second that the best known width would have brought, where these were a trial.
        """
        self.used = self.used or bool(steps)
        spent = sum(step.seconds for step in steps)
        lost = 0.0 if best_rate is None else spent - (sum(step.accepted for step in steps) + len(steps)) / best_rate
        self._allowance = min(self._allowance + TRIAL_SHARE * spent - lost, self._most)
        for rows, run in groupby(steps, key=lambda step: step.rows):
            self.costs.learn(rows, [(step.length, step.seconds - step.drafting) for step in run])
        if drafting := [step.drafting for step in steps if step.drafting and step.drafted]:
            self.drafting[method] = median(drafting)
        if reading := [step.drafting for step in steps if step.drafting and not step.drafted]:
            self._reading[method] = median(reading)
        self.gains[method].learn(steps)

    def to_json(self) -> dict[str, Any]:
        """What another process may go on from."""
        gains = {name: [found.exponent, found.weight, found.long] for name, found in self.gains.items()}
        costs = {"shape": self.costs.shape, "pace": self.costs.pace, "drafting": self.drafting}
        return {**costs, "allowance": self._allowance, "gains": {**self._known, **gains}}

    def _resume(self, learnt: Any) -> None:
        self.costs.shape = {int(width): _positive(factor) for width, factor in learnt["shape"].items()}
        self.costs.pace = _positive(learnt["pace"])
        self.drafting = {method: _positive(seconds) for method, seconds in learnt["drafting"].items()}
        self._allowance = max(-self._most, min(self._most, float(learnt["allowance"])))
        for name, (exponent, weight, long) in learnt["gains"].items():
            shown = {int(width): (_positive(steps), _positive(tokens)) for width, (steps, tokens) in long.items()}
            self._known[name] = max(0.0, float(exponent)), _positive(weight), shown

    def _promise(self, plan: Plan, length: int, *, bound: bool) -> _Promise:
        """What a text by a plan promises; `bound` if it cannot fall back on plain autoregressive decoding."""
        gains, start = self.gains[plan.method], self._reading.get(plan.method, 0.0) / TEXT
        found = self._promises(plan.method, plan.members, length, gains.long)
        rates = [1 / (1 / one.rate + start) if width > 1 else one.rate for width, one in found.items()]
        fears = [1 / (1 / one.fear + start) for width, one in found.items() if width > 1 or not bound]
        return _Promise(
            rate=max(rates),
            hope=max(one.hope for one in found.values()),
            fear=max(fears, default=found[plan.members[0]].fear),
            margin=MARGIN + BOUND * gains.curve(gains.long)[1] if bound else 1.0,
        )

    def _promises(self, method: str, widths: Sequence[int], length: int, shown: Shown) -> dict[int, _Promise]:
        gains, drafting = self.gains[method], self.drafting.get(method, 0.0)
        exponent, doubt = gains.curve(shown)
        levels = (exponent, exponent + doubt, max(0.0, exponent - doubt))
        tokens, hoped, feared = (gains.tokens(widths, shown, level) for level in levels)
        found = {}
        for width in widths:
            now, least = self.costs.seconds(width, length)
            seconds = now + drafting if width > 1 else now
            found[width] = _Promise(tokens[width] / seconds, hoped[width] / least, feared[width] / seconds, seconds)
        return found

    def _times_one_row(self, may_pay: bool, hope: float) -> bool:
        """Whether a text of wide steps begins with timing one row: the first time, and where that may pay."""
        if 1 not in self.costs.shape:
            return True
        if not may_pay or (price := 3 * SETTLED / hope) > self._allowance:
            return False
        self._allowance -= price
        return True


def _positive(value: Any) -> float:
    number = float(value)
    if not 0 < number < float("inf"):
        raise ValueError(f"{value} is not a positive number")
    return number
