"""The ways to decode, by name, as `bench` lists them: each makes the proposer for one text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nptool.decoding.jacobi import JacobiBlock, JacobiWindow
from nptool.decoding.proposers import Autoregressive, Proposer
from nptool.errors import UsageError


@dataclass(frozen=True)
class Method:
    """One way to decode."""

    name: str
    summary: str
    propose: Callable[[int, NDArray[np.int32], int], Proposer]
    """Makes a proposer from n, the prompt's tokens and a seed."""
    parallel: bool = True
    """Whether it uses a block of n tokens, and so runs in exact mode unless told otherwise."""


AUTOREGRESSIVE = "ar"
JACOBI = "jacobi"
JACOBI_BLOCK = "jacobi-block"

METHODS = {
    method.name: method
    for method in (
        Method(
            AUTOREGRESSIVE,
            "autoregressive, one token for each forward pass",
            lambda n, prompt, seed: Autoregressive(),
            parallel=False,
        ),
        Method(JACOBI, "Jacobi iteration in a sliding window of n tokens", JacobiWindow),
        Method(JACOBI_BLOCK, "Jacobi iteration block by block, as in the CLLM paper", JacobiBlock),
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
