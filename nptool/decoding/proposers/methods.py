"""The methods of decoding by name, each with the proposer that drafts for it.

A new proposer is a module of its own in this folder and one entry in `METHODS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nptool.decoding.loop.sampling import Sampling
from nptool.decoding.loop.sequence import Sequence
from nptool.decoding.loop.steps import Autoregressive, Proposer
from nptool.decoding.proposers.chain import DraftHeads, HeadsChain
from nptool.decoding.proposers.jacobi import JacobiBlock, JacobiWindow
from nptool.decoding.proposers.lookahead import LookaheadDecoding
from nptool.decoding.proposers.prompt_lookup import PromptLookup
from nptool.errors import UsageError

AUTOREGRESSIVE, JACOBI, JACOBI_BLOCK, HEADS = "ar", "jacobi", "jacobi-block", "heads"
LOOKAHEAD, PROMPT_LOOKUP = "lookahead", "prompt-lookup"


@dataclass(frozen=True)
class Task:
    """What a proposer may use of the one sequence that it drafts for."""

    n: int
    """Block length in tokens, or number of heads."""
    sequence: Sequence
    """At first it holds exactly the prompt."""
    sampling: Sampling
    heads: DraftHeads | None = None
    """The model's heads, for methods that use them."""


@dataclass(frozen=True)
class Method:
    """One way to decode."""

    name: str
    propose: Callable[[Task], Proposer]
    """Makes a proposer."""
    independent: bool = False
    """Whether the first drafts of a step are the same at every width, so that it shows what narrower ones bring."""
    heads: bool = False
    """Whether it uses the model's extra heads: n is how many, including the model's own, not the rows of a step."""

    @property
    def parallel(self) -> bool:
        """Whether it drafts. Such methods run in exact mode by default."""
        return self.name != AUTOREGRESSIVE


def _from_prompt(proposer: Callable[[int, NDArray[np.int32], int], Proposer]) -> Callable[[Task], Proposer]:
    """For proposers that are made from n, the prompt and the seed."""
    return lambda task: proposer(task.n, task.sequence.tokens, task.sampling.seed)


def _chain(task: Task) -> HeadsChain:
    assert task.heads is not None, "a method with heads was given none"
    return HeadsChain(task.heads, task.sequence, task.sampling)


METHODS = {
    method.name: method
    for method in (
        Method(AUTOREGRESSIVE, lambda task: Autoregressive()),
        Method(JACOBI, _from_prompt(JacobiWindow)),
        Method(JACOBI_BLOCK, _from_prompt(JacobiBlock)),
        Method(HEADS, _chain, independent=True, heads=True),
        Method(LOOKAHEAD, _from_prompt(LookaheadDecoding)),
        Method(PROMPT_LOOKUP, lambda task: PromptLookup(task.n, task.sequence), independent=True),
    )
}


def find_method(name: str) -> Method:
    """
    Raises:
        UsageError: no method has this name.
    """
    if name not in METHODS:
        raise UsageError(f"unknown method {name!r}; known are {', '.join(METHODS)}")
    return METHODS[name]
