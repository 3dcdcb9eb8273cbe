"""What decoding one model by one method has shown so far, in this text and in those before it: times and tokens.

A deterministic function of what it is told; the policy reads it. What it has learnt can be taken out and handed to
another one, in another process. Knows no clock, no engine, no file and no text.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from math import log
from statistics import median

from nptool.decoding.adaptive.calibration import Calibration
from nptool.decoding.adaptive.learnt import Learnt
from nptool.decoding.adaptive.memory import Memory, Shown
from nptool.decoding.adaptive.policy import (
    GUESSED,
    HEAD_START,
    MEASURED,
    PLAIN_START,
    TRIAL_SHARE,
    Choice,
    Prior,
    Prospect,
    Reach,
    choose,
    exponent,
    foresee,
)
from nptool.decoding.loop.steps import Drafts, Step

# Times of one width that count, newest first: their median follows a change within half as many steps, and one
# interrupted step does not move it.
_TIMES = 5
# What is left of the evidence after a step that drafted, and after one that did not, for the choice of the next step's
# width, which can be mended eight steps later: it follows a text from one part to another.
_KEPT = 1 - 1 / 24
_KEPT_UNTRIED = 1 - 1 / 64
# And for the plan of a text, which cannot be mended: two dozen steps do not tell drafts that gain a fifth from drafts
# that gain nothing.
_KEPT_LONG = 1 - 1 / 96
_KEPT_LONG_UNTRIED = 1 - 1 / 600
# By how much the exponent of the last steps must differ from that of the texts for these to be forgotten: texts are of
# another kind now. Two dozen steps are uncertain by 0.1.
_SURPRISE = 0.15
# And after a text that another method decoded.
_KEPT_SKIPPED = 1 / 2
# A step may take so much less than was calibrated while something else ran.
_UNDISTURBED = 0.8
# One row may take so much less than when it was timed last, which a text of wide steps does not show: something else
# may have run then.
_DOUBTED = 0.7
# Evidence of texts before this one, in steps of one width, at most, in a text that may change to any width, and in one
# that keeps to a class.
_CARRIED = 8.0
_CARRIED_EXACT = 24.0
# What trials may lose in another process, or have to win back there, as the share of so many steps of width 1 at most:
# enough for a text of two rows a step that costs 2.9 times as much as one.
_SAVED_STEPS = 8000


class Experience:
    """Shared by the texts of one model and one method."""

    def __init__(
        self,
        calibration: Calibration,
        widest: int,
        prior: Prior,
        *,
        drafts: Drafts,
        reach: Reach = float,
        drafting: float | None = None,
        learnt: Learnt | None = None,
    ) -> None:
        """
        Args:
            widest: the most rows of a step.
            prior: at the beginning.
            reach: the base of its curve.
            drafting: seconds of a draft, as far as they are known.
            learnt: by an experience of the same model and method; comes before prior and drafting.
        """
        self.calibration = calibration
        self.prior = prior
        within = [width for width in calibration.widths if width <= widest]
        self.widths: tuple[int, ...] = tuple(sorted({*within, min(widest, calibration.widths[-1])}))
        """What may be chosen, ascending, where bits do not matter."""
        self._drafts = drafts
        self._reach = reach
        self._ratios: dict[int, float] = {}
        self._newest_ratios: dict[int, deque[float]] = {}
        self._plain_ratios: dict[int, float] = {}
        """Width above 1 to what width 1's ratio was when a step of it was made last."""
        self._lines = {width: calibration.line(width) for width in self.widths}
        self._newest_ratio = 1.0
        self._stepped = False
        self.plain_timed = False
        """Whether steps of width 1 were timed since it was made: what everything else is compared with."""
        self._plain_stepped = False
        self._drafting: deque[float] = deque([] if drafting is None else [drafting], maxlen=_TIMES)
        self._reading: deque[float] = deque(maxlen=_TIMES)
        self._recent = Memory(_KEPT, _KEPT_UNTRIED)
        """For the next step of a text."""
        self._long = Memory(_KEPT_LONG, _KEPT_LONG_UNTRIED)
        """For the plan of a text."""
        self._rows_before = 0
        self._spent = 0.0
        self._lost = 0.0
        self._saved = HEAD_START * self._share_of_a_step
        if learnt is not None:
            self._resume(learnt)

    @property
    def classes(self) -> tuple[tuple[int, ...], ...]:
        """Classes of the widths that may be chosen."""
        found = (tuple(set(members) & set(self.widths)) for members in self.calibration.classes)
        return tuple(tuple(sorted(members)) for members in found if members)

    @property
    def used(self) -> bool:
        """Whether it was told of a step."""
        return self._spent > 0

    @property
    def pace(self) -> float | None:
        """What the last step took, as a multiple of what was calibrated; None where there was none."""
        return self._newest_ratio if self._stepped else None

    @pace.setter
    def pace(self, value: float) -> None:
        """What steps are expected to take as long as there was none."""
        self._newest_ratio = value

    @property
    def allowance(self) -> float:
        """Seconds that trials may lose now."""
        return self._saved + TRIAL_SHARE * self._spent - self._lost

    @property
    def plain_start(self) -> float:
        """Seconds that a plain text may lose beside that, as long as no step of width 1 was made."""
        return 0.0 if self._plain_stepped else PLAIN_START * self.calibration.at(1, 0)

    def begin(self, *, exact: bool) -> None:
        """Another text: what the ones before have shown is only a hint.

        Args:
            exact: whether it keeps to a class of widths.
        """
        self._rows_before = 0
        learnt, _ = exponent(self._recent.evidence, self.prior, self._reach)
        of_texts, _ = exponent(self._long.evidence, self.prior, self._reach)
        if abs(learnt - of_texts) > _SURPRISE:
            self._long = Memory(_KEPT_LONG, _KEPT_LONG_UNTRIED, self._recent.evidence)
        self.prior = replace(self.prior, exponent=learnt)
        if exact:
            self._recent = Memory(_KEPT, _KEPT_UNTRIED, self._long.evidence)
        self._recent.limit(_CARRIED_EXACT if exact else _CARRIED)

    def seconds(self, widths: Iterable[int], length: int) -> dict[int, float]:
        """t(w) now: as calibrated, corrected by what steps took lately; of this width, or else of others.

        With the time of a draft, which a step of width 1 does without.
        """
        drafting = self._seconds_of_a_draft
        found = {}
        for width in widths:
            found[width] = self._calibrated(width, length) * self._ratio(width) + (drafting if width > 1 else 0.0)
        return found

    def choose(self, widths: Sequence[int], length: int, current: int) -> Choice:
        """The width of the next steps among `widths`, behind `length` tokens."""
        seconds = self.seconds(widths, length)
        return choose(
            seconds,
            self._recent.evidence,
            current=current,
            prior=self.prior,
            reach=self._reach,
            allowance=self.allowance,
            hopeful_seconds=self._hopeful(seconds, length),
        )

    def prospects(self, length: int, *, exact: bool, bound: bool = False) -> list[Prospect]:
        """What a text of `length` tokens may be expected to be in each class of widths, or with all of them.

        Args:
            bound: see `nptool.decoding.adaptive.policy.foresee`.
        """
        found = []
        for members in (self.classes or ((1,),)) if exact else (self.widths,):
            seconds = self.seconds(members, length)
            hopeful = self._hopeful(seconds, length, self._seconds_of_a_draft)
            if members == (1,):
                hopeful[1] = min(hopeful[1], _DOUBTED * seconds[1])
            found.append(
                foresee(
                    seconds,
                    (self._long if exact else self._recent).evidence,
                    prior=self.prior,
                    reach=self._reach,
                    hopeful_seconds=hopeful,
                    start=median(self._reading) if self._reading else 0.0,
                    bound=bound,
                )
            )
        return found

    def skip(self) -> None:
        """A text was decoded by another method: what is known of this one gets older."""
        self._recent.fade(_KEPT_SKIPPED)
        self._long.fade(_KEPT_SKIPPED)
        self._settle(_KEPT_SKIPPED)

    def learnt(self) -> Learnt:
        """What another process may go on from."""
        bound = _SAVED_STEPS * self._share_of_a_step
        return Learnt(
            prior=self.prior,
            recent={width: shown for width, shown in self._recent.evidence.items() if shown.steps > 0},
            long={width: shown for width, shown in self._long.evidence.items() if shown.steps > 0},
            ratios=dict(self._ratios),
            plain_ratios=dict(self._plain_ratios),
            plain_stepped=self._plain_stepped,
            newest_ratio=self._newest_ratio,
            drafting=median(self._drafting) if self._drafting else None,
            saved=max(-bound, min(bound, self.allowance)),
            calibration=self.calibration.fingerprint,
        )

    def time_plain(self, length: int, seconds: float, *, lost: float = 0.0) -> None:
        """Take into account what one row takes behind `length` tokens, timed apart from any step.

        A text that keeps to wide steps never shows it, and a calibration that was wrong of it would stay so.

        Args:
            lost: seconds that count as lost by a trial.
        """
        self._lost += lost
        ratio = seconds / self.calibration.at(1, length)
        self._newest_ratios.pop(1, None)
        self._note_ratios(1, [ratio])
        self.plain_timed = True

    def learn(self, steps: Sequence[Step], rate: float | None) -> None:
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
            elif step.drafting:
                self._reading.append(step.drafting)
        kept = self._credit(steps)
        self._compare_times(steps)
        self._settle(kept)

    def _compare_times(self, steps: Sequence[Step]) -> None:
        """What steps took, against their calibration. Of a run of one width all but the newest would be pushed out."""
        for rows, run in groupby(steps, key=lambda step: step.rows):
            self._note_ratios(
                rows,
                [
                    (step.seconds - step.drafting) / self._calibrated(rows, step.length)
                    for step in deque(run, maxlen=_TIMES)
                ],
            )
            if rows == 1:
                self.plain_timed = self._plain_stepped = True
        if steps:
            self._stepped = True
            self._newest_ratio = self._ratios[steps[-1].rows]

    def _note_ratios(self, rows: int, ratios: Iterable[float]) -> None:
        newest = self._newest_ratios.setdefault(rows, deque(maxlen=_TIMES))
        newest.extend(ratios)
        self._ratios[rows] = median(newest)
        if rows > 1 and 1 in self._ratios:
            self._plain_ratios[rows] = self._ratios[1]

    def _resume(self, learnt: Learnt) -> None:
        """Be what another one was at its end. One time of each width is taken over, which two new ones outvote.

        Multiples of another calibration's times are not.
        """
        self.prior = replace(learnt.prior, steps=min(learnt.prior.steps, MEASURED))
        self._recent = Memory(_KEPT, _KEPT_UNTRIED, learnt.recent)
        self._long = Memory(_KEPT_LONG, _KEPT_LONG_UNTRIED, learnt.long)
        if learnt.calibration == self.calibration.fingerprint:
            for width, ratio in learnt.ratios.items():
                self._note_ratios(width, [ratio])
            self._plain_ratios = dict(learnt.plain_ratios)
            self._plain_stepped = learnt.plain_stepped
            self._newest_ratio, self._stepped = learnt.newest_ratio, bool(learnt.ratios)
        if learnt.drafting is not None:
            self._drafting = deque([learnt.drafting], maxlen=_TIMES)
        self._saved = learnt.saved

    def _credit(self, steps: Sequence[Step]) -> float:
        """Add what steps have shown to the evidence; what is left of the recent one that was there before."""
        before = [self._rows_before, *(step.rows for step in steps)]
        self._rows_before = before[-1]
        shown = [
            Shown(self._shown_by(step, rows_before), step.drafted > 0, step.accepted)
            for step, rows_before in zip(steps, before, strict=False)
        ]
        shown.reverse()
        self._long.add(shown)
        return self._recent.add(shown)

    def _shown_by(self, step: Step, rows_before: int) -> Sequence[int]:
        """Widths that a step tells of."""
        whole = step.drafted + 1
        if not step.drafted:
            return ()
        if self._drafts is Drafts.INDEPENDENT:
            return [width for width in self.widths if 1 < width <= whole]
        # What lies behind the draft of a window is padding.
        if self._drafts is Drafts.BRANCHING or 1 < step.rows <= min(whole, rows_before):
            return (step.rows,)
        return ()

    def _settle(self, kept: float) -> None:
        """What was seen fades towards what was learnt from it, not towards the first guess.

        Args:
            kept: what is left of the evidence since the last time.
        """
        learnt, _ = exponent(self._recent.evidence, self.prior, self._reach)
        self.prior = Prior(
            learnt + (self.prior.exponent - learnt) * kept, GUESSED + max(0.0, self.prior.steps - GUESSED) * kept
        )

    def _hopeful(self, seconds: Mapping[int, float], length: int, drafting: float = 0.0) -> dict[int, float]:
        """t(w) as it would be if a width had become as fast as the last one was for its calibration.

        Plain AR, which nothing may be slower than, may be faster still where it was only calibrated.

        Args:
            drafting: seconds of a draft, where they are not hoped to be gone.
        """
        found = {}
        for width, time in seconds.items():
            ratio = self._newest_ratio
            if width == 1 and width not in self._ratios:
                ratio = _UNDISTURBED * min(1.0, ratio)
            found[width] = min(time, self._calibrated(width, length) * ratio + (drafting if width > 1 else 0.0))
        return found

    def _ratio(self, width: int) -> float:
        """What a step takes, as a multiple of what was calibrated: as those of its width, or else as others.

        One row's as the last step's. A wide one's as those of the nearest wide one, or as the last step's where that is
        less: but one row being faster than calibrated makes no wide step faster than the nearest one was.
        """
        if width in self._ratios:
            own = self._ratios[width]
            # No further than one row is slowed: a width that got slower while one row was not timed has it in its own.
            return min(own * self._slowed_since(width), max(own, self._ratios.get(1, own)))
        wide = [known for known in self._ratios if known > 1]
        if width == 1 or not wide:
            return self._newest_ratio
        nearest = min(wide, key=lambda known: abs(log(known / width)))
        return min(self._ratio(nearest), max(1.0, self._newest_ratio))

    def _slowed_since(self, width: int) -> float:
        """How many times as long one row takes as when `width` was timed last, if it takes longer.

        A machine that got slower did so for all widths. Without this, one row's times are those of now and a wide
        step's those of a better moment, so that wide steps seem to pay.
        """
        if width not in self._plain_ratios:
            return 1.0
        return max(1.0, self._ratios[1] / self._plain_ratios[width])

    def _calibrated(self, width: int, length: int) -> float:
        """t(w) as calibrated; every choice asks for all of it twice."""
        if width not in self._lines:
            self._lines[width] = self.calibration.line(width)
        near, slope = self._lines[width]
        return near + slope * max(0.0, length - self.calibration.contexts[0])

    @property
    def _seconds_of_a_draft(self) -> float:
        return median(self._drafting) if self._drafting else 0.0

    @property
    def _share_of_a_step(self) -> float:
        """Seconds that trials may lose for each step of width 1."""
        return TRIAL_SHARE * self.calibration.at(1, 0)
