"""The measurement: methods interleaved prompt by prompt, in several rounds, on one engine.

Before the rounds, autoregressive decoding runs once and untimed at every width, as the reference for the answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nptool.bench.aggregation import Measurement, first_difference
from nptool.bench.cost import StepCosts
from nptool.bench.decoder import Decoder, Variant
from nptool.decoding.proposers.methods import AUTOREGRESSIVE
from nptool.progress import Progress, silent

# Tokens of an untimed first answer of each method, which pays for page faults and graph building.
WARM_UP_TOKENS = 16

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Comparison:
    """Everything that was measured."""

    measurements: list[Measurement]
    references: dict[int, list[Tokens]]
    """Width to the autoregressive answers to all prompts."""
    margins: dict[tuple[int, int], float]
    """(prompt, position in the answer) to the margin of autoregressive decoding of width 1, at every first difference
    from it."""
    costs: StepCosts


def compare(
    decoder: Decoder,
    prompts: Sequence[NDArray[np.int32]],
    variants: Sequence[Variant],
    rounds: int,
    progress: Progress = silent,
) -> Comparison:
    """Measure every variant on every prompt in every round.

    Args:
        prompts: token ids.
        variants: must contain autoregressive decoding of width 1.

    Raises:
        ContextError: a prompt is empty or does not fit.
    """
    widths = sorted({1}.union(*(decoder.compared_widths(variant) for variant in variants)))
    costed = sorted({1}.union(*({variant.n, *decoder.costed_widths(variant)} for variant in variants)))
    for variant in variants:
        decoder.answer(prompts[0], variant, WARM_UP_TOKENS)
    references = _references(decoder, prompts, widths, progress)
    costs = StepCosts(decoder.engine, sorted(prompts, key=len)[len(prompts) // 2], costed)
    measurements: list[Measurement] = []
    total = rounds * len(prompts) * len(variants)
    for number in range(rounds):
        for index, prompt in enumerate(prompts):
            for variant in in_turn(variants, number + index):
                answer = decoder.answer(prompt, variant)
                measurements.append(
                    Measurement(variant, index, number, answer.tokens, answer.tally, answer.width, answer.method)
                )
                progress("methods in turns", len(measurements), total)
        costs.measure()
    margins = _margins(decoder, prompts, measurements, references[1])
    return Comparison(measurements, references, margins, costs)


def in_turn(variants: Sequence[Variant], turn: int) -> list[Variant]:
    """The order of one turn in a Williams design (Australian Journal of Scientific Research A 2, 1949).

    In as many turns as there are variants (twice as many for an odd number), each variant has each place and directly
    follows each other variant equally often, because an answer starts with the processor's caches, and on a GPU with
    the graph, of the previous one.
    """
    count = len(variants)
    zigzag = [place // 2 if place % 2 == 0 else count - 1 - place // 2 for place in range(count)]
    order = [variants[(place + turn) % count] for place in zigzag]
    return order[::-1] if count % 2 and turn // count % 2 else order


def _references(
    decoder: Decoder, prompts: Sequence[NDArray[np.int32]], widths: Sequence[int], progress: Progress
) -> dict[int, list[Tokens]]:
    references: dict[int, list[Tokens]] = {width: [] for width in widths}
    total = len(prompts) * len(widths)
    for index, prompt in enumerate(prompts):
        for place, width in enumerate(widths):
            references[width].append(decoder.answer(prompt, Variant(AUTOREGRESSIVE, width)).tokens)
            progress("AR at equal width", index * len(widths) + place + 1, total)
    return references


def _margins(
    decoder: Decoder,
    prompts: Sequence[NDArray[np.int32]],
    measurements: Sequence[Measurement],
    references: Sequence[Tokens],
) -> dict[tuple[int, int], float]:
    margins: dict[tuple[int, int], float] = {}
    for measurement in measurements:
        index = measurement.prompt
        position = first_difference(measurement.tokens, references[index])
        if position is not None and (index, position) not in margins:
            margins[index, position] = decoder.margin(prompts[index], references[index][:position])
    return margins
