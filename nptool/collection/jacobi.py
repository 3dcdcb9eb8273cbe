"""Jacobi trajectories of many prompts at once, exact and cached.

CLLM (arXiv 2403.00835, section 3.1) with the cache of Jacobi Forcing (arXiv 2512.14681): a block of n tokens starts as
a guess drawn from the prompt. Each pass evaluates it in parallel and accepts the longest right prefix plus one token;
what the model picked is the next guess. Sequences are independent: one opens its next block while others iterate, and a
finished one gives its slot to a waiting prompt. Accepted tokens are not evaluated again.

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

from nptool.collection.packed import Ints, PackedModel, packed_attention
from nptool.collection.picking import pick_rows

# Prompts join when at least one slot in eight is free, so that one prefill serves several.
ADMIT_SHARE = 8
PREFILL_TOKENS = 8192


@dataclass(frozen=True)
class Prompt:
    key: int
    """Number of the sequence: its noise is that of decoding with seed + key, its guesses depend on (seed, key)."""
    ids: Sequence[int]
    """At least one token."""
    max_new_tokens: int | None = None
    """Overrides the limit of the settings."""


@dataclass(frozen=True)
class JacobiSettings:
    """See `CollectConfig`."""

    n: int
    max_new_tokens: int
    end_token_ids: frozenset[int]
    batch_size: int = 32
    seed: int = 0
    temperature: float = 0.0


@dataclass
class JacobiRun:
    """A response and its trajectories."""

    prompt: Prompt
    response_ids: list[int] = field(default_factory=list)
    """With the end token if it came, and nothing after it."""
    ended: bool = False
    passes: int = 0
    """Forward passes of this sequence, without prefill."""
    states: list[list[NDArray[np.int32]]] = field(default_factory=list)
    """For each block the states y(0) ... y(k), each (N,). y(k) is the fixed point, in the last block up to its end."""


def jacobi_trajectories(
    model: PreTrainedModel, prompts: Iterable[Prompt], settings: JacobiSettings
) -> Iterator[JacobiRun]:
    """Respond to every prompt as decoding token by token would, in the order in which responses finish.

    Prompts are taken from the iterator as slots become free.
    """
    waiting = iter(prompts)
    batch = _Batch(model, settings)
    while True:
        entering = list(islice(waiting, batch.room()))
        if not entering and not batch.runs:
            return
        # Left before every yield, so that the caller finds the model unchanged.
        with packed_attention(model):
            batch.admit(entering)
            finished = batch.step()
        yield from finished


def initial_guess(prompt: Prompt, block: int, n: int, seed: int) -> Ints:
    """The guess (N,) that a block starts from: tokens drawn from the prompt, in any batch the same."""
    chosen = np.random.default_rng((seed, prompt.key, block)).integers(len(prompt.ids), size=n)
    return np.asarray(prompt.ids, dtype=np.int64)[chosen]


class _Batch:
    """The sequences in flight. Sequence i has slot i of the cache and row i of every array."""

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
        """How many prompts to admit now."""
        free = self._settings.batch_size - len(self.runs)
        return free if not self.runs or free * ADMIT_SHARE >= self._settings.batch_size else 0

    def admit(self, prompts: list[Prompt]) -> None:
        """Prefill all tokens of the prompts but the last one, which is the first input of the first block."""
        for group in _by_tokens(prompts):
            self._packed.prefill([list(prompt.ids[:-1]) for prompt in group], first_slot=len(self.runs))
            for prompt in group:
                self.runs.append(JacobiRun(prompt))
                self._open_block(len(self.runs) - 1, len(prompt.ids), int(prompt.ids[-1]))

    def step(self) -> list[JacobiRun]:
        """Evaluate every sequence's block once; remove and return the finished sequences."""
        size, n = len(self.runs), self._settings.n
        guess_AN = self._guess[:size]
        columns_N = np.arange(n)
        # Column i holds the token before block token i, so its logits pick block token i.
        inputs_AN = np.concatenate([self._before[:size, None], guess_AN[:, :-1]], axis=1)
        open_AN = columns_N >= self._accepted[:size, None]
        slots_T, columns_T = np.nonzero(open_AN)
        positions_T = self._start[slots_T] - 1 + columns_T
        logits_TV = self._packed.logits(inputs_AN[open_AN], slots_T, positions_T, size)
        picks_AN = guess_AN.copy()
        picks_AN[open_AN] = self._picks(logits_TV, slots_T, positions_T + 1)
        right_AN = np.logical_and.accumulate(picks_AN[:, : n - 1] == guess_AN[:, : n - 1], axis=1)
        self._accepted[:size] = right_AN.sum(axis=1) + 1
        for run, picks_N, guess_N in zip(self.runs, picks_AN, guess_AN, strict=True):
            run.passes += 1
            if (picks_N != guess_N).any():
                run.states[-1].append(picks_N.astype(np.int32))
        self._guess[:size] = picks_AN
        final_AN = columns_N < self._accepted[:size, None]
        return self._close(np.any(np.isin(picks_AN, self._ends) & final_AN, axis=1))

    def _picks(self, logits_TV: torch.Tensor, slots_T: Ints, positions_T: Ints) -> Ints:
        seeds = [self._settings.seed + run.prompt.key for run in self.runs]
        seeds_T = [seeds[slot] for slot in slots_T.tolist()]
        picks_T = pick_rows(logits_TV, self._settings.temperature, seeds_T, positions_T.tolist())
        return picks_T.cpu().numpy()

    def _close(self, ended_A: NDArray[np.bool_]) -> list[JacobiRun]:
        """Open the next block where one is final; remove and return the finished sequences."""
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
        """Cut a response at its limit or its first end token."""
        del run.response_ids[self._limit(run) :]
        ends = [at for at, token in enumerate(run.response_ids) if token in self._settings.end_token_ids]
        run.ended = bool(ends)
        if ends:
            del run.response_ids[ends[0] + 1 :]

    def _take_out(self, row: int) -> JacobiRun:
        """Remove a sequence; the last one moves into its slot."""
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
        self._start[row], self._before[row], self._accepted[row], self._guess[row] = start, before, 0, guess_N


def _by_tokens(prompts: list[Prompt]) -> Iterator[list[Prompt]]:
    """Groups of prompts whose prefill, padded to the longest, is at most PREFILL_TOKENS (or one prompt)."""
    group: list[Prompt] = []
    for prompt in prompts:
        longest = max(len(other.ids) for other in (*group, prompt))
        if group and longest * (len(group) + 1) > PREFILL_TOKENS:
            yield group
            group = []
        group.append(prompt)
    if group:
        yield group
