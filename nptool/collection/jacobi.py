"""Jacobi trajectories of many prompts at once, exact and cached.

CLLM (arXiv 2403.00835, section 3.1) with the cache of Jacobi Forcing (arXiv 2512.14681): a block of n tokens starts
as a guess drawn from the prompt; each pass evaluates it in parallel, the longest right prefix plus one token is
accepted, the next guess is what the model picked. Every sequence goes its own way: a finished block is followed by
the next one while other sequences still iterate, a finished sequence gives its slot to a waiting prompt, and tokens
that are accepted are not evaluated again. Knows no files and no tokenizer.

Shapes: A sequences in the batch, N tokens of a block, T tokens of a pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from nptool.collection.packed import PackedModel, packed_attention
from nptool.collection.picking import pick_rows

# Prompts join once one slot in so many is free.
ADMIT_SHARE = 8
PREFILL_TOKENS = 8192


@dataclass(frozen=True)
class Prompt:
    """A prompt that waits for its response."""

    key: int
    """Names it: seeds its guesses and its noise, whatever else is in the batch."""
    ids: Sequence[int]
    """At least one token."""
    max_new_tokens: int | None = None
    """A limit of its own, below that of the settings."""


@dataclass(frozen=True)
class JacobiSettings:
    """How trajectories are computed."""

    n: int
    """Block length in tokens."""
    max_new_tokens: int
    """A response without end token is cut here."""
    end_token_ids: frozenset[int]
    batch_size: int = 32
    """Sequences in flight."""
    seed: int = 0
    temperature: float = 0.0
    """0 is greedy."""


@dataclass
class JacobiRun:
    """A response and how it came about."""

    prompt: Prompt
    response_ids: list[int] = field(default_factory=list)
    """With the end token if it came, and nothing after it."""
    ended: bool = False
    """Whether an end token came within the limit."""
    passes: int = 0
    """Forward passes this sequence took part in, prefill not counted."""
    states: list[list[NDArray[np.int32]]] = field(default_factory=list)
    """For each block the states y(0) ... y(k), each (N,). y(k) is the fixed point; of a block with an end token, the
    state in which everything up to the end token is final."""


def jacobi_trajectories(
    model: PreTrainedModel, prompts: Iterable[Prompt], settings: JacobiSettings
) -> Iterator[JacobiRun]:
    """Respond to every prompt by Jacobi iteration; responses come in the order in which they finish.

    The responses are those of decoding token by token with the same picks (greedy, or the same noise). Prompts are
    taken from the iterator only as slots become free.
    """
    waiting = iter(prompts)
    batch = _Batch(model, settings)
    while True:
        entering = list(islice(waiting, batch.room()))
        if not entering and not batch.runs:
            return
        # Left before every yield: whoever consumes the runs finds the model as it was.
        with packed_attention(model):
            batch.admit(entering)
            finished = batch.step()
        yield from finished


def generate_greedy(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    end_ids: frozenset[int],
    batch: int = 32,
) -> list[list[int]]:
    """Plain greedy responses, token by token, in the order of the prompts; each with its end token if it came."""
    settings = JacobiSettings(n=1, max_new_tokens=max_new_tokens, end_token_ids=end_ids, batch_size=batch)
    waiting = [Prompt(index, ids) for index, ids in enumerate(prompts)]
    waiting.sort(key=lambda prompt: len(prompt.ids))
    responses: list[list[int]] = [[] for _ in prompts]
    for run in jacobi_trajectories(model, waiting, settings):
        responses[run.prompt.key] = run.response_ids
    return responses


def initial_guess(prompt: Prompt, block: int, n: int, seed: int) -> NDArray[np.int64]:
    """The guess (N,) a block starts from: tokens drawn from the prompt, the same in whatever batch."""
    chosen = np.random.default_rng((seed, prompt.key, block)).integers(len(prompt.ids), size=n)
    return np.asarray(prompt.ids, dtype=np.int64)[chosen]


class _Batch:
    """The sequences in flight: sequence i has slot i of the cache and row i of every array."""

    def __init__(self, model: PreTrainedModel, settings: JacobiSettings) -> None:
        self.runs: list[JacobiRun] = []
        self._settings = settings
        self._packed = PackedModel(model, settings.batch_size)
        self._ends = np.array(sorted(settings.end_token_ids), dtype=np.int64)
        size, n = settings.batch_size, settings.n
        self._start = np.zeros(size, dtype=np.int64)  # position of the block's first token
        self._before = np.zeros(size, dtype=np.int64)  # the token before the block
        self._accepted = np.zeros(size, dtype=np.int64)  # tokens of the block that are final
        self._guess = np.zeros((size, n), dtype=np.int64)

    def room(self) -> int:
        """Prompts to let in now; none while few slots are free, so that one prefill serves several."""
        free = self._settings.batch_size - len(self.runs)
        return free if not self.runs or free * ADMIT_SHARE >= self._settings.batch_size else 0

    def admit(self, prompts: list[Prompt]) -> None:
        """Let prompts in: fill their caches up to the token before the last, which opens the first block."""
        for group in _by_tokens(prompts):
            first = len(self.runs)
            # Prompts of one token have nothing to fill in; they go first, so that the others' slots are adjacent.
            group.sort(key=lambda prompt: len(prompt.ids) > 1)
            fills = [list(prompt.ids[:-1]) for prompt in group if len(prompt.ids) > 1]
            if fills:
                self._packed.prefill(fills, first + len(group) - len(fills))
            for prompt in group:
                self.runs.append(JacobiRun(prompt))
                self._open_block(len(self.runs) - 1, len(prompt.ids), int(prompt.ids[-1]))

    def step(self) -> list[JacobiRun]:
        """One pass over every sequence's block; returns the sequences that are finished, which have left."""
        size, n = len(self.runs), self._settings.n
        guess_AN = self._guess[:size]
        columns_N = np.arange(n)
        # Column i holds the token before block token i: its logits pick block token i.
        inputs_AN = np.concatenate([self._before[:size, None], guess_AN[:, :-1]], axis=1)
        open_AN = columns_N >= self._accepted[:size, None]
        slots_T, columns_T = np.nonzero(open_AN)
        positions_T = self._start[slots_T] - 1 + columns_T
        logits_TV = self._packed.logits(inputs_AN[open_AN], slots_T, positions_T, size)
        picks_AN = guess_AN.copy()
        picks_AN[open_AN] = self._picks(logits_TV, slots_T, positions_T + 1)
        right_AN = np.logical_and.accumulate(picks_AN[:, : n - 1] == guess_AN[:, : n - 1], axis=1)
        self._accepted[:size] = right_AN.sum(axis=1) + 1
        changed_A = (picks_AN != guess_AN).any(axis=1)
        self._guess[:size] = picks_AN
        states_AN = picks_AN.astype(np.int32)
        for row, run in enumerate(self.runs):
            run.passes += 1
            if changed_A[row]:
                run.states[-1].append(states_AN[row])
        final_AN = columns_N < self._accepted[:size, None]
        return self._close(np.any(np.isin(picks_AN, self._ends) & final_AN, axis=1))

    def _picks(
        self, logits_TV: torch.Tensor, slots_T: NDArray[np.int64], positions_T: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        seeds = [self._settings.seed + run.prompt.key for run in self.runs]
        seeds_T = [seeds[slot] for slot in slots_T.tolist()]
        picks_T = pick_rows(logits_TV, self._settings.temperature, seeds_T, positions_T.tolist())
        return picks_T.cpu().numpy()

    def _close(self, ended_A: NDArray[np.bool_]) -> list[JacobiRun]:
        """Go on with the next block where one is final; take out the sequences that are finished."""
        finished: list[int] = []
        final_A = self._accepted[: len(self.runs)] == self._settings.n
        for row in np.flatnonzero(ended_A | final_A):
            run = self.runs[row]
            run.response_ids.extend(self._guess[row].tolist())
            if ended_A[row] or len(run.response_ids) >= self._limit(run):
                self._cut(run)
                finished.append(int(row))
            else:
                self._open_block(int(row), int(self._start[row]) + self._settings.n, run.response_ids[-1])
        return [self._take_out(row) for row in reversed(finished)]

    def _limit(self, run: JacobiRun) -> int:
        own = run.prompt.max_new_tokens
        return self._settings.max_new_tokens if own is None else own

    def _cut(self, run: JacobiRun) -> None:
        ids = run.response_ids[: self._limit(run)]
        end = next((index for index, token in enumerate(ids) if token in self._settings.end_token_ids), None)
        run.ended = end is not None
        run.response_ids = ids if end is None else ids[: end + 1]

    def _take_out(self, row: int) -> JacobiRun:
        """Remove a sequence; the last one of the batch moves into its slot."""
        run, last = self.runs[row], len(self.runs) - 1
        if row != last:
            self.runs[row] = self.runs[last]
            self._packed.cache.move(last, row, int(self._start[last] + self._settings.n))
            for values in (self._start, self._before, self._accepted, self._guess):
                values[row] = values[last]
        self.runs.pop()
        return run

    def _open_block(self, row: int, start: int, before: int) -> None:
        run = self.runs[row]
        guess_N = initial_guess(run.prompt, len(run.states), self._settings.n, self._settings.seed)
        run.states.append([guess_N.astype(np.int32)])
        self._start[row] = start
        self._before[row] = before
        self._accepted[row] = 0
        self._guess[row] = guess_N


def _by_tokens(prompts: list[Prompt]) -> Iterator[list[Prompt]]:
    """Cut prompts into groups whose prefill, padded to the longest, stays within PREFILL_TOKENS (or is one prompt)."""
    group: list[Prompt] = []
    for prompt in prompts:
        longest = max(len(other.ids) for other in (*group, prompt))
        if group and longest * (len(group) + 1) > PREFILL_TOKENS:
            yield group
            group = []
        group.append(prompt)
    if group:
        yield group
