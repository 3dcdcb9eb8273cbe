"""One packed sequence per trajectory, which teaches all its noisy blocks in one forward pass.

The *clean stream* is prompt + response, an ordinary causal sequence, so row p of it stands at position p. A *branch* is
a run of noisy tokens that leaves the clean stream at its first wrong token and keeps the positions of the tokens it
replaces. One rule is the whole attention mask: a token sees the tokens of its own stream up to its position, and a
branch token also the clean stream before the point where its branch leaves. `Recipe.context` decides what a branch is:

    clean    every block is a branch of its own: clean blocks before it (CLLM)
    noisy    one branch holds all blocks: noisy blocks before it (Jacobi Forcing)
    window   one branch per window of the schedule: noisy blocks of its window, clean ones before

Several choices of states may be packed together: each adds its branches, none sees another's.
Tokens before a branch's first wrong one would equal the clean ones, context included, and are not stored twice.

Which rows are taught. Row r (of response token r) predicts token r + 1. Let d be the first index at which a block's
state differs from its target. The row that predicts the wrong token, d - 1, has seen only right tokens of the block: in
clean context it is the clean row itself. Row d has seen the wrong token. So rows d, d + 1, ... to the block's end are
taught (the last of them predicts the next block's first token), each by the teacher's row at the same position. A row
whose label would be after the end token is neither taught nor stored.

Legend: S packed sequence, A rows of the autoregressive term, M taught noisy rows,
R response tokens, N block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from nptool.collection.store import Trajectory
from nptool.training.cllm.recipe import Recipe
from nptool.training.cllm.schedule import Choice

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Packed:
    """One trajectory as arrays; row numbers index the packed sequence."""

    ids_S: Ints
    positions_S: Ints
    segments_S: Ints
    """0 for the clean stream, the branch's number from 1 otherwise."""
    leaves_S: Ints
    """Position at which the token's branch leaves the clean stream; 0 for clean tokens."""
    ar_rows_A: Ints
    ar_labels_A: Ints
    student_rows_M: Ints
    teacher_rows_M: Ints
    """Row that teaches each student row: a clean one, or one of the next state's branch (local consistency)."""
    fixed_labels_M: Ints
    """The fixed point's token that the student row should predict."""
    weights_M: npt.NDArray[np.float64]
    """Weight of each student row, 1 at its block's first wrong token."""

    def __len__(self) -> int:
        return len(self.ids_S)


def pack(trajectory: Trajectory, choices: Sequence[Choice], recipe: Recipe) -> Packed:
    """Pack a trajectory with the chosen states of its blocks."""
    prompt, response_R = (ids.astype(np.int64) for ids in (trajectory.prompt_ids, trajectory.response_ids))
    streams = _Streams(np.concatenate([prompt, response_R[:-1]]), len(prompt))
    ar_rows_A, ar_labels_A = _ar_rows(streams, trajectory, recipe)
    taught = [_teach(streams, trajectory, choice, recipe) for choice in choices]
    r = np.concatenate([one.response_M for one in taught])
    return Packed(
        *streams.arrays(),
        ar_rows_A=ar_rows_A,
        ar_labels_A=ar_labels_A,
        student_rows_M=np.concatenate([one.student_rows_M for one in taught]),
        teacher_rows_M=np.concatenate([one.teacher_rows_M for one in taught]),
        fixed_labels_M=response_R[r + 1],
        weights_M=recipe.decay ** np.concatenate([one.distance_M for one in taught]),
    )


def noisy_response(trajectory: Trajectory, chosen: Sequence[int]) -> Ints:
    """The response with every block at its chosen state, shape (R,); cut off after the end token."""
    states = [block[state] for block, state in zip(trajectory.states, chosen, strict=True)]
    return np.concatenate(states)[: len(trajectory.response_ids)].astype(np.int64)


def taught_rows(wrong_R: npt.NDArray[np.bool_], block: int) -> npt.NDArray[np.bool_]:
    """Response rows that carry consistency loss, boolean (R,): in each block from its first wrong token on.

    The last row is never taught: its label would be after the end token.
    """
    padded = np.pad(wrong_R, (0, -len(wrong_R) % block)).reshape(-1, block)
    taught_R = np.logical_or.accumulate(padded, axis=1).reshape(-1)[: len(wrong_R)]
    taught_R[-1] = False
    return taught_R


@dataclass(frozen=True)
class _Taught:
    response_M: Ints
    """Index in the response of each row's token."""
    student_rows_M: Ints
    teacher_rows_M: Ints
    distance_M: Ints
    """Tokens between each and the first wrong one of its block."""


