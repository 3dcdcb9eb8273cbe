"""Finished trajectories: statistics, degenerate responses, augmentation, and the stored form.

Degenerate responses and augmentation are those of CLLM's code (arXiv 2403.00835).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from itertools import groupby
from operator import add

import numpy as np
from numpy.typing import NDArray

from nptool.collection.jacobi import JacobiRun
from nptool.collection.store import Ids, Trajectory
from nptool.convergence import count_marks, mark_states

# A token repeated this often is a loop (CLLM's code).
REPEATED_TOKENS = 10
# So is a sentence of at least `SENTENCE_WORDS` words that occurs this often.
REPEATED_SENTENCES = 4
SENTENCE_WORDS = 5
UNFINISHED = "no end within the limit"
REPEATED_TOKEN = f"a token {REPEATED_TOKENS} times in a row"
REPEATED_SENTENCE = "repeated sentences"
_SENTENCE_END = re.compile(r"[.!?;]\s+|\n+")
# Separates the random numbers of augmentation from those of the guesses.
_AUGMENT_STREAM = 1


@dataclass(frozen=True)
class TrajectoryStats:
    """Counts over responses."""

    responses: int = 0
    tokens: int = 0
    """Generated tokens, end tokens included."""
    passes: int = 0
    """Forward passes of each sequence, without prefill."""
    blocks: int = 0
    fast_forwarded: int = 0
    """Tokens beyond the first one that became final in the same iteration."""
    stationary: int = 0
    """Tokens that were right while an earlier one was still wrong, and stayed right."""

    def __add__(self, other: TrajectoryStats) -> TrajectoryStats:
        return TrajectoryStats(*map(add, astuple(self), astuple(other)))

    @property
    def tokens_per_forward(self) -> float:
        """Tokens per forward pass of Jacobi decoding; 1 for autoregressive decoding."""
        return self.tokens / self.passes if self.passes else 0.0

    @property
    def steps_to_fixed_point(self) -> float:
        return self.passes / self.blocks if self.blocks else 0.0

    @property
    def mean_response_tokens(self) -> float:
        return self.tokens / self.responses if self.responses else 0.0


def count(run: JacobiRun) -> TrajectoryStats:
    """The statistics of one response."""
    fast_forwarded = stationary = position = 0
    for states in run.states:
        block_SN = np.stack(states)
        valid = min(block_SN.shape[1], len(run.response_ids) - position)
        fast, still = count_marks(mark_states(block_SN[:, :valid]))
        fast_forwarded += fast
        stationary += still
        position += block_SN.shape[1]
    return TrajectoryStats(1, len(run.response_ids), run.passes, len(run.states), fast_forwarded, stationary)


def flaw(run: JacobiRun, text: str, *, open_ended: bool = False) -> str | None:
    """Why a response, decoded as `text`, is degenerate; None if it is not. `open_ended` ones need no end token."""
    if longest_repeat(run.response_ids) >= REPEATED_TOKENS:
        return REPEATED_TOKEN
    sentences = (" ".join(sentence.split()) for sentence in _SENTENCE_END.split(text))
    times = Counter(sentence for sentence in sentences if len(sentence.split()) >= SENTENCE_WORDS)
    if times and max(times.values()) >= REPEATED_SENTENCES:
        return REPEATED_SENTENCE
    return None if run.ended or open_ended else UNFINISHED


def longest_repeat(ids: Sequence[int]) -> int:
    """How often a token occurs in a row at most."""
    return max((len(list(repeats)) for _, repeats in groupby(ids)), default=0)


def to_trajectory(run: JacobiRun, reference_ids: Ids | None, augment_seed: int | None) -> Trajectory:
    """The stored form of a response; `augment_seed` None leaves the states as they are."""
    blocks = [np.stack(states) for states in run.states]
    if augment_seed is not None:
        for number, states_SN in enumerate(blocks):
            rng = np.random.default_rng((augment_seed, run.prompt.key, number, _AUGMENT_STREAM))
            for state_N in states_SN[:-1]:
                augment_state(state_N, states_SN[-1], rng)
    return Trajectory(
        prompt_ids=np.asarray(run.prompt.ids, dtype=np.int32),
        response_ids=np.asarray(run.response_ids, dtype=np.int32),
        reference_ids=reference_ids,
        states=tuple(blocks),
    )


def augment_state(state_N: NDArray[np.int32], final_N: NDArray[np.int32], rng: np.random.Generator) -> None:
    """Correct a random half of a state's wrong tokens, never the first wrong one (CLLM's `use_aug`). In place."""
    wrong = np.flatnonzero(state_N != final_N)[1:]
    chosen = rng.permutation(wrong)[: len(wrong) // 2]
    state_N[chosen] = final_N[chosen]
