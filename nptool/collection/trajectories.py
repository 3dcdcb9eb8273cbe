"""What happens to finished trajectories: counted, judged, augmented, brought into the stored form.

Knows no model and no files. Degenerate responses and augmentation as in CLLM's code (arXiv 2403.00835).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nptool.collection.jacobi import JacobiRun
from nptool.collection.store import Trajectory
from nptool.convergence import count_marks, mark_states

# A token this often in a row is a loop (CLLM's code).
REPEATED_TOKENS = 10
# A sentence of this many words, this often, is a loop too.
REPEATED_SENTENCES = 4
SENTENCE_WORDS = 5
UNFINISHED = "no end within the limit"
REPEATED_TOKEN = f"a token {REPEATED_TOKENS} times in a row"
REPEATED_SENTENCE = "repeated sentences"
_SENTENCE_END = re.compile(r"[.!?;]\s+|\n+")
# Sets the stream of random numbers for augmentation apart from that for guesses.
_AUGMENT_STREAM = 1


@dataclass(frozen=True)
class TrajectoryStats:
    """Counts over responses; they add up."""

    responses: int = 0
    tokens: int = 0
    """Generated tokens, end tokens included."""
    passes: int = 0
    """Forward passes, each sequence counted by itself, prefill not counted."""
    blocks: int = 0
    fast_forwarded: int = 0
    """Tokens after the first that one iteration fixed."""
    stationary: int = 0
    """Tokens predicted right while a token before them was still wrong, and right ever after."""

    def __add__(self, other: TrajectoryStats) -> TrajectoryStats:
        return TrajectoryStats(
            self.responses + other.responses,
            self.tokens + other.tokens,
            self.passes + other.passes,
            self.blocks + other.blocks,
            self.fast_forwarded + other.fast_forwarded,
            self.stationary + other.stationary,
        )

    @property
    def tokens_per_forward(self) -> float:
        """TPF of Jacobi decoding; autoregressive decoding has 1."""
        return self.tokens / self.passes if self.passes else 0.0

    @property
    def steps_to_fixed_point(self) -> float:
        """Mean passes per block."""
        return self.passes / self.blocks if self.blocks else 0.0

    @property
    def mean_response_tokens(self) -> float:
        """Mean length of a response."""
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
    """Why a response is degenerate, None if it is not.

    Args:
        text: the response, decoded.
        open_ended: whether it may go without an end, as the continuation of a plain text does.
    """
    if longest_repeat(run.response_ids) >= REPEATED_TOKENS:
        return REPEATED_TOKEN
    sentences = (" ".join(sentence.split()) for sentence in _SENTENCE_END.split(text))
    times = Counter(sentence for sentence in sentences if len(sentence.split()) >= SENTENCE_WORDS)
    if times and max(times.values()) >= REPEATED_SENTENCES:
        return REPEATED_SENTENCE
    return None if run.ended or open_ended else UNFINISHED


def longest_repeat(ids: Sequence[int]) -> int:
    """Length of the longest stretch of one token."""
    if not ids:
        return 0
    changes = np.flatnonzero(np.diff(ids)) + 1
    return int(np.diff(np.concatenate([[0], changes, [len(ids)]])).max())


def to_trajectory(run: JacobiRun, reference_ids: Sequence[int] | None, augment_seed: int | None) -> Trajectory:
    """The stored form of a response.

    Args:
        reference_ids: the data set's own response.
        augment_seed: seed of the augmentation, None for none.
    """
    blocks = [np.stack(states) for states in run.states]
    if augment_seed is not None:
        for number, states_SN in enumerate(blocks):
            augment(states_SN, np.random.default_rng((augment_seed, run.prompt.key, number, _AUGMENT_STREAM)))
    return Trajectory(
        prompt_ids=np.asarray(run.prompt.ids, dtype=np.int32),
        response_ids=np.asarray(run.response_ids, dtype=np.int32),
        reference_ids=None if reference_ids is None else np.asarray(reference_ids, dtype=np.int32),
        states=tuple(blocks),
    )


def augment(states_SN: NDArray[np.int32], rng: np.random.Generator) -> None:
    """In every state but the last, copy the right token into a random half of the wrong places, never the first wrong.

    The states then resemble those of a better model, whose right tokens come scattered (CLLM's `use_aug`). In place.
    """
    for state_N in states_SN[:-1]:
        augment_state(state_N, states_SN[-1], rng)


def augment_state(state_N: NDArray[np.int32], final_N: NDArray[np.int32], rng: np.random.Generator) -> None:
    """Copy the right token into a random half of one state's wrong places, never the first wrong one. In place."""
    wrong = np.flatnonzero(state_N != final_N)[1:]
    chosen = rng.permutation(wrong)[: len(wrong) // 2]
    state_N[chosen] = final_N[chosen]
