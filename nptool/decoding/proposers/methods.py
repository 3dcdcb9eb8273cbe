"""The methods of decoding by name, each with the proposer that drafts for it.

A new proposer is a module of its own in this folder and one entry in `METHODS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nptool.decoding.loop.sampling import Sampling
from nptool.decoding.loop.sequence import Sequence
from nptool.decoding.loop.steps import Autoregressive, Drafts, Line, Proposer
from nptool.decoding.loop.verification import Verify, verify_line, verify_tree
from nptool.decoding.proposers.chain import DraftHeads, HeadsChain
from nptool.decoding.proposers.jacobi import JacobiBlock, JacobiWindow
from nptool.decoding.proposers.lookahead import LookaheadDecoding
from nptool.decoding.proposers.prompt_lookup import PromptLookup
from nptool.decoding.proposers.tree import HeadsTree
from nptool.errors import UsageError

AUTOREGRESSIVE, JACOBI, JACOBI_BLOCK = "ar", "jacobi", "jacobi-block"
HEADS, HEADS_TREE = "heads", "heads-tree"
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
    propose: Callable[[Task], Proposer[Any]]
    """Makes a proposer."""
    drafts: Drafts = Drafts.ITERATED
    heads: bool = False
    """Whether it uses the model's extra heads."""
    counts_heads: bool = False
    """Whether n is how many heads are used, including the model's own; otherwise n is the rows of a step."""
    verify: Verify = verify_line

    @property
    def parallel(self) -> bool:
        """Whether it drafts. Such methods run in exact mode by default."""
        return self.name != AUTOREGRESSIVE


def _from_prompt(proposer: Callable[[int, NDArray[np.int32], int], Proposer[Line]]) -> Callable[[Task], Proposer[Line]]:
    """For proposers that are made from n, the prompt and the seed."""
    return lambda task: proposer(task.n, task.sequence.tokens, task.sampling.seed)


def _chain(task: Task) -> HeadsChain:
    assert task.heads is not None, "a method with heads was given none"
    return HeadsChain(task.heads, task.sequence, task.sampling)


def _tree(task: Task) -> HeadsTree:
    assert task.heads is not None, "a method with heads was given none"
    return HeadsTree(task.n, task.heads, task.sequence, task.sampling)


METHODS = {
    method.name: method
    for method in (
        Method(AUTOREGRESSIVE, lambda task: Autoregressive()),
        Method(JACOBI, _from_prompt(JacobiWindow)),
        Method(JACOBI_BLOCK, _from_prompt(JacobiBlock)),
        Method(HEADS, _chain, Drafts.INDEPENDENT, heads=True, counts_heads=True),
        Method(HEADS_TREE, _tree, Drafts.BRANCHING, heads=True, verify=verify_tree),
        Method(LOOKAHEAD, _from_prompt(LookaheadDecoding)),
        Method(PROMPT_LOOKUP, lambda task: PromptLookup(task.n, task.sequence), Drafts.INDEPENDENT),
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
