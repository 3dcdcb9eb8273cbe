"""The measurement: methods interleaved prompt by prompt, in several rounds, on one engine.

Before the rounds, autoregressive decoding runs untimed at every width, as the reference for the answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from nptool.bench.aggregation import Measurement, first_difference
from nptool.bench.cost import StepCosts
from nptool.bench.variants import AUTO, Variant
from nptool.decoding.answer import Answer, DecodeConfig
from nptool.decoding.decoder import Decoder
from nptool.decoding.proposers.methods import AUTOREGRESSIVE
from nptool.progress import Progress, silent

WARM_UP_TOKENS = 16
"""Of an untimed first answer of each method, to keep page faults and graph building out of the measurement."""

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Comparison:
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
    common: DecodeConfig,
    progress: Progress = silent,
) -> Comparison:
    """Measure every variant on every prompt in every round.

    Args:
        prompts: token ids.
        variants: must contain autoregressive decoding of width 1.
        common: sampling and lengths of all answers.

    Raises:
        ContextError: a prompt is empty or does not fit.
    """
    run = _Run(decoder, common)
    # The widest batch first: a wider one would replace the context.
    engine = decoder.contexts.trunk(max(variant.n for variant in variants))
    compared = sorted({1}.union(*(run.widths(variant, one_of_each_class=True) for variant in variants)))
    costed = sorted({1}.union(*({variant.n, *run.widths(variant)} for variant in variants)))
    for variant in variants:
        run.answer(prompts[0], variant, WARM_UP_TOKENS)
    references = _references(run, prompts, compared, progress)
    costs = StepCosts(engine, sorted(prompts, key=len)[len(prompts) // 2], costed)
    measurements: list[Measurement] = []
    total = rounds * len(prompts) * len(variants)
    for number in range(rounds):
        for index, prompt in enumerate(prompts):
            for variant in in_turn(variants, number + index):
                answer = run.answer(prompt, variant)
                width, tokens = min(answer.widths.members, default=1), tuple(answer.tokens)
                measurements.append(Measurement(variant, index, number, tokens, answer.tally, width, answer.method))
                progress("methods in turns", len(measurements), total)
        decoder.contexts.scratch(1)
        costs.measure()
    margins: dict[tuple[int, int], float] = {}
    for item in measurements:
        expected = references[1][item.prompt]
        position = first_difference(item.tokens, expected)
        if position is not None and (item.prompt, position) not in margins:
            margins[item.prompt, position] = run.margin(prompts[item.prompt], expected[:position])
    return Comparison(measurements, references, margins, costs)


class _Run:
    """Answers of one comparison, each from an empty cache."""

    def __init__(self, decoder: Decoder, common: DecodeConfig) -> None:
        self._decoder, self._common = decoder, common

    def answer(self, prompt: NDArray[np.int32], variant: Variant, max_tokens: int | None = None) -> Answer:
        config = variant.config(self._common)
        if max_tokens is not None:
            config = replace(config, max_tokens=max_tokens)
        answer = self._decoder.answer(prompt, config, purpose=variant.name)
        for _ in answer:
            pass
        return answer

    def widths(self, variant: Variant, *, one_of_each_class: bool = False) -> set[int]:
        """Batch widths that a variant may use; with `one_of_each_class` those that may give different texts."""
        if not variant.adapt:
            return {variant.n}
        config = variant.config(self._common)
        chooser = self._decoder.chooser(config.methods, variant.name)
        lengths = {self._decoder.block_length(config, method) for method in config.methods}
        if not one_of_each_class:
            return {width for n in lengths for width in chooser.widths(n)}
        return {members[0] for n in lengths for members in chooser.classes(n)} if variant.adapt == AUTO else set()

    def margin(self, prompt: NDArray[np.int32], tokens: Sequence[int]) -> float:
        """Difference of the two largest logits after `prompt` and `tokens`, evaluated one row at a time."""
        engine, sequence, _ = self._decoder.contexts.open(1)
        sequence.truncate(0)
        sequence.open(prompt)
        sequence.prefill()
        nothing = np.empty(0, dtype=np.int32)
        for token in tokens:
            engine.evaluate(sequence.lay(nothing, 1), sequence.length - 1)
            sequence.extend(np.array([token], dtype=np.int32))
        logits_V = engine.evaluate(sequence.lay(nothing, 1), sequence.length - 1)[0]
        second, first = np.partition(logits_V, -2)[-2:]
        return float(first - second)


def in_turn(variants: Sequence[Variant], turn: int) -> list[Variant]:
    """The order of one turn in a Williams design (Australian Journal of Scientific Research A 2, 1949).

    An answer starts with the processor's caches, and on a GPU with the graph, of the previous one. In as many turns as
    there are variants (odd: twice as many) each one has each place and follows each other one equally often.
    """
    count = len(variants)
    zigzag = [place // 2 if place % 2 == 0 else count - 1 - place // 2 for place in range(count)]
    order = [variants[(place + turn) % count] for place in zigzag]
    return order[::-1] if count % 2 and turn // count % 2 else order


def _references(
    run: _Run, prompts: Sequence[NDArray[np.int32]], widths: Sequence[int], progress: Progress
) -> dict[int, list[Tokens]]:
    references: dict[int, list[Tokens]] = {width: [] for width in widths}
    total = len(prompts) * len(widths)
    for index, prompt in enumerate(prompts):
        for place, width in enumerate(widths, start=1):
            references[width].append(tuple(run.answer(prompt, Variant(AUTOREGRESSIVE, width)).tokens))
            progress("AR at equal width", index * len(widths) + place, total)
    return references
