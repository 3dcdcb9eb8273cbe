"""Prompt lookup, a rival to compare with: drafts are copied from where the text's last tokens stood before.

The draft function is llama-cpp-python's own, `LlamaPromptLookupDecoding`, with its default of at most 2 tokens looked
up; only its number of drafted tokens follows n (its default, 10, is n = 11). The drafts run through this package's
loop, so what is compared is drafts, not loops. No model is needed, and none is known here.
"""

from __future__ import annotations

import numpy as np
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding
from numpy.typing import NDArray

from nptool.decoding.loop.sequence import Sequence


class PromptLookup:
    """What followed the first earlier occurrence of the last two tokens, or else of the last one."""

    seconds = 0.0

    def __init__(self, n: int, sequence: Sequence) -> None:
        self.width = n
        self._sequence = sequence
        self._lookup = LlamaPromptLookupDecoding(num_pred_tokens=n - 1)

    def propose(self, room: int) -> NDArray[np.integer]:
        """The tokens found, or none."""
        found: NDArray[np.integer] = self._lookup(self._sequence.tokens)[:room]
        return found

    def observe(self, picks: NDArray[np.integer], accepted: int) -> None:
        """Nothing to learn: the text is looked up anew at every step."""
