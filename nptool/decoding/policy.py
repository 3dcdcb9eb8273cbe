"""How wide the next step shall be: what brings most tokens per second, as far as it is known. Pure functions.

A step of width w takes t(w) seconds and brings y(w) tokens, one of them certain; autoregressive decoding is w = 1. The
best width has the largest y(w) / t(w). What is not tried is not known, so now and then a width is tried that might be
better: only when an optimistic guess says so, and only as long as what all such trials have lost stays a small share of
the time. That bounds the price of trying whatever the text is. Knows no clock, no model and no text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log, sqrt

TRIAL_SHARE = 0.015
"""Share of the time that trials may lose."""
TRIAL_STEPS = 3
"""Steps of one trial: a Jacobi window needs some before its guess is as good as its width allows."""
HEAD_START = 100
"""Steps of width 1 whose share trials may lose before as much time has passed."""
# A width must be better by so much than the one in use: changing costs a new graph in llama.cpp.
_MARGIN = 1.02
# A class without width 1 must promise so much more, since a text cannot leave it where the promise is not kept.
_CLASS_MARGIN = 1.1
# Weight of the curve against what a width itself has shown, in steps.
_CURVE_STEPS = 3.0
# Weight of the prior exponent, as if so many steps of width 8 had shown it.
_PRIOR_STEPS = 2.0
# How far the exponent may be from its estimate while nothing has been seen.
_DOUBT = 0.5


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


def exponent(evidence: Mapping[int, Evidence], prior: float) -> tuple[float, float]:
    """The a of y(w) = w**a that fits best, and how far it may be wrong.

    Measured: trained models follow such a curve closely from w = 4 to 16 (2.05, 2.83 and 3.80 tokens are w**0.50), a
    model without training has a near 0, and at w = 1 the curve is right for every a. So steps of one width say
    something of all others.

    Args:
        prior: a before anything was seen.
    """
    weight = _PRIOR_STEPS * log(8) ** 2
    total, seen = weight * prior, 0.0
    for width, shown in evidence.items():
        if width > 1 and shown.steps > 0:
            size = log(width)
            total += shown.steps * size * log(max(1.0, shown.tokens / shown.steps))
            seen += shown.steps * size**2
    return total / (weight + seen), _DOUBT / sqrt(1.0 + seen)


def expected_tokens(width: int, evidence: Evidence, curve: float) -> float:
    """y(w): what the width itself has shown, and the curve w**`curve` where it has shown little."""
    if width == 1:
        return 1.0
    known = evidence.tokens + _CURVE_STEPS * float(width**curve)
    return max(1.0, min(float(width), known / (evidence.steps + _CURVE_STEPS)))


def choose(
    seconds: Mapping[int, float],
    evidence: Mapping[int, Evidence],
    *,
    current: int,
    prior: float,
    allowance: float = 0.0,
    hopeful_seconds: Mapping[int, float] | None = None,
) -> Choice:
    """The width of the next steps.

    Args:
        seconds: t(w) of every width that may be chosen.
        evidence: what was seen, by width.
        current: the width in use, which has the benefit of the doubt.
        prior: exponent of the model's curve before anything was seen, see `exponent`.
        allowance: seconds that a trial may lose.
        hopeful_seconds: t(w) as good as it may have become since it was last seen.
    """
    a, doubt = exponent(evidence, prior)
    nothing = Evidence()
    rates = {width: expected_tokens(width, evidence.get(width, nothing), a) / time for width, time in seconds.items()}
    best = max(rates, key=lambda width: rates[width] * (_MARGIN if width == current else 1.0))
    hope = hopeful_seconds or seconds
    hopes = {
        width: expected_tokens(width, evidence.get(width, nothing), a + doubt) / hope[width]
        for width in seconds
        if width != best and TRIAL_STEPS * (seconds[width] - 1.0 / rates[best]) <= allowance
    }
    promising = max(hopes, key=hopes.__getitem__, default=best)
    if promising != best and hopes[promising] > rates[best] * _MARGIN:
        return Choice(promising, True, rates[best])
    return Choice(best, False, rates[best])


def best_class(
    classes: Sequence[Sequence[int]], seconds: Mapping[int, float], evidence: Mapping[int, Evidence], prior: float
) -> tuple[int, ...]:
    """The class of widths in which a text is expected to be fastest; one with width 1 in doubt, else the first."""
    choices = [
        choose({width: seconds[width] for width in members}, evidence, current=0, prior=prior) for members in classes
    ]
    rates = [
        choice.best_rate * (_CLASS_MARGIN if 1 in members else 1.0)
        for choice, members in zip(choices, classes, strict=True)
    ]
    return tuple(classes[rates.index(max(rates))])
