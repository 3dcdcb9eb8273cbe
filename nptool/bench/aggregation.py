"""From measurements to figures: medians over rounds, paired speed-ups, shares of identical answers.

A speed-up is the median of ratios, each on one prompt in one round, so that neither a slow phase of the machine nor a
long prompt affects one method alone.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from statistics import median

import numpy as np

from nptool.bench.report import Difference, MethodReport
from nptool.bench.variants import Variant
from nptool.decoding.loop.tally import Tally


@dataclass(frozen=True)
class Measurement:
    """One answer of one method to one prompt in one round."""

    variant: Variant
    prompt: int
    round: int
    tokens: tuple[int, ...]
    """The answer, its end token included."""
    tally: Tally
    width: int
    """Batch width at which autoregressive decoding must give the same answer."""
    method: str
    """The method used; an automatic variant chooses among several."""


Seconds = Callable[[Tally], float]
Margins = dict[tuple[int, int], float]


def summarize(
    measurements: Sequence[Measurement],
    baseline: Sequence[Measurement],
    *,
    references: Mapping[int, Sequence[tuple[int, ...]]],
    margins: Margins,
    costs: dict[int, float],
    sources: Sequence[str],
    accuracy: float | None,
) -> MethodReport:
    """The figures of one variant.

    Args:
        measurements: all of this variant.
        baseline: all of autoregressive decoding of width 1, on the same prompts in the same rounds.
        references: width to the autoregressive answers to all prompts.
        margins: (prompt, position) to the margin of every first difference from the answer of width 1.
        costs: seconds of a batch by width, among them 1 and n.
        sources: names of the prompts.
        accuracy: share of right answers; None if they cannot be scored.
    """
    variant, width_1 = measurements[0].variant, references[1]
    sums = total(measurements)
    step, heads_seconds = mean_step(sums.widths, costs), sums.heads_seconds / sums.passes
    ratios = speedups(measurements, baseline, decoding)
    found = differences(measurements, width_1, margins, sources)
    distances = [difference.margin for difference in found]
    equal_width = [item.tokens == references[item.width][item.prompt] for item in measurements]
    return MethodReport(
        name=variant.name,
        n=variant.n,
        tokens_per_second=rate(measurements, decoding),
        tokens_per_second_with_prefill=rate(measurements, whole),
        speedup=median(ratios.values()),
        speedup_with_prefill=median(speedups(measurements, baseline, whole).values()),
        speedup_by_round=by_round(ratios),
        tokens_per_forward=sums.tokens_per_forward,
        cost_ratio=step / costs[1],
        trunk_ms=1e3 * sums.engine_seconds / sums.passes,
        heads_ms=1e3 * heads_seconds,
        loop_ms=1e3 * sums.loop_seconds / sums.passes,
        predicted_speedup=sums.tokens_per_forward * costs[1] / (step + heads_seconds),
        identical_equal_width=sum(equal_width) / len(equal_width),
        identical_width_1=identical_share(measurements, width_1),
        differences=found,
        margin_median=median(distances) if distances else None,
        margin_worst=max(distances, default=None),
        acceptance_by_position=sums.acceptance,
        accuracy=accuracy,
        first_token_ms=1e3 * median(item.tally.first_step_seconds for item in measurements),
        tokens=sums.tokens,
        forward_passes=sums.passes,
        passes_by_width={str(rows): passes for rows, passes in sorted(sums.widths.items())},
        answers_by_method=dict(Counter(item.method for item in measurements)),
    )


def mean_step(passes: Mapping[int, int], costs: Mapping[int, float]) -> float:
    """Mean seconds of a pass, interpolated between the widths of `costs`.

    Args:
        passes: width to number of passes.
        costs: width to seconds of a batch.
    """
    known = sorted(costs)
    seconds = np.interp(list(passes), known, [costs[rows] for rows in known])
    return float(np.average(seconds, weights=list(passes.values())))


def decoding(tally: Tally) -> float:
    """Seconds without the prefill."""
    return tally.decode_seconds


def whole(tally: Tally) -> float:
    """Seconds with the prefill."""
    return tally.prefill_seconds + tally.decode_seconds


def rate(measurements: Iterable[Measurement], seconds: Seconds) -> float:
    """Tokens/s: all tokens of a round by all its seconds, median over the rounds."""
    rounds: dict[int, list[Tally]] = defaultdict(list)
    for measurement in measurements:
        rounds[measurement.round].append(measurement.tally)
    return median(
        sum(tally.tokens for tally in tallies) / sum(seconds(tally) for tally in tallies) for tallies in rounds.values()
    )


def speedups(
    measurements: Iterable[Measurement], baseline: Iterable[Measurement], seconds: Seconds
) -> dict[tuple[int, int], float]:
    """(round, prompt) to the ratio of tokens/s to those of the baseline on the same prompt in the same round."""

    fast, slow = (
        {(item.round, item.prompt): item.tally.tokens / seconds(item.tally) for item in items}
        for items in (measurements, baseline)
    )
    return {key: rate / slow[key] for key, rate in fast.items()}


def by_round(ratios: dict[tuple[int, int], float]) -> list[float]:
    """Median ratio of each round."""
    rounds: dict[int, list[float]] = defaultdict(list)
    for (number, _), ratio in ratios.items():
        rounds[number].append(ratio)
    return [median(rounds[number]) for number in sorted(rounds)]


def total(measurements: Iterable[Measurement]) -> Tally:
    """The sum of the tallies of one method."""
    tallies = [measurement.tally for measurement in measurements]
    result = Tally(width=tallies[0].width)
    for tally in tallies:
        result.add(tally)
    return result


def identical_share(measurements: Sequence[Measurement], references: Sequence[tuple[int, ...]]) -> float:
    """Share of the answers that have the same tokens as the reference, 0 to 1."""
    return sum(item.tokens == references[item.prompt] for item in measurements) / len(measurements)


def differences(
    measurements: Iterable[Measurement],
    references: Sequence[tuple[int, ...]],
    margins: Margins,
    sources: Sequence[str],
) -> list[Difference]:
    """Every place where an answer first differs from its reference, once, in the order of the prompts."""
    found = {(item.prompt, first_difference(item.tokens, references[item.prompt])) for item in measurements}
    places = sorted((prompt, position) for prompt, position in found if position is not None)
    return [Difference(sources[prompt], position, margins[prompt, position]) for prompt, position in places]


def first_difference(tokens: Sequence[int], reference: Sequence[int]) -> int | None:
    """Index of the first token that differs from the reference; None if the two are equal."""
    pairs = enumerate(zip_longest(tokens, reference))
    return next((position for position, (token, expected) in pairs if token != expected), None)
