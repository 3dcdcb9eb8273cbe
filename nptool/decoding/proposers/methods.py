"""The ways to decode, by name, as `bench` lists them: each makes the proposer for one text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nptool.decoding.loop.sampling import Sampling
from nptool.decoding.loop.sequence import Sequence
from nptool.decoding.loop.steps import Autoregressive, Drafts, Proposer
from nptool.decoding.loop.verification import Verify, verify_line, verify_tree
from nptool.decoding.proposers.chain import DraftHeads, HeadsChain
from nptool.decoding.proposers.jacobi import JacobiBlock, JacobiWindow
from nptool.decoding.proposers.lookahead import LookaheadDecoding
from nptool.decoding.proposers.prompt_lookup import PromptLookup
from nptool.decoding.proposers.tree import HeadsTree
from nptool.errors import UsageError


@dataclass(frozen=True)
class Task:
    """What a proposer may know of the one text it is made for."""

    n: int
    """Block length in tokens, or heads in all."""
    sequence: Sequence
    """The text, whose tokens at the beginning are the prompt."""
    sampling: Sampling
    heads: DraftHeads | None = None
    """The model's heads, for methods that use them."""

    def require_heads(self) -> DraftHeads:
        """The heads, which whoever calls such a method has opened."""
        assert self.heads is not None, "a method with heads was given none"
        return self.heads


@dataclass(frozen=True)
class Method:
    """One way to decode."""

    name: str
    summary: str
    propose: Callable[[Task], Proposer[Any]]
    """Makes a proposer."""
    parallel: bool = True
    """Whether it uses a block of n tokens, and so runs in exact mode unless told otherwise."""
    drafts: Drafts = Drafts.ITERATED
    """What kind of drafts it makes."""
    heads: bool = False
    """Whether it uses the model's extra heads."""
    block: bool = False
    """Whether n is the rows of a step although it uses heads, which are then all the model has; otherwise n is how
    many heads are used, the model's own included."""
    verify: Verify = verify_line
    """Judges its drafts."""

    @property
    def counts_heads(self) -> bool:
        """Whether n is how many heads are used."""
        return self.heads and not self.block


AUTOREGRESSIVE = "ar"
JACOBI = "jacobi"
JACOBI_BLOCK = "jacobi-block"
HEADS = "heads"
HEADS_TREE = "heads-tree"
LOOKAHEAD = "lookahead"
PROMPT_LOOKUP = "prompt-lookup"

METHODS = {
    method.name: method
    for method in (
        Method(
            AUTOREGRESSIVE,
            "autoregressive, one token for each forward pass",
            lambda task: Autoregressive(),
            parallel=False,
        ),
        Method(
            JACOBI,
            "Jacobi iteration in a sliding window of n tokens",
            lambda task: JacobiWindow(task.n, task.sequence.tokens, task.sampling.seed),
        ),
        Method(
            JACOBI_BLOCK,
            "Jacobi iteration block by block, as in the CLLM paper",
            lambda task: JacobiBlock(task.n, task.sequence.tokens, task.sampling.seed),
        ),
        Method(
            HEADS,
            "blockwise parallel decoding: n heads draft one token each",
            lambda task: HeadsChain(task.require_heads(), task.sequence, task.sampling),
            drafts=Drafts.INDEPENDENT,
            heads=True,
        ),
        Method(
            HEADS_TREE,
            "a tree of all heads' first choices, in steps of n rows",
            lambda task: HeadsTree(task.n, task.require_heads(), task.sequence, task.sampling),
            drafts=Drafts.BRANCHING,
            heads=True,
            block=True,
            verify=verify_tree,
        ),
        Method(
            LOOKAHEAD,
            "for comparison: Jacobi iteration with a pool of n-grams, for untrained models",
            lambda task: LookaheadDecoding(task.n, task.sequence.tokens, task.sampling.seed),
        ),
        Method(
            PROMPT_LOOKUP,
            "for comparison: drafts copied from the text so far",
            lambda task: PromptLookup(task.n, task.sequence),
            drafts=Drafts.INDEPENDENT,
        ),
    )
}


def find_method(name: str) -> Method:
    """The method of this name.

    Raises:
        UsageError: there is none.
    """
    if name not in METHODS:
        raise UsageError(f"unknown method {name!r}; known are {', '.join(METHODS)}")
    return METHODS[name]
