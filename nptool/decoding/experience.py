"""What decoding one model by one method has shown so far, in this text and in those before it: times and tokens.

A deterministic function of what it is told; the policy reads it. Knows no clock, no engine and no text.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from nptool.decoding.calibration import Calibration
from nptool.decoding.policy import HEAD_START, TRIAL_SHARE, Choice, Evidence, best_class, choose, exponent

# Times of one width that count, newest first: their median follows a change within half as many steps, and one
# interrupted step does not move it.
_TIMES = 5
# What is left of the evidence after a step that drafted, and after one that did not.
_KEPT = 1 - 1 / 24
_KEPT_UNTRIED = 1 - 1 / 64
# Evidence of texts before this one, in steps of one width, at most.
_CARRIED = 8.0
# Tokens that a text is expected to have when its class of widths is chosen.
_TEXT = 64


@dataclass(frozen=True)
class Step:
    """What one forward pass was and cost."""

    length: int
    """Tokens of the text before it."""
    rows: int
    drafted: int
    accepted: int
    seconds: float
    drafting: float = 0.0
    """The part of `seconds` spent in models that draft."""


class Experience:
    """Shared by the texts of one model and one method."""

    def __init__(self, calibration: Calibration, widest: int, prior: float, *, independent: bool) -> None:
        """
        Args:
            widest: the most rows of a step.
            prior: at the beginning; see `nptool.decoding.policy.exponent`.
            independent: whether a draft's tokens do not depend on how long it is, so that a wide step tells what a
                narrow one would have brought; not so in a Jacobi window, which gets better by what it iterates.
        """
        self.calibration = calibration
        self.prior = prior
        within = [width for width in calibration.widths if width <= widest]
        self.widths: tuple[int, ...] = tuple(sorted({*within, min(widest, calibration.widths[-1])}))
        """What may be chosen, ascending, where bits do not matter."""
        self._independent = independent
        self._ratios: dict[int, deque[float]] = {}
        self._newest_ratio = 1.0
        self._drafting: deque[float] = deque(maxlen=_TIMES)
        self._evidence: dict[int, Evidence] = {}
        self._rows_before = 0
        self._spent = 0.0
        self._lost = 0.0

    @property
    def classes(self) -> tuple[tuple[int, ...], ...]:
        """Classes of the widths that may be chosen."""
        found = (tuple(set(members) & set(self.widths)) for members in self.calibration.classes)
        return tuple(tuple(sorted(members)) for members in found if members)

    def begin(self) -> None:
        """Another text: what the ones before have shown is only a hint."""
        self._rows_before = 0
        # What was seen fades towards what was learnt from it, not towards the first guess.
        self.prior, _ = exponent(self._evidence, self.prior)
        for width, shown in self._evidence.items():
            if shown.steps > _CARRIED:
                scale = _CARRIED / shown.steps
                self._evidence[width] = Evidence(_CARRIED, shown.tokens * scale)

    def seconds(self, widths: Iterable[int], length: int) -> dict[int, float]:
        """t(w) now: as calibrated, corrected by what steps took lately; of this width, or else of the last one.

        With the time of a draft, which a step of width 1 does without.
        """
        drafting = median(self._drafting) if self._drafting else 0.0
        found = {}
        for width in widths:
            ratio = median(self._ratios[width]) if width in self._ratios else self._newest_ratio
            found[width] = self.calibration.at(width, length) * ratio + (drafting if width > 1 else 0.0)
        return found

    def choose(self, widths: Sequence[int], length: int, current: int) -> Choice:
        """The width of the next steps among `widths`, behind `length` tokens."""
        seconds = self.seconds(widths, length)
        hopeful = {
            width: min(time, self.calibration.at(width, length) * self._newest_ratio) for width, time in seconds.items()
        }
        return choose(
            seconds,
            self._evidence,
            current=current,
            prior=self.prior,
            allowance=self._allowance(length),
            hopeful_seconds=hopeful,
        )

    def choose_class(self, length: int) -> tuple[tuple[int, ...], float | None]:
        """The class for a text of `length` tokens; if it is chosen on trial, the best known rate beside it."""
        classes, seconds = self.classes, self.seconds(self.widths, length)
        best = best_class(classes, seconds, self._evidence, self.prior)
        rate = choose({width: seconds[width] for width in best}, self._evidence, current=0, prior=self.prior).best_rate
        for members in classes:
            times = {width: seconds[width] for width in members}
            loss = _TEXT * (min(times.values()) - 1.0 / rate)
            if members == best or loss > self._allowance(length):
                continue
            hope = choose({0: 1.0 / rate, **times}, self._evidence, current=0, prior=self.prior, allowance=float("inf"))
            if hope.width in members:
                return members, rate
        return best, None

    def learn(self, steps: Iterable[Step], rate: float | None) -> None:
        """Take steps into account.

        Args:
            rate: tokens per second that the best known width would have brought, where these were a trial.
        """
        for step in steps:
            self._spent += step.seconds
            if rate is not None:
                self._lost = max(0.0, self._lost + step.seconds - (step.accepted + 1) / rate)
            if step.drafted:
                self._drafting.append(step.drafting)
            ratio = (step.seconds - step.drafting) / self.calibration.at(step.rows, step.length)
            self._ratios.setdefault(step.rows, deque(maxlen=_TIMES)).append(ratio)
            self._newest_ratio = median(self._ratios[step.rows])
            self._fade(_KEPT if step.drafted else _KEPT_UNTRIED)
            self._credit(step)
            self._rows_before = step.rows

    def _credit(self, step: Step) -> None:
        whole = step.drafted + 1
        if self._independent:
            widths = [width for width in self.widths if 1 < width <= whole]
        else:
            # A guess is worth what the step before could see of it, and padding has drafted nothing.
            widths = [step.rows] if 1 < step.rows <= min(whole, self._rows_before) else []
        for width in widths:
            shown = self._evidence.get(width, Evidence())
            self._evidence[width] = Evidence(shown.steps + 1, shown.tokens + 1 + min(step.accepted, width - 1))

    def _fade(self, kept: float) -> None:
        for width, shown in self._evidence.items():
            self._evidence[width] = Evidence(shown.steps * kept, shown.tokens * kept)

    def _allowance(self, length: int) -> float:
        start = HEAD_START * self.calibration.at(1, length)
        return TRIAL_SHARE * (self._spent + start) - self._lost
