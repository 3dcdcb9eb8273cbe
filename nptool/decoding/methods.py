"""The ways to decode, by name, as `bench` lists them: each makes the proposer for one text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nptool.decoding.chain import HeadsChain, Lookahead
from nptool.decoding.jacobi import JacobiBlock, JacobiWindow
from nptool.decoding.lookahead import LookaheadDecoding
from nptool.decoding.prompt_lookup import PromptLookup
from nptool.decoding.proposers import Autoregressive, Proposer
from nptool.decoding.sampling import Sampling
from nptool.decoding.sequence import Sequence
from nptool.errors import UsageError


@dataclass(frozen=True)
class Task:
    """What a proposer may know of the one text it is made for."""

    n: int
    """Block length in tokens, or heads in all."""
    sequence: Sequence
    """The text, whose tokens at the beginning are the prompt."""
    sampling: Sampling
    heads: Lookahead | None = None
    """The model's heads, for methods that use them."""

    def require_heads(self) -> Lookahead:
        """The heads, which whoever calls such a method has opened."""
        assert self.heads is not None, "a method with heads was given none"
        return self.heads


@dataclass(frozen=True)
class Method:
    """One way to decode."""

    name: str
    summary: str
    propose: Callable[[Task], Proposer]
    """Makes a proposer."""
    parallel: bool = True
    """Whether it uses a block of n tokens, and so runs in exact mode unless told otherwise."""
    independent: bool = False
    """Whether a draft's tokens are the same however long it is; not so where iterating makes them better."""
    heads: bool = False
    """Whether it uses the model's extra heads; n is then how many, the model's own included."""


AUTOREGRESSIVE = "ar"
JACOBI = "jacobi"
JACOBI_BLOCK = "jacobi-block"
HEADS = "heads"
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
            independent=True,
            heads=True,
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
