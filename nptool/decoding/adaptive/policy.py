"""How wide the next step shall be: what brings most tokens per second, as far as it is known. Pure functions.

A step of width w takes t(w) seconds and brings y(w) tokens, one of them certain; autoregressive decoding is w = 1. The
best width has the largest y(w) / t(w). What is not tried is not known, so now and then a width is tried that might be
better: only when an optimistic guess says so, and only as long as what all such trials have lost stays a small share of
the time. That bounds the price of trying whatever the text is. Knows no clock, no model and no text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import log, sqrt

TRIAL_SHARE = 0.015
"""Share of the time that trials may lose."""
TRIAL_STEPS = 3
"""Steps of one trial: a Jacobi window needs some before its guess is as good as its width allows."""
PLAIN_BATCHES = 24
"""Batches of one row that it takes to time it (`nptool.decoding.loop.loop.time_plain`)."""
PLAIN_START = 15
"""Steps of width 1 whose time the first plain text may lose beyond what is allowed by then, which later trials make up
for: one row's time decides on all texts."""
HEAD_START = 100
"""Steps of width 1 whose share trials may lose before as much time has passed."""
GUESSED = 2.0
"""Weight of an exponent that was guessed, as if so many steps of width 8 had shown it."""
MEASURED = 8.0
"""Weight of one that was measured on other texts: no more, so that another kind of text is learnt in a dozen steps."""
# A width must be better by so much than the one in use: changing costs a new graph in llama.cpp.
_MARGIN = 1.02
# A class without width 1 must promise so much more where nothing is known, since a text cannot leave it.
_BOUND_MARGIN = 1.1
# Weight of the curve against what a width itself has shown, in steps.
_CURVE_STEPS = 3.0
# Up to where a power is followed.
_POWER_REACH = 16.0
# How far the exponent may be from its estimate while nothing has been seen.
_DOUBT = 0.5
# Tokens that a text is expected to have when its class of widths is chosen.
_TEXT = 64

Reach = Callable[[int], float]
"""The base of the curve: y(w) is expected to be `reach(w)` to the power of the exponent. A line of drafts reaches w."""


@dataclass(frozen=True)
class Prior:
    """What is expected of a method before a step of it was made."""

    exponent: float
    """The a of `exponent`."""
    steps: float = GUESSED
    """How much it rests on: as if so many steps of width 8 had shown it."""


@dataclass(frozen=True)
class Evidence:
    """What steps of one width have shown, old ones counting less."""

    steps: float = 0.0
    tokens: float = 0.0


@dataclass(frozen=True)
class Choice:
    """A width, and how sure it is."""

    width: int
    trial: bool
    """Whether it is not the best one known but one that might be better."""
    best_rate: float
    """Tokens per second of the best width known."""


@dataclass(frozen=True)
class Prospect:
    """What may be expected of a text that keeps to some widths."""

    members: tuple[int, ...]
    rate: float
    """Tokens per second of its best width."""
    hope: float
    """The same if all is as good as it may be."""
    slowest: float
    """Seconds for a token where no draft is ever right."""
    margin: float
    """How many times as much as another one it must promise."""


def exponent(evidence: Mapping[int, Evidence], prior: Prior, reach: Reach = float) -> tuple[float, float]:
    """The a of y(w) = reach(w)**a that fits best, and how far it may be wrong.

    Measured: trained models follow w**a closely from w = 4 to 16 (2.05, 2.83 and 3.80 tokens are w**0.50), a model
    without training has a near 0, and at w = 1 the curve is right for every a. So steps of one width say something of
    all others.
    """
    unit = log(reach(8)) ** 2
    weight = prior.steps * unit
    total, seen = weight * prior.exponent, 0.0
    for width, shown in evidence.items():
        if width > 1 and shown.steps > 0:
            size = log(reach(width))
            total += shown.steps * size * log(max(1.0, shown.tokens / shown.steps))
            seen += shown.steps * size**2
    known = seen + max(0.0, prior.steps - GUESSED) * unit
    best = total / (weight + seen) if weight + seen else prior.exponent
    return best, _DOUBT / sqrt(1.0 + known)


def expected_tokens(
    widths: Iterable[int], evidence: Mapping[int, Evidence], curve: float, reach: Reach = float
) -> dict[int, float]:
    """y(w): what the width itself has shown, and where it has shown little, the curve from the next narrower one on.

    The curve reach(w)**`curve` fits best where most steps were; each width that was seen carries it on from its own
    tokens. Otherwise a class of wide steps alone is promised, by what narrow ones have shown, what no window gives.
    """
    found = {}
    reached, tokens, nothing = 1.0, 1.0, Evidence()
    for width in sorted({*widths, *evidence}):
        if width > 1:
            shown, beyond = evidence.get(width, nothing), float(reach(width))
            on_curve = _carried_on(tokens, reached, beyond, curve)
            estimate = (shown.tokens + _CURVE_STEPS * on_curve) / (shown.steps + _CURVE_STEPS)
            reached, tokens = beyond, max(1.0, min(float(width), estimate))
        found[width] = tokens
    return found


def _carried_on(tokens: float, reached: float, beyond: float, curve: float) -> float:
    """The curve from a point of it to a reach of `beyond`.

    A power up to a reach of 16, and then a hyperbola through one token for one row, whose wide windows bring ever less
    more: 3.9, 5.7, 6.5 and 6.9 tokens with 8, 16, 24 and 32 rows, of which it foresees the last two as 6.4 and 6.8.
    """
    power = max(reached, min(beyond, _POWER_REACH))
    tokens *= (power / reached) ** curve
    if beyond <= power:
        return tokens
    bend = (power / tokens - 1.0) / (power - 1.0)
    return beyond / (1.0 + bend * (beyond - 1.0))