def _teach(streams: _Streams, trajectory: Trajectory, choice: Choice, recipe: Recipe) -> _Taught:
    """Add the branches of a choice; returns its taught rows with their teachers."""
    response_R = trajectory.response_ids.astype(np.int64)
    noisy_R = noisy_response(trajectory, choice.states)
    taught_R = taught_rows(noisy_R != response_R, trajectory.states[0].shape[1])
    edges = _edges(trajectory, recipe, choice.phase)
    student_row_R = np.full(len(response_R), -1)
    streams.branch_off(noisy_R, response_R, taught_R, edges, student_row_R)
    teacher_row_R = len(trajectory.prompt_ids) + np.arange(len(response_R))
    if recipe.consistency == "local":
        last = [len(block) - 1 for block in trajectory.states]
        next_R = noisy_response(trajectory, [min(i + 1, k) for i, k in zip(choice.states, last, strict=True)])
        streams.branch_off(next_R, response_R, taught_R, edges, teacher_row_R)
    r = np.flatnonzero(taught_R)
    return _Taught(r, student_row_R[r], teacher_row_R[r], _distance(r, trajectory.states[0].shape[1]))


def _distance(r: Ints, block: int) -> Ints:
    """For taught rows, in order, the number of taught rows of the same block before each."""
    _, first, number = np.unique(r // block, return_index=True, return_inverse=True)
    return np.arange(len(r)) - first[number]


class _Streams:
    """The packed sequence under construction: the clean stream, then branches."""

    def __init__(self, clean_ids: Ints, prompt_length: int) -> None:
        self._prompt_length = prompt_length
        self._length = len(clean_ids)
        self._parts = [(clean_ids, 0, 0)]  # ids, first position, position at which it leaves the clean stream

    def add(self, ids: Ints, first: int) -> Ints:
        """Append a branch of response tokens `first`, `first` + 1, ...; returns its rows."""
        rows = self._length + np.arange(len(ids))
        self._parts.append((ids, self._prompt_length + first, self._prompt_length + first))
        self._length += len(ids)
        return rows

    def branch_off(
        self, noisy_R: Ints, response_R: Ints, taught_R: npt.NDArray[np.bool_], edges: Sequence[int], row_R: Ints
    ) -> None:
        """Append a branch between each two `edges` and write its rows to `row_R`.

        A branch runs from its first wrong token to the last taught row; without a taught row there is none.
        """
        for begin, end in pairwise(edges):
            wrong = np.flatnonzero(noisy_R[begin:end] != response_R[begin:end])
            taught = np.flatnonzero(taught_R[begin:end])
            if len(wrong) and len(taught):
                span = slice(begin + wrong[0], begin + taught[-1] + 1)
                row_R[span] = self.add(noisy_R[span], span.start)

    def arrays(self) -> tuple[Ints, Ints, Ints, Ints]:
        """Ids, positions, segments and leaving points of all tokens, each of shape (S,)."""
        lengths = [len(ids) for ids, _, _ in self._parts]
        return (
            np.concatenate([ids for ids, _, _ in self._parts]),
            np.concatenate([first + np.arange(len(ids)) for ids, first, _ in self._parts]),
            np.repeat(np.arange(len(lengths)), lengths),
            np.repeat([leaves for _, _, leaves in self._parts], lengths),
        )


def _edges(trajectory: Trajectory, recipe: Recipe, phase: int) -> list[int]:
    """Response indices that separate the branches, first 0, last R."""
    response, block = len(trajectory.response_ids), trajectory.states[0].shape[1]
    if recipe.context == "noisy":
        return [0, response]
    size, shift = (block, 0) if recipe.context == "clean" else (recipe.window * block, phase * block)
    return [0, *range(size - shift, response, size), response]


def _ar_rows(streams: _Streams, trajectory: Trajectory, recipe: Recipe) -> tuple[Ints, Ints]:
    """Rows and labels of the autoregressive term.

    The data set's answer is one more branch, which leaves the clean stream where the two differ.
    """
    prompt, response_R = len(trajectory.prompt_ids), trajectory.response_ids.astype(np.int64)
    if recipe.ar_target == "response":
        return prompt - 1 + np.arange(len(response_R)), response_R
    assert trajectory.reference_ids is not None, "the data is checked for references when it is read"
    labels_A = trajectory.reference_ids.astype(np.int64)
    # The last token of each predicts nothing, so neither stream stores it.
    inputs = labels_A[:-1]
    shared = _common_prefix(inputs, response_R[:-1])
    branch = streams.add(inputs[shared:], shared) if shared < len(inputs) else np.empty(0, dtype=np.int64)
    return np.concatenate([prompt - 1 + np.arange(shared + 1), branch]), labels_A


def _common_prefix(a: Ints, b: Ints) -> int:
    length = min(len(a), len(b))
    different = np.flatnonzero(a[:length] != b[:length])
    return int(different[0]) if len(different) else length
