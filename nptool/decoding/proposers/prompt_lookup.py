"""Prompt lookup, for comparison: drafts are copied from an earlier occurrence of the last tokens.

The draft function is llama-cpp-python's own, `LlamaPromptLookupDecoding`, with its default of at most 2 tokens looked
up; its number of drafted tokens is n - 1 (its default, 10, is n = 11). The drafts run through this package's loop, so
drafts are compared, not loops.
"""

from __future__ import annotations

from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

from nptool.decoding.loop.sequence import Sequence
from nptool.decoding.loop.steps import Draft, Proposer


class PromptLookup(Proposer):
    """The tokens after the first earlier occurrence of the last two tokens, or else of the last one."""

    seconds = 0.0

    def __init__(self, n: int, sequence: Sequence) -> None:
        self.width = n
        self._sequence = sequence
        self._lookup = LlamaPromptLookupDecoding(num_pred_tokens=n - 1)

    def propose(self, room: int) -> Draft:
        found: Draft = self._lookup(self._sequence.tokens)[:room]
        return found