def choose(
    seconds: Mapping[int, float],
    evidence: Mapping[int, Evidence],
    *,
    current: int,
    prior: Prior,
    reach: Reach = float,
    allowance: float = 0.0,
    hopeful_seconds: Mapping[int, float] | None = None,
) -> Choice:
    """The width of the next steps.

    Args:
        seconds: t(w) of every width that may be chosen.
        evidence: what was seen, by width.
        current: the width in use, which has the benefit of the doubt.
        allowance: seconds that a trial may lose.
        hopeful_seconds: t(w) as good as it may have become since it was last seen.
    """
    a, doubt = exponent(evidence, prior, reach)
    rates = _rates(seconds, evidence, a, reach)
    best = max(rates, key=lambda width: rates[width] * (_MARGIN if width == current else 1.0))
    hopes = {
        width: hope
        for width, hope in _rates(hopeful_seconds or seconds, evidence, a + doubt, reach).items()
        if width != best and TRIAL_STEPS * (seconds[width] - 1.0 / rates[best]) <= allowance
    }
    promising = max(hopes, key=hopes.__getitem__, default=best)
    if promising != best and hopes[promising] > rates[best] * _MARGIN:
        return Choice(promising, True, rates[best])
    return Choice(best, False, rates[best])


def bound_margin(doubt: float) -> float:
    """How many times as much a text that is bound to something must promise, by how far the exponent may be wrong.

    A text cannot leave a class of widths, or a method, where the promise is not kept, so a guess must promise more than
    what was measured.
    """
    return _MARGIN + (_BOUND_MARGIN - _MARGIN) * min(1.0, doubt / _DOUBT)


def foresee(
    seconds: Mapping[int, float],
    evidence: Mapping[int, Evidence],
    *,
    prior: Prior,
    reach: Reach = float,
    hopeful_seconds: Mapping[int, float] | None = None,
    start: float = 0.0,
    bound: bool = False,
) -> Prospect:
    """What a text may be expected to be that keeps to the widths of `seconds`. Other arguments as those of `choose`.

    Args:
        start: seconds that a text's first draft takes before it is made: heads read the prompt then.
        bound: whether it is bound to more than its widths: to a method that must promise more than the usual one, and
            is not tried by making no drafts.
    """
    a, doubt = exponent(evidence, prior, reach)
    return Prospect(
        members=tuple(seconds),
        rate=_best(_rates(seconds, evidence, a, reach), start),
        hope=_best(_rates(hopeful_seconds or seconds, evidence, a + doubt, reach), start),
        slowest=min(
            (time + _share(width, start) for width, time in seconds.items() if width > 1 or not bound),
            default=seconds.get(1, 0.0),
        ),
        margin=1.0 if 1 in seconds and not bound else bound_margin(doubt),
    )


def best_prospect(
    prospects: Sequence[Prospect], allowance: float = 0.0, plain_allowance: float | None = None
) -> tuple[int, float | None]:
    """Which of them a text shall be; if it is chosen on trial, the best known rate beside it.

    Among equals the first. One that might be better is tried where all that a text of it can lose is allowed. Of width
    1 alone nothing is doubtful but its time, so a trial is cheap where both are nearly as fast; elsewhere it is timed
    (`may_be_faster`).

    Args:
        allowance: seconds that a trial may lose.
        plain_allowance: seconds that a trial of width 1 alone may lose; None is the same.
    """
    allowed = allowance if plain_allowance is None else plain_allowance
    best = max(range(len(prospects)), key=lambda index: prospects[index].rate / prospects[index].margin)
    rate = prospects[best].rate
    trials = [
        index
        for index, prospect in enumerate(prospects)
        if index != best
        and prospect.hope > rate * _MARGIN
        and _TEXT * (prospect.slowest - 1.0 / rate) <= (allowed if prospect.members == (1,) else allowance)
    ]
    if not trials:
        return best, None
    return max(trials, key=lambda index: prospects[index].hope), rate


def may_be_faster(plain: Prospect, rate: float, allowance: float) -> bool:
    """Whether one row should be timed again, as plain autoregressive decoding might beat `rate`.

    Only where that costs less than a text on trial.

    Args:
        plain: what is expected of width 1 alone.
        allowance: seconds that trials may lose, timing one row among them.
    """
    timing = PLAIN_BATCHES / plain.hope
    return plain.hope > rate * _MARGIN and timing <= min(allowance, _TEXT * (plain.slowest - 1.0 / rate))


def _best(rates: Mapping[int, float], start: float) -> float:
    """Tokens per second of the width that is best in a text."""
    return max(1.0 / (1.0 / rate + _share(width, start)) for width, rate in rates.items())


def _share(width: int, start: float) -> float:
    """Seconds of a start for each token of a text that drafts."""
    return start / _TEXT if width > 1 else 0.0


def _rates(
    seconds: Mapping[int, float], evidence: Mapping[int, Evidence], curve: float, reach: Reach
) -> dict[int, float]:
    """Tokens per second by width."""
    tokens = expected_tokens(seconds, evidence, curve, reach)
    return {width: tokens[width] / time for width, time in seconds.items()}
