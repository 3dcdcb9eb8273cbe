"""The states of an answer's blocks in Jacobi iteration (CLLM, arXiv 2403.00835, figure 7).

The ordinary loop decodes the answer; `Recorder` wraps its proposer and records guesses and picks. Shapes: S states, N
block.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nptool.convergence import Mark, count_marks, mark_states
from nptool.decoding.answer import DecodeConfig
from nptool.decoding.loop.steps import Proposer
from nptool.decoding.text_model import TextModel

NO_GUESS = -1
"""The last token of a block's first state, which has no guess because no row reads it."""


@dataclass(frozen=True)
class BlockTrace:
    states_SN: NDArray[np.int32]
    """The initial guess, then the state after each iteration; the last one is the text."""

    @cached_property
    def marks_SN(self) -> NDArray[np.uint8]:
        """A `Mark` for each token."""
        return mark_states(self.states_SN)

    @property
    def iterations(self) -> int:
        return len(self.states_SN) - 1


@dataclass(frozen=True)
class Trace:
    model: str
    """Path of the GGUF."""
    n: int
    prompt_tokens: int
    text: str
    blocks: tuple[BlockTrace, ...]
    pieces: dict[int, str] = field(repr=False)
    """Text of every token that occurs; special tokens by their names."""

    @property
    def tokens(self) -> int:
        return sum(block.states_SN.shape[1] for block in self.blocks)

    @property
    def iterations(self) -> int:
        """Forward passes."""
        return sum(block.iterations for block in self.blocks)

    def summary(self) -> dict[str, float]:
        """Figures of the whole answer; those per block are the paper's table 3."""
        blocks, iterations = len(self.blocks), self.iterations
        figures = {
            "tokens": self.tokens,
            "blocks": blocks,
            "iterations": iterations,
            "tokens_per_forward": self.tokens / iterations,
        }
        counts = zip(*(count_marks(block.marks_SN) for block in self.blocks), strict=True)
        for name, total in zip(("fast_forwarded", "stationary"), map(sum, counts), strict=True):
            figures |= {
                name: total,
                f"{name}_per_iteration": total / iterations,
                f"{name}_per_block": total / blocks,
            }
        return figures

    def to_json(self) -> dict[str, Any]:
        """A value for `json.dumps`."""

        def cell(token: int, mark: int) -> dict[str, Any]:
            id = None if token == NO_GUESS else token
            return {"id": id, "text": self.pieces.get(token), "mark": Mark(mark).name.lower()}

        return {
            "model": self.model,
            "n": self.n,
            "prompt_tokens": self.prompt_tokens,
            "text": self.text,
            **self.summary(),
            "states": [
                [
                    list(map(cell, state, marks))
                    for state, marks in zip(block.states_SN.tolist(), block.marks_SN.tolist(), strict=True)
                ]
                for block in self.blocks
            ],
        }


class Recorder:
    """A proposer of blocks that records every state of another one."""

    def __init__(self, proposer: Proposer) -> None:
        self.width = proposer.width
        self._proposer = proposer
        self._blocks: list[list[NDArray[np.integer]]] = []
        self._fixed: NDArray[np.integer] = np.empty(0, dtype=np.int32)
        """Accepted tokens of the newest block."""

    @property
    def seconds(self) -> float:
        """See `Proposer`."""
        return self._proposer.seconds

    def propose(self, room: int) -> NDArray[np.integer]:
        """Draft. The first draft for a block is its first state."""
        draft = self._proposer.propose(room)
        if not self._blocks or self._fixed.size == self._blocks[-1][0].size:
            self._blocks.append([np.append(draft, NO_GUESS)])
            self._fixed = self._fixed[:0]
        return draft

    def observe(self, picks: NDArray[np.integer], accepted: int) -> None:
        """Record the next state: the fixed tokens, then the picks."""
        self._blocks[-1].append(np.concatenate([self._fixed, picks]))
        self._fixed = self._blocks[-1][-1][: self._fixed.size + accepted + 1]
        self._proposer.observe(picks, accepted)

    def blocks(self, tokens: int) -> tuple[BlockTrace, ...]:
        """All states, cut to the answer's `tokens` tokens."""
        blocks, position = [], 0
        for states in self._blocks:
            valid = min(states[0].size, tokens - position)
            blocks.append(BlockTrace(np.stack([state[:valid] for state in states]).astype(np.int32)))
            position += states[0].size
        return tuple(blocks)


def trace_answer(model: TextModel, prompt: NDArray[np.int32], config: DecodeConfig) -> Trace:
    """Answer a prompt block by block and keep every state.

    Args:
        config: its method must use blocks.

    Raises:
        ContextError: the prompt does not fit the context, or n the batch.
    """
    answer = model.answer(prompt, config)
    answer.proposer = recorder = Recorder(answer.proposer)
    for _ in answer:
        pass
    blocks = recorder.blocks(len(answer.tokens))
    ids = {int(token) for block in blocks for token in np.unique(block.states_SN)} - {NO_GUESS}
    pieces = {token: model.model.token_text(token) for token in sorted(ids)}
    return Trace(str(model.path), answer.n, len(prompt), answer.text, blocks, pieces)
