"""The one composition of decoding: prompt, contexts, method, widths, sampling and tally become an answer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nptool.decoding.adaptive.chooser import Chooser
from nptool.decoding.adaptive.store import Store
from nptool.decoding.adaptive.widths import AdaptiveWidth
from nptool.decoding.answer import Answer, DecodeConfig, Vocabulary, Way
from nptool.decoding.contexts import Contexts
from nptool.decoding.expectations import first_gains
from nptool.decoding.loop.steps import FixedWidth
from nptool.decoding.proposers.methods import Method
from nptool.llama.loading import DEFAULT_WIDTH


class Decoder:
    """Answers prompts of token ids, one at a time."""

    def __init__(self, vocabulary: Vocabulary, contexts: Contexts, store: Store, block_size: int) -> None:
        """Args: `block_size` is n where a configuration has none."""
        self.contexts = contexts
        self.store = store
        self._vocabulary = vocabulary
        self._block_size = block_size
        self._answer: Answer | None = None

    def answer(
        self, prompt: NDArray[np.int32], config: DecodeConfig, *, reuse: bool = False, purpose: str = ""
    ) -> Answer:
        """Answer a prompt. This ends the previous answer, even if it was not read to its end.

        Args:
            reuse: keep what the cache already holds of the prompt. Otherwise all of it is prefilled, so that the answer
                does not depend on earlier ones.
            purpose: separates what adaptive widths learn, see `Store.chooser`.

        Raises:
            ContextError: the prompt is empty or does not fit the context, or n does not fit the batch.
            GgufError, UsageError: the configuration asks for more heads than the model has.
        """
        if self._answer is not None:
            self._answer.supersede()
        way = self._choose(config, len(prompt), purpose)
        # Without drafts, feeding z to the heads would be wasted time.
        heads = way.n if way.method.heads and way.widths.members != (1,) else None
        if reuse and heads is None:
            # A later turn of a conversation may use heads, and would have to read the whole sequence again.
            heads = next((self.block_length(config, method) for method in config.methods if method.heads), None)
        opened = self.contexts.open(way.n if way.widths.padded or way.method.parallel else 1, heads)
        if not reuse:
            opened.sequence.truncate(0)
        self._answer = Answer(self._vocabulary, opened, prompt, config, way)
        return self._answer

    def block_length(self, config: DecodeConfig, method: Method | None = None) -> int:
        """n: tokens of a block, or the number of heads.

        Args:
            method: one of the configuration's; None is its first.

        Raises:
            GgufError, UsageError: the configuration asks for more heads than the model has.
        """
        method = method or config.methods[0]
        if method.heads:
            # An n that bounds several methods may exceed the number of heads.
            count = self.contexts.count_heads(None if config.others else config.n)
            return min(count, config.n or count)
        if config.adapt and method.parallel:
            return min(config.n or DEFAULT_WIDTH, self.store.calibration.widths[-1])
        return config.n or self._block_size

    def chooser(self, methods: Sequence[Method], purpose: str = "") -> Chooser:
        """What decoding by `methods` has taught so far."""
        chooser = self.store.chooser(purpose)
        for method in methods:
            if method.name in chooser.gains:
                continue
            if method.heads and method.name not in chooser.drafting:
                chooser.drafting[method.name] = self.contexts.time_draft(self.contexts.count_heads())
            chooser.add(method.name, first_gains(self.contexts.metadata, method))
        return chooser

    def close(self) -> None:
        """End the last answer and save what was learnt."""
        if self._answer is not None:
            self._answer.close()
        self.store.keep()

    def _choose(self, config: DecodeConfig, length: int, purpose: str) -> Way:
        """The method, n and widths for a prompt of `length` tokens."""
        method, n = config.methods[0], self.block_length(config)
        exact = method.parallel if config.exact is None else config.exact
        if not (config.adapt and method.parallel):
            return Way(method, n, FixedWidth(n if exact else None))
        lengths = {other.name: self.block_length(config, other) for other in config.methods}
        chooser = self.chooser(config.methods, purpose)
        plan = chooser.plan(lengths, length, exact=exact)
        chosen = next(other for other in config.methods if other.name == plan.method)
        return Way(chosen, lengths[chosen.name], AdaptiveWidth(chooser, plan, exact=exact))
