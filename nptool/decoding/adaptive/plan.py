"""Which method a text is decoded by, and which class of widths it keeps to: what promises most tokens per second.

Decided before a text begins, from what the texts before it have shown; it stays so to the text's end. Knows no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from nptool.decoding.adaptive.experience import Experience
from nptool.decoding.adaptive.policy import best_prospect, may_be_faster


@dataclass(frozen=True)
class Plan:
    """Of one text."""

    method: int
    """Which of the methods, from 0."""
    members: tuple[int, ...]
    """The widths that its steps may have, ascending."""
    rate: float | None
    """Tokens per second of the best known plan, where this one is a trial."""
    doubts_plain: bool = False
    """Whether one row may have become so fast that it should be timed again."""


def plan_text(experiences: Sequence[Experience], length: int, *, exact: bool) -> Plan:
    """Plan a text of `length` tokens before its first step, and let the experiences know that one begins.

    Args:
        experiences: one for each method; the first is the usual one, others must promise more than it.
        exact: whether the text keeps to one class of widths.
    """
    paces = [experience.pace for experience in experiences if experience.pace is not None]
    for experience in experiences:
        experience.begin(exact=exact)
        if experience.pace is None and paces:
            # The machine is as far from its calibration by one method as by another.
            experience.pace = median(paces)
    options = [
        (number, prospect)
        for number, experience in enumerate(experiences)
        for prospect in experience.prospects(length, exact=exact, bound=number > 0)
        # Plain autoregressive decoding is the same in every method.
        if number == 0 or prospect.members != (1,)
    ]
    allowance = sum(experience.allowance for experience in experiences)
    found = [prospect for _, prospect in options]
    chosen, rate = best_prospect(found, allowance, allowance + experiences[0].plain_start)
    method, prospect = options[chosen]
    for number, experience in enumerate(experiences):
        if number != method:
            experience.skip()
    plain = next((other for _, other in options if other.members == (1,)), None)
    known = prospect.rate if rate is None else rate
    doubtful = plain is not None and 1 not in prospect.members and may_be_faster(plain, known, allowance)
    return Plan(method, prospect.members, rate, doubtful)
