"""Chooses the method and the class of widths for a text, and then the width of its next steps.

The best width has the largest y(w) / t(w); autoregressive decoding is w = 1. Where an optimistic estimate is better, a
width, or for a whole text a class or a method, is tried, as long as all trials together have lost no more than a small
share of the time. Deterministic: reads no clock.
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
SLACK = 0.8
"""What the steps of another plan may take, as a share of what is believed: the machine may have changed."""
TEXT = 64
"""Tokens that an answer is expected to have when it is planned."""
MARGIN, BOUND = 1.02, 0.16
"""How many times as much as the one in use another width must promise, and by how much more, per unit of doubt about
the exponent, a class that the text cannot leave."""


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
    seconds: float
    """Of a step; of a plan, for each token if drafts are as bad as they may be."""
    margin: float = 1.0
    """By which `rate` is divided when plans are compared."""


class Chooser:
    """What is known of one model on one machine, from text to text."""

    def __init__(self, calibration: Calibration, learnt: dict[str, Any] | None = None) -> None:
        """Args: `learnt` is what `to_json` of an earlier process gave."""
        self.costs = Costs(calibration)
        self.gains: dict[str, Gains] = {}
        self.drafting: dict[str, tuple[float, float]] = {}
        """Method to seconds of a draft: whatever its width, and for each row of the step."""
        self.used = False
        self._known: dict[str, Any] = {}
        """Method to learnt gains, until it is added."""
        self._most = LONG * calibration.seconds[0][0]
        self._allowance = TRIAL_SHARE * self._most
        """Seconds that trials may lose now, at most LONG steps of one row."""
        self._timing = self._most
        """The same for timing one row apart, which trials of widths would leave nothing for."""
        if learnt:
            self.costs.shape = {int(width): factor for width, factor in learnt["shape"].items()}
            self.costs.pace, self.drafting = learnt["pace"], {name: tuple(t) for name, t in learnt["drafting"].items()}
            self._allowance, self._timing = learnt["allowance"]
            for name, (exponent, weight, long) in learnt["gains"].items():
                self._known[name] = exponent, weight, {int(width): tuple(shown) for width, shown in long.items()}

    def add(self, method: str, gains: Gains) -> None:
        """Let a method be used; what was learnt of it takes the place of `gains`."""
        if method in self._known:
            gains.exponent, gains.weight, gains.long = self._known.pop(method)
        self.gains[method] = gains

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
        trials = [plan for plan, promise in options.items() if plan is not best and self._worth(promise, rate, TEXT)]
        chosen = max(trials, key=lambda plan: options[plan].hope, default=best)
        plain = max((promise.hope for plan, promise in options.items() if plan.members == (1,)), default=0.0)
        # One row may have become faster. Timing it costs less than a text.
        again = plain / SLACK > rate and SETTLED / plain <= self._timing
        timed = 1 not in chosen.members and (again or 1 not in self.costs.shape)
        if timed and again:
            self._timing -= SETTLED / plain
        return chosen._replace(best_rate=None if chosen is best else rate, time_plain=timed)

    def choose(self, method: str, widths: Sequence[int], length: int, current: int) -> tuple[int, float | None]:
        """The width of the next steps and, for a trial, the rate of the best known one. `current` wins a tie."""
        found = self._promises(method, widths, length, self.gains[method].recent)
        best = max(found, key=lambda width: found[width].rate * (MARGIN if width == current else 1.0))
        rate = found[best].rate
        trials = [one for one, promise in found.items() if one != best and self._worth(promise, rate, TRIAL_STEPS)]
        chosen = max(trials, key=lambda width: found[width].hope, default=best)
        return (best, None) if chosen == best else (chosen, rate)

    def learn(self, method: str, steps: Sequence[Step], best_rate: float | None) -> None:
        """Take a segment's steps into account. Those of a trial could have brought `best_rate` tokens per second."""
        self.used = self.used or bool(steps)
        spent = sum(step.seconds for step in steps)
        lost = 0.0 if best_rate is None else spent - (sum(step.accepted for step in steps) + len(steps)) / best_rate
        self._allowance = min(self._allowance + TRIAL_SHARE * spent - lost, self._most)
        self._timing = min(self._timing + TRIAL_SHARE * spent, self._most)
        for rows, group in groupby(steps, key=lambda step: step.rows):
            run = [*group]
            seconds = median(step.seconds - step.drafting for step in run)
            self.costs.learn(rows, run[len(run) // 2].length, seconds)
        if drafting := [step.drafting for step in steps if step.drafting and step.drafted]:
            alike, each = self.drafting.get(method, (median(drafting), 0.0))
            changed = median(drafting) / (alike + each * steps[-1].rows)
            self.drafting[method] = changed * alike, changed * each
        self.gains[method].learn(steps)

    def to_json(self) -> dict[str, Any]:
        """What another process may go on from."""
        gains = {name: [found.exponent, found.weight, found.long] for name, found in self.gains.items()}
        costs = {"shape": self.costs.shape, "pace": self.costs.pace, "drafting": self.drafting}
        return {**costs, "allowance": [self._allowance, self._timing], "gains": {**self._known, **gains}}

    def _worth(self, promise: _Promise, rate: float, units: int) -> bool:
        """Whether a trial of so many tokens or steps may pay beside `rate`, and can be afforded."""
        return promise.hope > rate * MARGIN and units * (promise.seconds - 1 / rate) <= self._allowance

    def _promise(self, plan: Plan, length: int, *, bound: bool) -> _Promise:
        """What a text promises; `bound` if it cannot fall back on plain autoregressive decoding."""
        gains = self.gains[plan.method]
        exponent, doubt = gains.curve(gains.long)
        found = self._promises(plan.method, plan.members, length, gains.long)
        feared = gains.tokens(plan.members, gains.long, max(0.0, exponent - doubt))
        drafting = [width for width in plan.members if width > 1 or not bound] or plan.members
        return _Promise(
            rate=max(promise.rate for promise in found.values()),
            hope=max(promise.hope for promise in found.values()) / SLACK,
            seconds=min(found[width].seconds / feared[width] for width in drafting),
            margin=MARGIN + BOUND * doubt if bound else 1.0,
        )

    def _promises(self, method: str, widths: Sequence[int], length: int, shown: Shown) -> dict[int, _Promise]:
        gains, found = self.gains[method], {}
        exponent, doubt = gains.curve(shown)
        tokens, hoped = (gains.tokens(widths, shown, value) for value in (exponent, exponent + doubt))
        alike, each = self.drafting.get(method, (0.0, 0.0))
        for width in widths:
            now, calibrated = self.costs.seconds(width, length), self.costs.calibration.at(width, length)
            seconds = now + (alike + each * width if width > 1 else 0.0)
            found[width] = _Promise(tokens[width] / seconds, hoped[width] / min(now, calibrated), seconds)
        return found
